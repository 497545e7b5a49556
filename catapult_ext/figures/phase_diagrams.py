"""Pictures of the toy model: phase diagrams and bifurcations."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from torch import Tensor

from catapult_ext.figures.style import BLUE, DARK, NAVY, ORANGE, PALE, RED, new_figure

PHASE_COLOURS = (BLUE, ORANGE, DARK, PALE)  # lazy, catapult, divergent, unsettled
LABELS = {
    "width": "width W",
    "f0": r"$|f_0|$",
    "b": r"label $b = \eta y/\sqrt{W}$",
    "momentum": r"momentum $\beta$",
}
PIXELS = 700  # more points than that a side are thinned out for the picture


class Plane(Protocol):
    """The data drawn of a phase diagram: see :class:`catapult_ext.toy.PhaseDiagram`."""

    @property
    def axis(self) -> str:
        """Name of the second axis."""

    @property
    def c(self) -> np.ndarray:
        """First axis, of the columns."""

    @property
    def values(self) -> np.ndarray:
        """Second axis, of the rows."""

    @property
    def settings(self) -> dict[str, Any]:
        """Values of the axes that are fixed."""

    @property
    def eta_lambda(self) -> np.ndarray:
        """(rows, columns) curvature at the end."""

    @property
    def peak_loss(self) -> np.ndarray:
        """(rows, columns) largest loss."""

    @property
    def phase(self) -> np.ndarray:
        """(rows, columns) index into the names of the phases."""


class Orbits(Protocol):
    """The data drawn of a bifurcation: see :class:`catapult_ext.toy.Bifurcation`."""

    @property
    def b(self) -> Tensor:
        """Labels b, (R,)."""

    @property
    def a(self) -> Tensor:
        """(R, keep) late residuals."""

    @property
    def eta_lambda(self) -> Tensor:
        """(R, keep) late curvature."""

    @property
    def diverged_at(self) -> Tensor:
        """(R,) step of the divergence, -1 for none."""


def phase_diagram_figure(diagram: Plane, phases: tuple[str, ...]) -> Any:
    """Figure of final eta * lambda, log peak loss and phase, with the boundaries c = 2 and c = 4.

    Args:
        diagram: what is drawn.
        phases: names of the phases.

    Raises:
        RuntimeError: matplotlib is missing; the message names the extra.
    """
    figure = new_figure(13.5, 4.2)
    from matplotlib.colors import BoundaryNorm, ListedColormap

    step = [max(1, -(-n // PIXELS)) for n in diagram.phase.shape]
    thin = (slice(None, None, step[0]), slice(None, None, step[1]))
    phase = np.asarray(diagram.phase[thin])
    dead = phase == phases.index("divergent")
    curvature = np.where(dead, np.nan, diagram.eta_lambda[thin]).astype(np.float32)
    with np.errstate(divide="ignore"):
        peak = np.where(dead, np.nan, np.log10(diagram.peak_loss[thin])).astype(np.float32)
    colours = ListedColormap(PHASE_COLOURS)
    axes = figure.subplots(1, 3, sharey=True)
    panels: tuple[tuple[np.ndarray, dict[str, Any], str], ...] = (
        (curvature, {"cmap": "viridis", "vmin": 0}, r"final $\eta\lambda$"),
        (peak, {"cmap": "magma"}, r"$\log_{10}$ peak loss"),
        (phase, {"cmap": colours, "norm": BoundaryNorm(range(5), 4)}, "phase"),
    )
    for ax, (image, style, title) in zip(axes, panels, strict=True):
        drawn = _image(ax, diagram, image, style)
        bar = figure.colorbar(drawn, ax=ax)
        if title == "phase":
            bar.set_ticks([0.5, 1.5, 2.5, 3.5], labels=phases)
        ax.set(title=title, xlabel=r"$c = \eta\lambda_0$")
    axes[0].set_ylabel(LABELS[diagram.axis])
    return figure


def _image(ax: Any, diagram: Plane, image: np.ndarray, style: dict[str, Any]) -> Any:
    """One panel; a logarithmic axis is drawn in decades, as images need even spacing."""
    logarithmic = diagram.axis in ("width", "f0") and diagram.values[0] > 0
    y = np.log10(diagram.values) if logarithmic else diagram.values
    x = diagram.c
    margins = [(v[-1] - v[0]) / max(2 * (len(v) - 1), 1) for v in (x, y)]
    extent = (x[0] - margins[0], x[-1] + margins[0], y[0] - margins[1], y[-1] + margins[1])
    drawn = ax.imshow(
        image, origin="lower", aspect="auto", extent=extent, interpolation="nearest", **style
    )
    if logarithmic:
        ax.yaxis.set_major_formatter(lambda value, _: f"$10^{{{value:g}}}$")
    line = {"color": "white", "linestyle": "--", "linewidth": 0.9}
    if diagram.axis == "momentum":
        ax.plot(2 * (1 + y), y, **line)
    elif (
        diagram.axis == "b"
    ):  # eta lambda_0 = 2, no stable minimum beyond 1, eta lambda_0 = 4 + a b
        ax.axvline(2.0, **line)
        ax.axhline(1.0, **line)
        start = diagram.settings["f0"] / (
            diagram.settings["lambda0"] * diagram.settings["width"] ** 0.5
        )
        ax.plot((4 - y**2) / (1 - y * start), y, **line)
    else:
        threshold = 2 * (1 + diagram.settings["momentum"])
        for c in (threshold, 4.0):
            if x[0] < c < x[-1]:
                ax.axvline(c, **line)
    ax.set(xlim=extent[:2], ylim=extent[2:])
    return drawn


def bifurcation_figure(result: Orbits) -> Any:
    """Figure of late eta * lambda and residual against the label b.

    Raises:
        RuntimeError: matplotlib is missing; the message names the extra.
    """
    figure = new_figure(9, 7)
    axes = figure.subplots(2, 1, sharex=True)
    alive = np.flatnonzero((result.diverged_at < 0).cpu().numpy())
    alive = alive[:: max(1, len(alive) // (4 * PIXELS))]
    b = result.b.cpu().numpy()[alive]
    for ax, values, name in (
        (axes[0], result.eta_lambda.cpu().numpy()[alive], r"late $\eta\lambda$"),
        (axes[1], result.a.cpu().numpy()[alive], r"late residual $a = \eta(f-y)/\sqrt{W}$"),
    ):
        points = np.repeat(b, values.shape[1])
        ax.plot(points, values.ravel(), ",", color=NAVY, alpha=0.25, rasterized=True)
        ax.set_ylabel(name)
        for doubling in (1.0, 5**0.5 - 1, 1.28803, 1.29923):
            ax.axvline(doubling, color=RED, linewidth=0.6, alpha=0.6)
    axes[0].plot(b, 1 + b, color=ORANGE, linewidth=1, label="$1 + b$: mean on the 2-cycle")
    axes[0].legend(loc="upper left")
    axes[1].set_xlabel(r"label $b = \eta y/\sqrt{W}$")
    return figure
