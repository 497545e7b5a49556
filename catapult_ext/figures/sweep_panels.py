"""Single panels of a sweep's pictures, drawn on matplotlib axes; matplotlib on demand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from catapult_ext.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    INK,
    LIGHT_GREY,
    PALE_BLUE,
    PALE_GREY,
    PALE_ORANGE,
    RED,
    load_matplotlib,
    plain_log_ticks,
)

Record = dict[str, Any]

BANDS = {
    "lazy": PALE_BLUE,
    "flat": PALE_BLUE,
    "catapult": PALE_ORANGE,
    "divergent": PALE_GREY,
    "dead": PALE_GREY,
}
STYLES = {"lazy": (0, (4, 2)), "flat": "-.", "catapult": "-", "divergent": (0, (1, 1.5))}


def _colours(rows: list[Record]) -> tuple[Any, Any]:
    matplotlib = load_matplotlib()
    low, high = min(r["c"] for r in rows), max(r["c"] for r in rows)
    norm = matplotlib.colors.LogNorm(low, max(high, 1.01 * low))
    return norm, matplotlib.colormaps["viridis"].resampled(256)


def _curves(ax: Any, rows: list[Record], draw: Callable[[int, dict[str, Any]], None]) -> None:
    """Call ``draw`` for every rate with its line style; add colour bar and style legend."""
    matplotlib = load_matplotlib()
    norm, colours = _colours(rows)
    for i, row in enumerate(rows):
        shade = colours(0.92 * norm(row["c"]))
        draw(i, {"color": shade, "ls": STYLES[row["phase"]], "lw": 1.3})
    present = [phase for phase in STYLES if any(r["phase"] == phase for r in rows)]
    for phase in present:
        ax.plot([], [], color=BLACK, ls=STYLES[phase], lw=1.3, label=phase)
    ax.legend(loc="best")
    trimmed = matplotlib.colors.ListedColormap([colours(0.92 * i / 255) for i in range(256)])
    bar = ax.figure.colorbar(
        matplotlib.cm.ScalarMappable(norm=norm, cmap=trimmed), ax=ax, pad=0.02, aspect=30
    )
    bar.set_label(r"$c=\eta\lambda_0$")
    plain_log_ticks(bar.ax.yaxis)


def draw_loss(ax: Any, summary: Record, records: list[Record]) -> None:
    """Loss against step, both logarithmic, one curve per rate."""
    rows = summary["rates"]

    def draw(i: int, style: dict[str, Any]) -> None:
        loss = records[i]["loss"]
        if not loss:
            return
        steps = [step + 1 for step in range(len(loss))]
        ax.plot(steps, loss, **style)
        if rows[i]["phase"] == "divergent":
            lost.append((steps, loss, style["color"]))

    lost: list[tuple[list[int], list[float], Any]] = []
    _curves(ax, rows, draw)
    ax.set(xscale="log", yscale="log", xlabel="step $t+1$", ylabel=r"training loss $L_t$")
    plain_log_ticks(ax.xaxis)
    finite = [max(r["loss"]) for r, row in zip(records, rows, strict=True) if _bounded(row)]
    top = 30 * max(finite, default=math.inf)
    if finite:  # leave room for the catapults, cut off what only divergent runs reach
        ax.set_ylim(top=top)
    for steps, loss, colour in lost:  # a cross where the run is given up, or leaves the picture
        at = next((i for i, value in enumerate(loss) if value > top), len(loss) - 1)
        ax.plot(steps[at], min(loss[at], top), marker="x", ms=6, color=colour, clip_on=False)
    ax.set_title(f"Loss: $L_0={records[0]['loss'][0]:.3g}$")


def followed(records: list[Record]) -> bool:
    """Whether any run has a curvature."""
    return any(value is not None for record in records for value in record["lambda"])


def _eta_lambda(record: Record) -> list[float]:
    """Eta * lambda at the probe steps, NaN (a gap in the curve) where it could not be measured."""
    return [math.nan if value is None else record["eta"] * value for value in record["lambda"]]


def draw_curvature(ax: Any, summary: Record, records: list[Record]) -> None:
    """Eta * lambda against step, one curve per rate, with the line at 2."""
    rows = summary["rates"]

    def draw(i: int, style: dict[str, Any]) -> None:
        record = records[i]
        steps = [step + 1 for step in record["probe_steps"]]
        dots = {"marker": ".", "ms": 4} if len(steps) <= 30 else {}
        ax.plot(steps, _eta_lambda(record), **dots, **style)

    ax.axhline(2, color=BLACK, lw=1)
    _curves(ax, rows, draw)
    ax.set(xscale="log", yscale="log", xlabel="step $t+1$", ylabel=r"$\eta\,\lambda_t$")
    plain_log_ticks(ax.xaxis)
    plain_log_ticks(ax.yaxis)
    bounded = [r for r, row in zip(records, rows, strict=True) if _bounded(row)]
    known = [value for r in bounded for value in _eta_lambda(r) if math.isfinite(value)]
    if known:
        ax.set_ylim(top=4 * max(2.0, *known))
    right = ax.get_yaxis_transform()
    ax.text(0.985, 2.1, r"$\eta\lambda=2$", transform=right, ha="right", va="bottom")
    ax.set_title(r"Curvature of the trained loss along the way")


def draw_flatness(ax: Any, summary: Record) -> None:
    """Lambda at the end against eta, the 2/eta guide and the phases' bands (ICLR figure 2c)."""
    rows, lambda0 = summary["rates"], summary["lambda0"]
    _bands(ax, summary, scale=1 / lambda0)
    for phase, colour, marker in (
        ("lazy", BLUE, "o"),
        ("flat", GREEN, "D"),
        ("catapult", RED, "s"),
    ):
        chosen = [r for r in rows if r["phase"] == phase and r["lambda_end"] is not None]
        if chosen:
            ax.plot(
                [r["eta"] for r in chosen],
                [r["lambda_end"] for r in chosen],
                color=colour,
                marker=marker,
                ms=4.5,
                lw=1,
                label=f"{phase}: $\\lambda$ at the end",
            )
    low, high = ax.get_xlim()
    grid = [low * (high / low) ** (i / 60) for i in range(61)]
    ax.plot(grid, [2 / eta for eta in grid], color=BLACK, lw=1.2, ls="--", label=r"$2/\eta$")
    ax.axhline(lambda0, color=GREY, lw=1, ls=":", label=rf"$\lambda_0={lambda0:.3g}$")
    ends = [r["lambda_end"] for r in rows if r["lambda_end"]]
    if ends:
        ax.set_ylim(0.6 * min(ends), 2.5 * max(*ends, lambda0))
    ax.set(yscale="log", xlabel=r"learning rate $\eta$", ylabel=r"top eigenvalue $\lambda$")
    plain_log_ticks(ax.yaxis)
    ax.set_title(rf"Curvature at the end; $\eta_{{crit}}=2/\lambda_0={2 / lambda0:.3g}$")
    ax.legend(loc="lower left")


