"""A shifted system seen as one thing, its right-hand sides, and the bounds of its errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext.eig.certify import inexact
from catapult_ext.eig.operand import Operand, as_operand

_PIECE = 1 << 22  # entries of an explicit matrix that are held in float64 at a time
_UNIT = 2.0**-53  # unit roundoff of float64


@dataclass(frozen=True, eq=False)
class System:
    """The matrix A + shift I of a symmetric operator A, with a lower bound on its eigenvalues.

    Attributes:
        a: the operator.
        source: the object that the operator was made from.
        shift: number added to the diagonal.
        lower: lower bound on the eigenvalues of A + shift I; None if unknown.
        bound: origin of ``lower``, in the words of :class:`SolveResult`.
        where: name of the public function, for errors.
    """

    a: Operand
    source: Any
    shift: float
    lower: float | None
    bound: str
    where: str

    @classmethod
    def of(cls, A: Any, shift: float, lower: float | None, where: str) -> System:
        """The system of the arguments of a public function.

        Raises:
            TypeError, ValueError: A is no symmetric operator, a shift that is no finite number, a
                ``lower`` below which A + shift I is not positive definite.
        """
        v.numbers(where, shift=shift)
        v.numbers(where, lower=lower, optional=True)
        shift = float(shift)
        v.finite(math.isfinite(shift), where, "shift", shift)
        a = as_operand(A, where)
        known, bound = lower, "given"
        if lower is None:
            known, bound = getattr(A, "lower_bound", None), "operator"
        if known is None:
            return cls(a, A, shift, None, "none", where)
        known = float(known) + shift
        v.require(lower is None or known > 0, where, "lower + shift must be > 0 and finite", known)
        finite = math.isfinite(known)
        v.require(finite, where, "lower must be finite", known)
        return cls(a, A, shift, known if known > 0 else None, bound if known > 0 else "none", where)

    def product(self, x: Tensor) -> Tensor:
        """(A + shift I) x for (n, k) in float64, by a product in the dtype of A."""
        out = self.a.product(x.to(self.a.dtype)).double()
        v.finite(bool(torch.isfinite(out).all()), self.where, "products with A")
        return out.add_(x, alpha=self.shift)

    def residual(self, x: Tensor, b: Tensor, size: float, noise: float) -> tuple[Tensor, Tensor]:
        """B - (A + shift I) x for (n, K) in float64, and bounds (K,) of what rounding put into it.

        Args:
            x: (n, K) float64.
            b: (n, K) float64.
            size: the norm of A as far as it is known, for operators known by their products.
            noise: the largest |<u, A v> - <A u, v>| of unit vectors that was met.
        """
        exact = getattr(self.source, "exact_product", None)
        if self.a.explicit is not None:
            ax, moved = _exact_product(self.a.explicit, x)
        elif exact is not None:
            ax, total = exact(x)
            moved = product_rounding(self.a.n) * total.norm(dim=0)
        else:
            ax = self.a.product(x.to(self.a.dtype)).double()
            # <u, w> of a random w shows |w| / sqrt(n)
            seen = 2 * math.sqrt(self.a.n) * noise
            each = max(inexact(self.a.n, self.a.eps, size, 0.0, self.a.grain), seen)
            moved = each * x.norm(dim=0)
        r = b - ax - self.shift * x
        terms = b.norm(dim=0) + ax.norm(dim=0) + abs(self.shift) * x.norm(dim=0)
        return r, moved + 4 * _UNIT * terms

    def right_hand_sides(self, b: Any) -> RightHandSides:
        """The columns of ``b``, checked."""
        given = v.array(self.where, "b", b)
        n = self.a.n
        if given.dtype not in v.FLOAT_DTYPES:
            v.fail(self.where, "b must have dtype float32 or float64", given.dtype, TypeError)
        fits = given.dim() in (1, 2) and given.shape[0] == n and given.numel() > 0
        v.require(fits, self.where, f"b must be ({n},) or ({n}, K)", tuple(given.shape))
        there = given.device == self.a.device
        v.require(there, self.where, f"b must be on {self.a.device}", given.device)
        columns = given.detach().reshape(n, -1).double()
        finite = torch.isfinite(columns).all(0)
        size = columns[:, finite].abs().amax(0)
        size = torch.where(size > 0, size, torch.ones_like(size))
        # by powers of two, so that no squared norm leaves the range and no bit is lost
        scale = 2.0 ** torch.log2(size).round()
        return RightHandSides(columns[:, finite] / scale, scale, finite, given.dim() == 1)


@dataclass(frozen=True, eq=False)
class RightHandSides:
    """The finite columns of b (n, K') in float64, each divided by its ``scale``."""

    columns: Tensor
    scale: Tensor
    finite: Tensor  # (K,)
    flat: bool  # b was (n,)

    def spread(self, values: Tensor) -> Tensor:
        """Values of the finite columns in the places of all; NaN in the others."""
        out = values.new_full((*values.shape[:-1], len(self.finite)), math.nan)
        out[..., self.finite] = values
        return out


def _exact_product(matrix: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """A x in float64 for an explicit matrix (n, n), and bounds (K,) of its rounding."""
    n = len(matrix)
    out, total = torch.empty_like(x), torch.empty_like(x)
    for rows in torch.arange(n, device="cpu").split(max(1, _PIECE // n)):
        piece = slice(int(rows[0]), int(rows[-1]) + 1)
        some = matrix[piece].double()
        out[piece] = some @ x
        total[piece] = some.abs() @ x.abs()
    return out, product_rounding(n) * total.norm(dim=0)


def product_rounding(terms: int) -> float:
    """Rounding bound of a sum of ``terms`` products in float64, over the sum of their magnitudes.

    In any order of summation (Higham 2002, "Accuracy and Stability of Numerical Algorithms", 3.1).
    """
    return (terms + 1) * _UNIT / (1 - (terms + 1) * _UNIT)


def bounds(system: System, norms: Tensor, moved: Tensor, rounded: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds (K,) of the errors in the 2-norm and in the norm of A + shift I.

    Args:
        system: whose ``lower`` they rest on.
        norms: (K,) of the residuals.
        moved: (K,) what rounding may have put into the residuals.
        rounded: (K,) by how much x moved when it was rounded to its dtype.
    """
    most = (norms + moved) * (1 + 1e-12)
    if system.lower is None:
        return torch.full_like(most, math.inf), torch.full_like(most, math.inf)
    return most / system.lower + rounded, most / math.sqrt(system.lower)


Precondition = Callable[[Tensor], Tensor]  # M^-1 r for (n, k) float64
