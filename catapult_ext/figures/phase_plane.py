"""A phase diagram of trained networks: four maps over the learning rate and one other axis."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from catapult_ext.figures import style

PHASES = ("lazy", "catapult", "dead", "divergent")
_COLOURS = (style.BLUE, style.ORANGE, style.PURPLE, style.DARK)
_SETTINGS = {"axes.titlepad": 6, "svg.hashsalt": "catapult_ext"}
_NEVER = style.PALE_GREY  # where no run has a value


@dataclass(frozen=True)
class Boundary:
    """A line over the rows: c by row, with its standard error; NaN where it is not known."""

    label: str
    c: list[float]
    error: list[float]


@dataclass(frozen=True)
class PlanePicture:
    """Maps of rows (the axis) and columns (c), each a list of rows; NaN where there is no value.

    Attributes:
        title: title of the picture.
        axis: name of the other axis.
        c: values of c of the columns, ascending.
        values: values of the rows, ascending.
        eta_lambda: final eta * lambda.
        peak: largest loss over the initial one.
        phase: index into ``PHASES``.
        accuracy: on the test set, or of any score called ``score``.
        boundaries: drawn over every map.
        log: whether the axis is logarithmic.
        score: name of the last map.
        note: small text below, such as data, net and loss.
    """

    title: str
    axis: str
    c: list[float]
    values: list[float]
    eta_lambda: list[list[float]]
    peak: list[list[float]]
    phase: list[list[float]]
    accuracy: list[list[float]]
    boundaries: list[Boundary] = field(default_factory=list)
    log: bool = True
    score: str = "test accuracy"
    note: str = ""


def draw_plane(plane: PlanePicture) -> dict[str, bytes]:
    """The picture as ``png``, ``svg`` and ``pdf``, without date: equal pictures are equal files.

    Raises:
        RuntimeError: matplotlib is missing; the message names the extra.
    """
    matplotlib = style.load_matplotlib()
    with matplotlib.rc_context(style.STYLE | _SETTINGS):
        figure = matplotlib.figure.Figure(figsize=(10.0, 7.6), layout="constrained")
        axes = figure.subplots(2, 2, sharex=True, sharey=True)
        for (name, values, look), ax in zip(_maps(plane), axes.flat, strict=True):
            _draw(figure, ax, plane, name, np.array(values, dtype=float), look)
        for ax in axes[1]:
            ax.set_xlabel(r"$c = \eta\lambda_0$")
        for ax in axes[:, 0]:
            ax.set_ylabel(plane.axis)
        lines, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside lower right", ncols=len(labels))
        figure.suptitle(plane.title, fontsize=10)
        if plane.note:
            figure.get_layout_engine().set(rect=(0, 0.02, 1, 0.98))
            figure.text(0.012, 0.006, plane.note, fontsize=7, color=style.INK)
        return {"png": style.png(figure, 120), "svg": style.svg(figure), "pdf": style.pdf(figure)}


def _maps(plane: PlanePicture) -> list[tuple[str, Any, dict[str, Any]]]:
    """Title, values and colours of each map."""
    import matplotlib
    from matplotlib.colors import BoundaryNorm, ListedColormap

    with np.errstate(divide="ignore", invalid="ignore"):
        peak = np.log10(np.array(plane.peak, dtype=float))
    phases = {"cmap": ListedColormap(_COLOURS), "norm": BoundaryNorm(range(5), 4)}
    over = matplotlib.colormaps["viridis"].with_extremes(over=style.RED)
    bound = {"cmap": over, "vmin": 0.0, "vmax": 2.0}  # beyond the bound in a colour of its own
    return [
        (r"final $\eta\lambda$, mean over seeds", plane.eta_lambda, bound),
        (r"$\log_{10}$ (largest loss / initial loss), median", peak, {"cmap": "magma"}),
        ("phase of most seeds", plane.phase, phases),
        (f"{plane.score}, mean over seeds", plane.accuracy, {"cmap": "cividis"}),
    ]


def _draw(
    figure: Any, ax: Any, plane: PlanePicture, name: str, values: np.ndarray, look: dict[str, Any]
) -> None:
    x, y = _edges(plane.c, True), _edges(plane.values, plane.log)
    ax.set_facecolor(_NEVER)
    drawn = ax.pcolormesh(x, y, np.ma.masked_invalid(values), rasterized=True, **look)
    bar = figure.colorbar(drawn, ax=ax, extend="max" if "vmax" in look else "neither")
    if name.startswith("phase"):
        bar.set_ticks([0.5, 1.5, 2.5, 3.5], labels=PHASES)
    ax.axvline(2.0, color=style.LIGHT_GREY, linestyle="--", linewidth=1.2, label="c = 2")
    for boundary, colour in zip(plane.boundaries, (style.RED, style.GREEN), strict=False):
        known = np.isfinite(boundary.c)
        ax.errorbar(
            np.array(boundary.c)[known],
            np.array(plane.values)[known],
            xerr=np.nan_to_num(np.array(boundary.error))[known],
            color=colour,
            linewidth=1.1,
            elinewidth=0.8,
            marker="o",
            markersize=2.5,
            capsize=1.5,
            label=boundary.label,
        )
    ax.set(xscale="log", title=name, xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    style.plain_log_ticks(ax.xaxis)
    if plane.log:
        ax.set_yscale("log")
        style.plain_log_ticks(ax.yaxis, plane.values if len(plane.values) <= 8 else None)


def _edges(values: list[float], log: bool) -> np.ndarray:
    """Borders of the cells, half-way between their middles."""
    middle = np.log(values) if log else np.array(values, dtype=float)
    if len(middle) == 1:
        middle = np.array([middle[0] - 0.5, middle[0] + 0.5])
    else:
        inner = (middle[1:] + middle[:-1]) / 2
        middle = np.concatenate([[2 * middle[0] - inner[0]], inner, [2 * middle[-1] - inner[-1]]])
    return np.exp(middle) if log else middle
