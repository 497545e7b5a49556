"""Matrix products of a pass: which are large enough that a faster number format pays for itself."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

aten: Any = torch.ops.aten
# positions of the two factors among the arguments
FACTORS = {
    aten.mm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.addmm_.default: (1, 2),
    aten.bmm.default: (0, 1),
    aten.baddbmm.default: (1, 2),
}
FILTERED = {aten.convolution.default: 1, aten.mkldnn_convolution.default: 1}  # of the filters
# rounding takes the gain where one side has 64 numbers, for each of which the other is rounded
LEAST = 128


def are_large(*sides: int) -> bool:
    """Whether every side of a product has at least ``LEAST`` numbers."""
    return min(sides) >= LEAST


def is_large(a: Tensor, b: Tensor) -> bool:
    """Whether ``a @ b`` is."""
    return are_large(*a.shape[-2:], b.shape[-1])


def multiply_adds(func: Any, args: Any, out: Any) -> tuple[float, float]:
    """Multiply-adds of one operation of a pass, and those of large products of two matrices."""
    at = FACTORS.get(func)
    if at is not None:
        a, b = args[at[0]], args[at[1]]
        count = float(a.numel() * b.shape[-1])
        return count, count if a.ndim == 2 and is_large(a, b) else 0.0
    at_filters = FILTERED.get(func)
    if at_filters is not None:
        return float(out.numel() * prod(args[at_filters].shape[1:])), 0.0
    return 0.0, 0.0