def draw_thresholds(ax: Any, summary: Record) -> None:
    """Peak of projection, loss and linearised projection over their starts, against c."""
    rows = summary["rates"]
    _bands(ax, summary)
    stable = [r for r in rows if _bounded(r)]
    top = max([max(r["loss_peak"], r["projection_peak"] or 1) for r in stable], default=10.0)
    limit = max(10.0, 30 * top)
    for key, colour, marker, style, label in (
        ("projection_peak", RED, "s", "-", "projection on the top eigenspace"),
        ("loss_peak", BLUE, "o", "-", "loss"),
        ("linearised_projection_peak", GREEN, "^", "--", "projection, net linearised at start"),
    ):
        # A run that was given up has no peak: it goes out at the top.
        gone = "linearised_diverged_at" if key.startswith("linearised") else "diverged_at"
        known = [r for r in rows if r.get(key) is not None]
        points = [(r["c"], r[key] if r[gone] is None else limit) for r in known]
        if points:
            ax.plot(*zip(*points, strict=True), style, color=colour, marker=marker, ms=4, lw=1.1)
            ax.lines[-1].set_label(label)
    ax.axhline(1, color=BLACK, lw=0.8)
    ax.set(yscale="log", xlabel=r"$c=\eta\lambda_0$", ylabel="largest value over its start")
    ax.set_ylim(0.7, limit)
    marks = [
        (name, summary[key])
        for name, key in (
            (r"c_{proj}", "c_proj"),
            (r"c_{loss}", "c_loss"),
            ("c_{lin}", "c_linearised"),
        )
    ]
    found = [f"${name}={mark['c']:.3g}$" for name, mark in marks if mark]
    ax.set_title("Growth above the start: " + (", ".join(found) or "none"))
    ax.legend(loc="upper left")


