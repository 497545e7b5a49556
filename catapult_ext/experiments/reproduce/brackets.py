"""Between which rates of a grid each seed stops being stable, and what such grids can decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
_AGREE = 0.75  # share of the seeds that carries a statement about "the" net


@dataclass(frozen=True)
class Bracket:
    """One seed on a grid of rates c: its boundary lies from ``stable`` to ``lost``.

    Attributes:
        seed: seed of the weights.
        stable: the largest c such that this rate and all smaller ones are stable; 0 for none.
        lost: the next rate, which diverged or left a dead net; None where all rates are stable.
        dead: whether the run at ``lost`` ended dead, not divergent.
    """

    seed: int
    stable: float
    lost: float | None
    dead: bool = False

    def __str__(self) -> str:
        if self.lost is None:
            return f"above {self.stable:g}"
        end = f"{self.lost:g}" + (" (dead)" if self.dead else "")
        return f"below {end}" if self.stable == 0 else f"{self.stable:g} to {end}"

    def inside(self, low: float, high: float) -> bool | None:
        """Whether the boundary lies from ``low`` to ``high``; None where the grid cannot tell."""
        if self.stable >= low and self.lost is not None and self.lost <= high:
            return True
        beyond = self.stable > high or (self.lost is not None and self.lost < low)
        return False if beyond else None


def brackets(
    records: Sequence[Record],
    stable: Callable[[Record], bool],
    dead: Callable[[Record], bool] = lambda _: False,
) -> list[Bracket]:
    """The bracket of every seed, in the order of the seeds; ``dead`` says how a lost run ended."""
    found = []
    for seed in sorted({r["seed"] for r in records}):
        held = sorted((r for r in records if r["seed"] == seed), key=lambda r: r["c"])
        kept, lost = 0.0, None
        for record in held:
            if not stable(record):
                lost = record
                break
            kept = record["c"]
        if lost is None:
            found.append(Bracket(seed, kept, None))
        else:
            found.append(Bracket(seed, kept, lost["c"], dead(lost)))
    return found


def listed(found: Sequence[Bracket]) -> str:
    """The brackets of all seeds as text."""
    return ", ".join(map(str, found))


def within(found: Sequence[Bracket], low: float, high: float, seeds: int = 2) -> tuple[Any, str]:
    """Whether three quarters of the seeds have their boundary from ``low`` to ``high``.

    Args:
        found: one of each seed.
        low: least boundary.
        high: largest boundary.
        seeds: fewer decide nothing.

    Returns:
        True, False, or None where seeds are too few or rates too far apart; and the reason.
    """
    if len(found) < seeds:
        return None, f"it takes {seeds} seeds"
    inside = [b.inside(low, high) for b in found]
    need = _AGREE * len(found)
    if inside.count(True) >= need:
        return True, ""
    if len(found) - inside.count(False) < need:
        return False, "the boundary is fractal and moves with width and data"
    open_ = [b for b, known in zip(found, inside, strict=True) if known is None]
    if all(b.lost is None for b in open_):
        return None, "the largest rate of the grid was stable"
    return None, f"the rates of the grid lie too far apart for {low:g} to {high:g}"
