"""Large matrix products some rows at a time: Ctrl-C and progress wait for one piece at most."""

from __future__ import annotations

from torch import Tensor

_PIECE_FLOPS = 4e9  # of one call of BLAS, a fraction of a second of one core
_LEAST_ROWS = 64


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Total += left @ right, in place, for (n, q) and (q, m)."""
    per_row = 2.0 * right.shape[0] * right.shape[1]
    rows = max(_LEAST_ROWS, int(_PIECE_FLOPS / max(per_row, 1.0)))
    for at in range(0, len(left), rows):
        total[at : at + rows].addmm_(left[at : at + rows], right)
    return total
