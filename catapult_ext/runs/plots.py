"""Pictures of a sweep, from its summary and records (plain JSON values)."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from catapult_ext.runs import panels
from catapult_ext.runs.panels import Record, load_matplotlib

CAPTIONS = {
    "overview": "Overview of the sweep",
    "loss": "Training loss at every step; a cross marks where a divergent run was given up",
    "curvature": "eta * lambda along the way; after a catapult it ends below 2",
    "flatness": "Top eigenvalue at the end against the learning rate, with the bound 2/eta",
    "thresholds": "Where the projection, the loss and the linearised net begin to grow",
    "performance": "Accuracy and inactive units at the end, against the learning rate",
}


def sweep_figures(
    summary: Record, records: list[Record], linearised: list[Record] | None
) -> dict[str, bytes]:
    """PNG bytes by name; the names are the keys of ``CAPTIONS``."""
    matplotlib = load_matplotlib()
    drawers: dict[str, Callable[[Any], None]] = {
        "loss": lambda ax: panels.draw_loss(ax, summary, records),
        "curvature": lambda ax: panels.draw_curvature(ax, summary, records),
        "flatness": lambda ax: panels.draw_flatness(ax, summary),
        "thresholds": lambda ax: panels.draw_thresholds(ax, summary),
        "performance": lambda ax: panels.draw_performance(ax, summary),
    }
    figures = {"overview": png(overview(summary, records, linearised), 110)}
    for name, draw in drawers.items():
        with matplotlib.rc_context(_STYLE):
            figure = matplotlib.figure.Figure(figsize=(7.0, 4.3), layout="constrained")
            draw(figure.add_subplot())
            figures[name] = png(figure, 130)
    return figures


_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 14,
    "legend.fontsize": 7.5,
    "legend.framealpha": 0.85,
    "savefig.facecolor": "white",
}


def png(figure: Any, dpi: int) -> bytes:
    """A figure as PNG bytes; no date or version inside, so equal pictures are equal files."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def overview(summary: Record, records: list[Record], linearised: list[Record] | None) -> Any:
    """Four panels: loss curves, final curvature, thresholds, accuracy. A matplotlib Figure."""
    del linearised  # its growth is in the summary's rows
    matplotlib = load_matplotlib()
    with matplotlib.rc_context(_STYLE):
        figure = matplotlib.figure.Figure(figsize=(10.5, 7.2), layout="constrained")
        axes = figure.subplots(2, 2)
        panels.draw_loss(axes[0, 0], summary, records)
        panels.draw_flatness(axes[0, 1], summary)
        panels.draw_thresholds(axes[1, 0], summary)
        panels.draw_performance(axes[1, 1], summary)
    return figure


def toy_figures(summary: Record, records: list[Record]) -> dict[str, bytes]:
    """PNG bytes of the toy model's picture, under the name ``toy``."""
    matplotlib = load_matplotlib()
    with matplotlib.rc_context(_STYLE):
        figure = matplotlib.figure.Figure(figsize=(13.0, 4.0), layout="constrained")
        axes = figure.subplots(1, 3)
        panels.draw_loss(axes[0], summary, records)
        panels.draw_curvature(axes[1], summary, records)
        panels.draw_flatness(axes[2], summary)
    return {"toy": png(figure, 110)}
