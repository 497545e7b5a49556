"""Picture of the top eigenvalues along checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from catapult_ext.figures.style import BLUE, GREY, RED, new_figure, styled


def track_figure(rows: Sequence[dict[str, Any]], steps: Sequence[int], quantity: str) -> Any:
    """A matplotlib Figure of eigenvalues with their errors by checkpoint.

    Args:
        rows: as ``Track`` keeps them.
        steps: their places on the axis.
        quantity: whose eigenvalues.

    Raises:
        RuntimeError: matplotlib is missing; the message names the extra.
    """
    from matplotlib.ticker import MaxNLocator

    with styled():
        figure = new_figure(6.4, 3.2)
        ax = figure.add_subplot()
        for rank in range(max((len(row["values"]) for row in rows), default=0)):
            y = [row["values"][rank] for row in rows]
            e = [row["errors"][rank] for row in rows]
            colour = BLUE if rank == 0 else GREY
            ax.errorbar(steps, y, yerr=e, color=colour, ecolor=RED, marker=".", lw=1, capsize=2)
        if rows and min(min(row["values"]) for row in rows) > 0:
            values = [value for row in rows for value in row["values"]]
            if max(values) > 20 * min(values):
                ax.set_yscale("log")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel="checkpoint", ylabel="eigenvalue", title=f"Top of the {quantity}")
    return figure
