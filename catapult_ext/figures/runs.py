"""Pictures of runs of the toy model, and of a learning-rate window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from catapult_ext.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    load_matplotlib,
    new_figure,
    plain_log_ticks,
    styled,
)

MOST_CURVES = 8
STYLES = {"lazy": "-", "flat": "-.", "catapult": "--", "divergent": ":"}


def trajectory_figure(
    runs: Sequence[dict[str, Any]], loss_steps: list[int], curvature_steps: list[int]
) -> Any:
    """A matplotlib Figure of loss and eta * lambda against the step, at most eight runs of all.

    Args:
        runs: ``c``, ``phase``, ``loss`` at ``loss_steps``, ``eta_lambda`` at ``curvature_steps``.
        loss_steps: steps of the losses.
        curvature_steps: steps of the curvatures.

    Raises:
        RuntimeError: matplotlib is missing; the message names the extra.
    """
    drawn = runs[:: max(1, -(-len(runs) // MOST_CURVES))]
    with styled():
        figure = new_figure(8.5, 3.4)
        left, right = figure.subplots(1, 2)
        colours = load_matplotlib().colormaps["viridis"]
        for i, run in enumerate(drawn):
            style = {"color": colours(0.9 * i / max(len(drawn) - 1, 1)), "lw": 1.2}
            style |= {"ls": STYLES[run["phase"]], "label": f"c = {run['c']:.3g}, {run['phase']}"}
            for ax, steps, values in (
                (left, loss_steps, run["loss"]),
                (right, curvature_steps, run["eta_lambda"]),
            ):
                kept = [(t, y) for t, y in zip(steps, values, strict=True) if math.isfinite(y)]
                ax.plot([t for t, _ in kept], [y for _, y in kept], **style)
        left.set(yscale="log", xlabel="step", ylabel="loss", title="Loss")
        right.axhline(2, color=BLACK, lw=0.8)
        right.set(xlabel="step", ylabel=r"$\eta\,\lambda$", title="Curvature")
        left.legend(loc="best")
    return figure


def window_figure(
    marks: dict[str, float], expected: tuple[float, float] | None, trials: list[tuple[float, bool]]
) -> Any:
    """A matplotlib Figure of learning rates on one logarithmic axis.

    Args:
        marks: rates by name.
        expected: range of the largest rate that trains; None if unknown.
        trials: (rate, whether it trained).

    Raises:
        RuntimeError: matplotlib is missing; the message names the extra.
    """
    colours = (BLUE, ORANGE, BLACK, GREY)
    with styled():
        figure = new_figure(7.0, 2.2)
        ax = figure.add_subplot()
        if expected is not None:
            label = "largest rate expected here"
            ax.axvspan(*expected, color=ORANGE, alpha=0.25, lw=0, label=label)
        for (name, rate), colour in zip(marks.items(), colours, strict=False):
            ax.axvline(rate, color=colour, lw=1.4, label=f"{name} = {rate:.3g}")
        for trained, colour, marker, label in (
            (True, GREEN, "o", "trained"),
            (False, RED, "x", "did not train"),
        ):
            rates = [rate for rate, ok in trials if ok == trained]
            if rates:
                ax.plot(rates, [0.5] * len(rates), marker, color=colour, ls="", label=label)
        ax.set(xscale="log", xlabel="learning rate", ylim=(0, 1), yticks=[])
        plain_log_ticks(ax.xaxis)
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