def draw_performance(ax: Any, summary: Record) -> None:
    """Accuracy (or test loss) and inactive units at the end, against c."""
    rows = [r for r in summary["rates"] if _bounded(r)]
    _bands(ax, summary)
    c = [r["c"] for r in rows]
    classes = any(r["test_accuracy"] is not None or r["train_accuracy"] is not None for r in rows)
    keys = (("train_accuracy", "training accuracy"), ("test_accuracy", "test accuracy"))
    if not classes:
        keys = (("loss_end", "training loss at the end"), ("test_loss", "test loss at the end"))
    for (key, label), colour, marker in zip(keys, (BLUE, RED), "os", strict=True):
        if all(r[key] is not None for r in rows):
            ax.plot(c, [r[key] for r in rows], color=colour, marker=marker, ms=4, lw=1.2)
            ax.lines[-1].set_label(label)
    if any(r["inactive"] is not None for r in rows):
        share = [r["inactive"] for r in rows]
        ax.plot(c, share, color=GREY, ls="--", marker="v", ms=3.5, lw=1, label="inactive units")
    ax.set(xlabel=r"$c=\eta\lambda_0$", ylabel="fraction" if classes else "loss; fraction")
    if not classes:
        ax.set_yscale("log")
    ax.set_title(f"After {summary['steps']} steps" + (_best_text(summary)))
    ax.legend(loc="best")


def _best_text(summary: Record) -> str:
    best = summary["best"]
    if not best or best["by"] != "test_accuracy":
        return ""
    return f": best test accuracy {best['value']:.1%} at c = {best['c']:.3g}"


def _bounded(row: Record) -> bool:
    return row["phase"] != "divergent"


def _bands(ax: Any, summary: Record, scale: float = 1.0) -> None:
    """Shade the phases along a logarithmic axis of c * scale; hatch what the grid leaves open."""
    rows = summary["rates"]
    low, high = 0.88 * rows[0]["c"], 1.12 * rows[-1]["c"]
    unstable = [r for r in rows if not _bounded(r) or "dead" in r["flags"].split()]
    first = unstable[0]["c"] if unstable else None
    below = [r["c"] for r in rows if first is None or r["c"] < first]
    last = high if first is None else (below[-1] if below else low)
    edges = [("lazy", low, min(2.0, last))]
    if last > 2:
        rose = next((r["c"] for r in rows if r["phase"] == "catapult"), high)
        calm = any(r["phase"] == "flat" for r in rows)
        from_ = min(rose, last) if calm else max(2.0, low)
        edges += [("flat", max(2.0, low), from_)] if calm else []
        edges.append(("catapult", from_, last))
    if first is not None:
        edges.append(("dead" if _bounded(unstable[0]) else "divergent", first, high))
        ax.axvspan(last * scale, first * scale, fc="white", ec=LIGHT_GREY, hatch="///", lw=0)
    for phase, start, end in edges:
        if end > start:
            ax.axvspan(start * scale, end * scale, color=BANDS[phase], lw=0)
            ax.text(
                (start * end) ** 0.5 * scale,
                1.01,
                phase,
                transform=ax.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=7.5,
                color=INK,
            )
    ax.set_xscale("log")
    ax.set_xlim(low * scale, high * scale)
    plain_log_ticks(ax.xaxis)
