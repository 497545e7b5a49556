"""Pictures of a sweep of several seeds: the range of each number over them, and their phases."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from catapult_ext.figures.style import (
    BLACK,
    BLUE,
    DARK,
    GREY,
    ORANGE,
    RED,
    SKY,
    new_figure,
    plain_log_ticks,
    styled,
)
from catapult_ext.figures.sweep_panels import Record

SHADES = {"lazy": BLUE, "flat": SKY, "catapult": ORANGE, "divergent": DARK}


def seeds_overview(summaries: Sequence[Record]) -> Any:
    """Four panels over the seeds: phases, curvature, peaks, accuracy. A matplotlib Figure.

    Args:
        summaries: ``summary`` of the sweep of each seed, with equal numbers of rates.

    Raises:
        RuntimeError: matplotlib is missing; the message names the extra.
    """
    rates = [list(rows) for rows in zip(*(s["rates"] for s in summaries), strict=True)]
    with styled():
        figure = new_figure(10.5, 7.2)
        axes = figure.subplots(2, 2)
        _phases(axes[0, 0], rates)
        _curvature(axes[0, 1], rates)
        _peaks(axes[1, 0], rates)
        _performance(axes[1, 1], rates, summaries[0]["steps"])
    return figure


def _phases(ax: Any, rates: list[list[Record]]) -> None:
    """The number of seeds in each phase, stacked, rate by rate."""
    below = [0] * len(rates)
    for phase, colour in SHADES.items():
        count = [sum(row["phase"] == phase for row in rows) for rows in rates]
        if any(count):
            ax.bar(range(len(rates)), count, 0.9, bottom=below, color=colour, label=phase)
        below = [old + new for old, new in zip(below, count, strict=True)]
    ax.set_xticks(range(len(rates)), [f"{_middle(rows):.3g}" for rows in rates], fontsize=7)
    if len(rates) > 12:
        ax.tick_params(axis="x", rotation=90)
    ax.set(xlabel=r"$c=\eta\lambda_0$", ylabel="seeds")
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set_title(f"Phases of {below[0]} seeds")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(SHADES))


def _curvature(ax: Any, rates: list[list[Record]]) -> None:
    ax.axhline(2, color=BLACK, lw=1)
    _ranges(ax, rates, "eta_lambda_end", RED, "s", r"$\eta\,\lambda$ at the end")
    ax.set(yscale="log", ylabel=r"$\eta\,\lambda$")
    plain_log_ticks(ax.yaxis)
    _finish(ax, r"Curvature at the end; the line is $\eta\lambda=2$")


def _peaks(ax: Any, rates: list[list[Record]]) -> None:
    stable = [[row for row in rows if row["phase"] != "divergent"] for rows in rates]
    ax.axhline(1, color=BLACK, lw=0.8)
    name = "projection on the top eigenspace"
    _ranges(ax, stable, "projection_peak", RED, "s", name)
    _ranges(ax, stable, "loss_peak", BLUE, "o", "loss")
    ax.set(yscale="log", ylabel="largest value over its start")
    plain_log_ticks(ax.yaxis)
    _finish(ax, "Growth above the start, of runs that do not diverge")


def _performance(ax: Any, rates: list[list[Record]], steps: int) -> None:
    keys = (("train_accuracy", "training accuracy"), ("test_accuracy", "test accuracy"))
    classes = any(row[key] is not None for rows in rates for row in rows for key, _ in keys)
    if not classes:
        keys = (("loss_end", "training loss at the end"), ("test_loss", "test loss at the end"))
    for (key, label), colour, marker in zip(keys, (BLUE, RED), "os", strict=True):
        _ranges(ax, rates, key, colour, marker, label)
    ax.set_ylabel("fraction" if classes else "loss")
    if not classes:
        ax.set_yscale("log")
    _finish(ax, f"After {steps} steps")


def _middle(rows: list[Record]) -> float:
    """The median c of one learning rate: it differs between seeds where eta was given."""
    return statistics.median(row["c"] for row in rows)


def _ranges(
    ax: Any, rates: list[list[Record]], key: str, colour: str, marker: str, label: str
) -> None:
    """The median over seeds against c, with a bar from the lowest to the highest value."""
    # a dead network has curvature 0, which a logarithmic axis has no place for
    known = [[row for row in rows if row[key] is not None and row[key] > 0] for rows in rates]
    points = [(_middle(rows), [row[key] for row in rows]) for rows in known if rows]
    if not points:
        return
    c = [at for at, _ in points]
    middle = [statistics.median(values) for _, values in points]
    below = [m - min(values) for m, (_, values) in zip(middle, points, strict=True)]
    above = [max(values) - m for m, (_, values) in zip(middle, points, strict=True)]
    style = {"color": colour, "marker": marker, "ms": 4, "lw": 1.1, "capsize": 2.5}
    ax.errorbar(c, middle, yerr=(below, above), label=label, **style)


def _finish(ax: Any, title: str) -> None:
    ax.set(xscale="log", xlabel=r"$c=\eta\lambda_0$")
    plain_log_ticks(ax.xaxis)
    ax.axvline(2, color=GREY, lw=1, ls=":")
    ax.set_title(title)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="best")
