"""Blocks of a vector of parameters that differ from the right ones by more than rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from catapult_ext.linops.model.fixed_model import FixedModel

# two products with a vector, the one in question and the right one, in blocks at some positions
Errors = Callable[[Tensor, Sequence[int]], tuple[Sequence[Tensor], Sequence[Tensor]]]

EXACT = 1e2  # rounding units by which two ways to one block may differ
TERMS = 4.0  # rounding units of the largest block that any block may be off by
_PIECE = 1 << 20  # entries of a block that are in float64 at a time


def differing(
    snapshot: FixedModel,
    errors: Errors,
    draw: Callable[[int], Tensor],
    groups: Sequence[Sequence[int]],
) -> list[int]:
    """Positions of the parameters whose blocks differ by more than rounding.

    Args:
        snapshot: the frozen model.
        errors: see :data:`Errors`.
        draw: a random vector for a seed: one, or two where rounding has to be told from errors.
        groups: positions whose blocks are in memory together.
    """
    first = draw(0)
    gaps: dict[int, float] = {}
    sizes: dict[int, float] = {}
    for group in groups:
        for i, found, right in zip(group, *errors(first, group), strict=True):
            gaps[i], sizes[i] = _gap(found, right), _norm(right)
    exact = EXACT * torch.finfo(snapshot.dtype).eps
    # what a stored value was rounded by counts in both ways, but not alike
    floor = TERMS * snapshot.observed.eps * max(sizes.values())
    doubtful = {i for i in gaps if not (gaps[i] <= exact * sizes[i] or gaps[i] <= floor)}
    wrong: list[int] = []
    second = draw(1) if doubtful else first
    for group in groups:
        if doubtful.isdisjoint(group):
            continue
        three = []
        for u in (first, second, first + second):
            three.append([f - r for f, r in zip(*errors(u, group), strict=True)])
        wrong += [
            i for i, *e in zip(group, *three, strict=True) if i in doubtful and not _is_rounding(*e)
        ]
    return wrong


def _norm(block: Tensor) -> float:
    """Euclidean norm in float64, without a float64 copy of a large block."""
    return math.hypot(*(p.double().norm().item() for p in _pieces(block)))


def _pieces(block: Tensor) -> Sequence[Tensor]:
    """A block in pieces of some rows, whatever its layout: flattened, it might need a copy."""
    row = max(1, block[:1].numel()) if block.dim() else 1
    return block.split(max(1, _PIECE // row)) if block.dim() else [block]


def _gap(found: Tensor, right: Tensor) -> float:
    """Norm of the difference, by the same rule."""
    pieces = zip(_pieces(found), _pieces(right), strict=True)
    return math.hypot(*((f.double() - r.double()).norm().item() for f, r in pieces))


def _is_rounding(one: Tensor, two: Tensor, both: Tensor) -> bool:
    """Whether differences at u, v and u + v are not additive, as those of wrong products are."""
    largest = max(_norm(e) for e in (one, two, both))
    pieces = zip(*(e.reshape(-1).split(_PIECE) for e in (one, two, both)), strict=True)
    defects = [(c.double() - a.double() - b.double()).norm().item() for a, b, c in pieces]
    defect = math.hypot(*defects)
    return bool(4 * defect >= largest)
