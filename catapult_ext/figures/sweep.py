"""Pictures of a sweep, from its summary and records (plain JSON values)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from catapult_ext.figures import sweep_panels as panels
from catapult_ext.figures.style import new_figure, png, styled
from catapult_ext.figures.sweep_panels import Record
from catapult_ext.figures.sweep_seeds import seeds_overview

CAPTIONS = {
    "overview": "Overview of the sweep",
    "loss": "Training loss at every step; a cross marks where a divergent run leaves the axes",
    "curvature": "eta * lambda along the way; after a catapult it ends below 2",
    "flatness": "Top eigenvalue at the end against the learning rate, with the bound 2/eta",
    "thresholds": "Where the projection, the loss and the linearised net begin to grow",
    "performance": "Accuracy and inactive units at the end, against the learning rate",
}


def sweep_figures(summary: Record, records: list[Record]) -> dict[str, bytes]:
    """PNG bytes by name; the names are keys of ``CAPTIONS``.

    Without a curvature along the runs (``probes=False``) there is no picture of it.

    Raises:
        RuntimeError: matplotlib is missing; the message names the extra.
    """
    drawers: dict[str, Callable[[Any], None]] = {
        "loss": lambda ax: panels.draw_loss(ax, summary, records),
        "curvature": lambda ax: panels.draw_curvature(ax, summary, records),
        "flatness": lambda ax: panels.draw_flatness(ax, summary),
        "thresholds": lambda ax: panels.draw_thresholds(ax, summary),
        "performance": lambda ax: panels.draw_performance(ax, summary),
    }
    if not panels.followed(records):
        del drawers["curvature"], drawers["flatness"]
    figures = {"overview": png(overview(summary, records), 110)}
    for name, draw in drawers.items():
        with styled():
            figure = new_figure(7.0, 4.3)
            draw(figure.add_subplot())
            figures[name] = png(figure, 130)
    return figures


def seed_figures(
    sweeps: Sequence[tuple[Record, list[Record]]], first: int = 0
) -> tuple[dict[str, bytes], dict[str, str]]:
    """PNG bytes by name, and captions: all seeds together, then the overview of each.

    Args:
        sweeps: summary and records of every seed.
        first: number of the first seed.
    """
    pictures = {"seeds": png(seeds_overview([summary for summary, _ in sweeps]), 110)}
    captions = {"seeds": f"All {len(sweeps)} seeds: medians, with bars from lowest to highest"}
    for seed, one in enumerate(sweeps, first):
        pictures[f"seed_{seed:04d}"] = png(overview(*one), 110)
        captions[f"seed_{seed:04d}"] = f"Overview of seed {seed}"
    return pictures, captions


def overview(summary: Record, records: list[Record]) -> Any:
    """Four panels: loss curves, final curvature, thresholds, accuracy. A matplotlib Figure."""
    with styled():
        figure = new_figure(10.5, 7.2)
        axes = figure.subplots(2, 2)
        panels.draw_loss(axes[0, 0], summary, records)
        if panels.followed(records):
            panels.draw_flatness(axes[0, 1], summary)
        else:
            axes[0, 1].set_axis_off()
            axes[0, 1].text(0.5, 0.5, "no curvature was measured along the runs", ha="center")
        panels.draw_thresholds(axes[1, 0], summary)
        panels.draw_performance(axes[1, 1], summary)
    return figure


def toy_figures(summary: Record, records: list[Record]) -> dict[str, bytes]:
    """PNG bytes of the toy model's picture, under the name ``toy``."""
    with styled():
        figure = new_figure(13.0, 4.0)
        axes = figure.subplots(1, 3)
        panels.draw_loss(axes[0], summary, records)
        panels.draw_curvature(axes[1], summary, records)
        panels.draw_flatness(axes[2], summary)
    return {"toy": png(figure, 110)}
