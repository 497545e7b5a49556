"""Picture of a tracked spectrum: eigenvalues with the edge k*/eta, below the loss and zeta."""

from __future__ import annotations

from typing import Any

from catapult_ext.figures.style import BLACK, BLUE, GREY, ORANGE, new_figure, png, styled

_NAMES = {"ggn": "Gauss-Newton", "hessian": "Hessian", "ntk": "NTK"}


def curvature_figure(
    probes: list[dict[str, Any]], steps: list[dict[str, Any]], quantity: str
) -> Any:
    """A matplotlib Figure of probe records and step records as CurvatureTracker keeps them.

    Raises:
        RuntimeError: matplotlib is missing; the message names the extra.
    """
    seen = [s for s in steps if s.get("loss") is not None]  # a Trainer tells none
    measured = [s for s in steps if s.get("zeta") is not None]
    ratios = (2, *(1 for rows in (seen, measured) if rows))
    with styled():
        figure = new_figure(7.0, 1.2 + 2.0 * len(ratios))
        panels = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False)
        top, *rest = panels[:, 0]
        _draw_values(top, probes, quantity)
        if seen:
            ax = rest.pop(0)
            ax.plot([s["step"] for s in seen], [s["loss"] for s in seen], color=BLACK, lw=1)
            if min(s["loss"] for s in seen) > 0:
                ax.set_yscale("log")
            ax.set(ylabel="training loss")
        for ax in rest:
            x, y = [s["step"] for s in measured], [s["zeta"] for s in measured]
            ax.plot(x, y, color=BLACK, lw=1)
            ax.axhline(1, color=ORANGE, ls="--", lw=1)
            ax.set(ylabel=r"realized edge $\zeta$")
        panels[-1, 0].set(xlabel="step")
    return figure


def _draw_values(ax: Any, probes: list[dict[str, Any]], quantity: str) -> None:
    deepest = max((len(p["values"]) for p in probes), default=0)
    for rank in range(deepest):
        rows = [p for p in probes if len(p["values"]) > rank]
        x = [p["step"] for p in rows]
        y = [p["values"][rank] for p in rows]
        e = [p["errors"][rank] for p in rows]
        style = {"color": BLUE if rank == 0 else GREY, "marker": ".", "ms": 4, "lw": 1}
        ax.errorbar(x, y, yerr=e, label="largest" if rank == 0 else None, **style)
    compared = [p for p in probes if p["eta"] and p.get("threshold")]
    edges = [(p["step"], p["threshold"] / p["eta"]) for p in compared]
    if edges:
        plain = all(p["threshold"] == 2 for p in compared)
        label = r"$2/\eta$" if plain else r"$k^*/\eta$"
        ax.plot(*zip(*edges, strict=True), color=ORANGE, ls="--", lw=1, label=label)
    drawn = [value for p in probes for value in p["values"]]
    if drawn and 0 < min(drawn) < max(drawn) / 100:
        ax.set_yscale("log")
    ax.set_ylabel("eigenvalues")
    seen = "Preconditioned " if any(p.get("preconditioned") for p in probes) else ""
    ax.set_title(f"{seen}{_NAMES[quantity]} along training")
    if deepest:
        ax.legend(loc="best")


def curvature_png(
    probes: list[dict[str, Any]], steps: list[dict[str, Any]], quantity: str
) -> bytes:
    """The figure of :func:`curvature_figure` as PNG bytes."""
    return png(curvature_figure(probes, steps, quantity), 110)
