"""The leave-one-out error of a kernel regression, from one factor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._shown import Shown, first
from catapult_ext.systems.factor import CholeskyFactor
from catapult_ext.systems.pivoted import PivotedCholesky


@dataclass(frozen=True, eq=False, repr=False)
class LeaveOneOut(Shown, saved=True):
    """Predictions of kernel ridge regression for each sample from all others.

    Example:
        >>> cx.leave_one_out(cx.cholesky(torch.eye(3)), torch.ones(3))
        leave-one-out of 3 samples: mean squared errors 1

    Attributes:
        predictions: (n,) or (n, K) as y, float64.
        errors: y - predictions.
        mean_squares: (K,) mean squared errors.
    """

    predictions: Tensor
    errors: Tensor
    mean_squares: Tensor

    def _line(self) -> str:
        shown = first(self.mean_squares.tolist())
        return f"leave-one-out of {len(self.errors)} samples: mean squared errors {shown}"

    def _table(self) -> list[dict[str, Any]]:
        return [{"mean squared error": value} for value in self.mean_squares.tolist()]


@no_autocast()
def leave_one_out(
    factor: CholeskyFactor | PivotedCholesky, y: Tensor, *, shift: float | None = None
) -> LeaveOneOut:
    """Leave-one-out errors of kernel ridge regression in closed form, from one factor.

    Args:
        factor: factor of K + shift I (:func:`catapult_ext.cholesky`), or a :class:`PivotedCholesky`
            F of K, which gives the errors of the kernel F F'.
        y: (n,) or (n, K) targets; for residual regression y - f0.  A column that is not finite
            gives NaN and does not affect the others.
        shift: > 0, for a :class:`PivotedCholesky` only; a :class:`CholeskyFactor` has its own.

    Returns:
        :class:`LeaveOneOut`: errors alpha_i / [(K + shift I)^-1]_ii, where alpha is
        (K + shift I)^-1 y.

    Raises:
        TypeError: factor of another type; wrong dtype of y.
        ValueError: wrong size of y; shift missing, <= 0, or given for a :class:`CholeskyFactor`.

    Cost:
        n^3/3 flops for the diagonal of the inverse; about n r (r + K) for a factor of rank r.

    Source:
        Allen 1974 (PRESS); Rasmussen, Williams 2006, "Gaussian Processes for Machine Learning",
        eq. 5.12.

    Example:
        >>> kernel = torch.eye(4) + torch.ones(4, 4)
        >>> left_out = cx.leave_one_out(cx.cholesky(kernel, shift=1.0), torch.ones(4))
        >>> print([round(value, 4) for value in left_out.predictions.tolist()])
        [0.6, 0.6, 0.6, 0.6]
    """
    where = "leave_one_out"
    v.numbers(where, shift=shift, optional=True)
    if not isinstance(factor, (CholeskyFactor, PivotedCholesky)):
        needs = "factor must be of cx.cholesky or cx.pivoted_cholesky"
        v.fail(where, needs, type(factor).__name__, TypeError)
    rows = factor.lower if isinstance(factor, CholeskyFactor) else factor.factor
    targets = v.array(where, "y", y)
    if targets.dtype not in v.FLOAT_DTYPES:
        v.fail(where, "y must have dtype float32 or float64", targets.dtype, TypeError)
    n = len(rows)
    fits = targets.dim() in (1, 2) and len(targets) == n and targets.numel() > 0
    v.require(fits, where, f"y must be ({n},) or ({n}, K)", tuple(targets.shape))
    there = targets.device == rows.device
    v.require(there, where, f"y must be on {rows.device}", targets.device)
    columns = targets.detach().reshape(n, -1).double()
    finite = torch.isfinite(columns).all(0)
    if isinstance(factor, CholeskyFactor):
        needs = "shift must be None: the factor has its own"
        v.require(shift is None, where, needs, shift)
        alpha, diagonal = factor.substitute(columns[:, finite]), factor.inverse_diagonal()
    else:
        ok = shift is not None and 0 < shift < math.inf
        v.require(ok, where, "shift must be > 0 and finite for a pivoted factor", shift)
        assert shift is not None
        alpha, diagonal = _low_rank(rows.double(), columns[:, finite], float(shift))
    errors = torch.full_like(columns, math.nan)
    errors[:, finite] = alpha / diagonal[:, None]
    shape = targets.shape
    return LeaveOneOut(
        (columns - errors).reshape(shape), errors.reshape(shape), errors.square().mean(0)
    )


def _low_rank(f: Tensor, y: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """(F F' + shift I)^-1 y and the diagonal of that inverse."""
    u, s, _ = torch.linalg.svd(f, full_matrices=False)
    share = s.square() / (s.square() + shift)
    alpha = (y - u @ (share[:, None] * (u.T @ y))) / shift
    return alpha, (1 - u.square() @ share) / shift
