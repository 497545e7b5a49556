"""Picture of the curvature of every block of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from catapult_ext.figures.style import BLUE, DARK, GREY, RED, new_figure, styled

_NAME = 28  # letters of a block's name that are shown


def by_layer_figure(rows: Sequence[dict[str, Any]], quantity: str) -> Any:
    """A matplotlib Figure: top eigenvalues with their errors, and the trace, a line for each block.

    Args:
        rows: as ``ByLayer`` keeps them, in the order of the model.
        quantity: whose blocks, for the title.

    Raises:
        RuntimeError: matplotlib is missing; the message names the extra.
    """
    with styled():
        figure = new_figure(6.4, 1.3 + 0.21 * len(rows))
        ax = figure.add_subplot()
        at = range(len(rows))
        ax.hlines(at, 0, 1, color=GREY, lw=0.4, alpha=0.5, transform=ax.get_yaxis_transform())
        deepest = max((len(row["values"]) for row in rows), default=0)
        for rank in range(deepest):
            held = [(i, row) for i, row in enumerate(rows) if len(row["values"]) > rank]
            x = [row["values"][rank] for _, row in held]
            e = [row["errors"][rank] for _, row in held]
            style = {
                "color": BLUE if rank == 0 else GREY,
                "ecolor": RED,
                "ms": 4 if rank == 0 else 3,
            }
            label = "largest eigenvalue" if rank == 0 else "next" if rank == 1 else None
            ax.errorbar(x, [i for i, _ in held], xerr=e, fmt="o", capsize=2, label=label, **style)
        trace = [row["trace"] for row in rows]
        ax.plot(trace, at, marker="|", ms=9, mew=1.6, ls="", color=DARK, label="trace")
        if all(x > 0 for row in rows for x in (*row["values"], row["trace"])):
            ax.set_xscale("log")
        ax.set_yticks(at, [_short(row["block"]) for row in rows], fontsize=7.5)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set(xlabel=f"of the block of the {quantity}", title="Curvature by layer")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= _NAME else "..." + name[3 - _NAME :]
