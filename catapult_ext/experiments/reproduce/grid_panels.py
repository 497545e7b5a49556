"""The pictures of learning rates x seeds of one network."""

from __future__ import annotations

from dataclasses import replace

from catapult_ext.experiments.reproduce.grid import Record, all_live, stable
from catapult_ext.experiments.reproduce.outcome import Row, line
from catapult_ext.figures.line_panel import Panel, Series

C_LABEL = r"$c = \eta\,\lambda_0$"
ETA_CRIT = r"$\eta_{crit}$"
LAMBDA = r"$\eta\,\lambda$"
LAZY = r"$\eta\,\lambda = c$: $\lambda$ stays"


def marks(rows: list[Row], edge: float = 2.0) -> dict[str, float]:
    """Vertical lines of every picture against c: the transition and where runs are lost."""
    lost = [r["c"] for r in rows if r["diverged"]]
    dead = [r["c"] for r in rows if r["dead"]]
    found = {ETA_CRIT: edge}
    found |= {"first divergence": min(lost)} if lost else {}
    return found | ({"first dead net": min(dead)} if dead else {})


def by_c(label: str, rows: list[Row], key: str) -> Series:
    """A column against c; hollow where some seeds diverged or died, of which it is no mean."""
    series = line(label, rows, key)
    hollow = [not all_live(row) for row in rows if row[key] is not None]
    return replace(series, hollow=hollow)


def panel_lambda(rows: list[Row], key: str, title: str, edge: float = 2.0) -> Panel:
    """Draw eta * lambda against c with the bound 2, and with c: what a lambda that stays gives."""
    series = by_c("mean over live seeds", rows, key)
    top = 1.15 * max([edge, *series.y])
    low = min((r["c"] for r in rows), default=edge)
    stays = [low * (top / low) ** (i / 40) for i in range(41)] if low < top else []
    lines = [Series(LAZY, stays, stays, style="--")] if stays else []
    return Panel(
        title,
        C_LABEL,
        LAMBDA,
        [series, *lines],
        xlog=True,
        vlines=marks(rows, edge),
        hlines={rf"$\lambda = {edge:g}/\eta$": edge},
    )


def panel_peak(rows: list[Row]) -> Panel:
    """Largest loss over the initial one against c, of the rates that never diverged."""
    kept = [r for r in rows if r["diverged"] == 0]
    return Panel(
        "Largest loss of the run over the initial loss",
        C_LABEL,
        "peak / start",
        [by_c("median over seeds", kept, "loss_peak_ratio")],
        xlog=True,
        ylog=True,
        vlines=marks(rows),
    )


def panel_accuracy(rows: list[Row], title: str, label: str = "mean over live seeds") -> Panel:
    """Test accuracy against c."""
    return Panel(
        title,
        C_LABEL,
        "test accuracy",
        [by_c(label, rows, "test_accuracy")],
        xlog=True,
        vlines=marks(rows),
    )


def panel_losses(records: list[Record], title: str, seed: int = 0, steps: int = 60) -> Panel:
    """Early loss curves of one seed, up to seven rates."""
    held = sorted((r for r in records if r["seed"] == seed), key=lambda r: r["c"])
    stride = max(1, -(-len(held) // 7))
    caught = [r["loss_peak"] for r in held if r["diverged_at"] < 0]
    limit = 1e3 * max(caught, default=held[0]["loss0"])  # a divergence would hide all else
    series = []
    for r in held[::stride]:
        x, y = _early(r, steps, limit)
        dead = r["diverged_at"] < 0 and not stable(r)
        ends = " (diverged)" if r["diverged_at"] >= 0 else " (ends dead)" if dead else ""
        series.append(Series(f"c = {r['c']:g}{ends}", x, y, style="-"))
    return Panel(title, "step", "training loss", series, ylog=True)


def _early(record: Record, steps: int, limit: float) -> tuple[list[float], list[float]]:
    """The curve up to the first value beyond ``limit``, which ends it at the top of the picture."""
    x: list[float] = []
    y: list[float] = []
    for step, value in zip(record["loss_steps"], record["loss"], strict=True):
        beyond = value is None or not value <= limit
        if step > steps:
            break
        if beyond or value > 0:
            x.append(float(step))
            y.append(limit if beyond else value)
        if beyond:
            break
    return x, y
