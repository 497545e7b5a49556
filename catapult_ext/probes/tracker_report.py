"""Sentences in which a tracker reports its probes and their cost."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from catapult_ext._shown import number
from catapult_ext.probes.overhead import Overhead
from catapult_ext.probes.record import Row


def last_probe(quantity: str, probes: Sequence[Row], made: int, count: int) -> str:
    """How many probes in how many steps, and the last one."""
    if not probes:
        return f"CurvatureTracker of the {quantity}: no probe yet, {count} steps"
    row = probes[-1]
    pairs = zip(row["values"], row["errors"], strict=True)
    last = ", ".join(f"{number(value)} +- {error:.1g}" for value, error in pairs)
    counts = f"{made} probes in {count} steps"
    return f"CurvatureTracker of the {quantity}: {counts}, last at {row['step']}: {last}"


def sentence(
    what: str, probes: Sequence[Row], made: int, missed: int, every: int, overhead: Overhead
) -> str:
    """One sentence on the probes made and their cost.

    Args:
        what: the quantity, in how many steps, on what.
        probes: rows that were kept.
        made: all probes.
        missed: probes that missed tol.
        every: steps asked for between probes.
        overhead: overhead of the probes.
    """
    products = sorted(row["products"] for row in probes) or [0]
    allowed = "" if overhead.budget is None else f" (budget {overhead.budget:.0%})"
    steps = [row["step"] for row in probes]
    gaps = sorted(b - a for a, b in itertools.pairwise(steps)) or [every]
    return (
        f"{made} probes of {what} in full precision, every {gaps[len(gaps) // 2]} steps "
        f"(median); {products[len(products) // 2]} products a probe (median, at most "
        f"{products[-1]}); {missed} missed tol; overhead {overhead.share:.1%} of "
        f"training time{allowed}"
    )
