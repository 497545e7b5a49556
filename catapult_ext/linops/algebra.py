"""Transposes, sums and multiples of operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext.linops.base import Dual, LinearOperator


class Identity(LinearOperator):
    """The identity on the space that the square operator ``like`` acts on."""

    name = "Identity"

    def __init__(self, like: LinearOperator) -> None:
        square = like.shape[0] == like.shape[1]
        v.require(square, f"{like.name}.shift", "the operator must be square", like.shape)
        self.shape, self.dtype, self.device = like.shape, like.dtype, like.device

    def _matmat(self, vectors: Tensor) -> Tensor:
        return vectors

    def dense(self) -> Tensor:
        """The identity matrix."""
        return torch.eye(self.shape[0], dtype=self.dtype, device=self.device)

    def diagonal(self) -> Tensor:
        """Ones (n,)."""
        return torch.ones(self.shape[0], dtype=self.dtype, device=self.device)

    def coarse(self) -> Identity:
        """Itself: it rounds nothing."""
        return self


class Transposed(LinearOperator):
    """A' of an operator that is not symmetric."""

    symmetric = False

    def __init__(self, operator: LinearOperator) -> None:
        self.operator, self.name = operator, f"{operator.name}.T"
        self.shape = (operator.shape[1], operator.shape[0])
        self.dtype, self.device = operator.dtype, operator.device
        self.columns = operator.columns

    def _matmat(self, vectors: Tensor) -> Tensor:
        return self.operator._rmatmat(vectors)

    def _rmatmat(self, vectors: Tensor) -> Tensor:
        return self.operator._matmat(vectors)

    @property
    def T(self) -> LinearOperator:
        """The operator itself."""
        return self.operator

    def dense(self) -> Tensor:
        """The transposed matrix."""
        return self.operator.dense().T.contiguous()


class Combination(LinearOperator):
    """c_1 A_1 + c_2 A_2 + ...; dense matrix and diagonal are combined from those of the terms."""

    name = "Combination"

    def __init__(self, terms: Sequence[tuple[float, LinearOperator]]) -> None:
        self.terms = tuple(terms)
        first = self.terms[0][1]
        self.shape, self.dtype, self.device = first.shape, first.dtype, first.device
        self.symmetric = all(a.symmetric for _, a in self.terms)

    def _sum(self, of: Callable[[LinearOperator], Tensor]) -> Tensor:
        (c, a), *rest = self.terms
        out = of(a) * c
        for c, a in rest:
            out.add_(of(a), alpha=c)
        return out

    def _matmat(self, vectors: Tensor) -> Tensor:
        return self._sum(lambda a: a._product(vectors))

    def _rmatmat(self, vectors: Tensor) -> Tensor:
        return self._sum(lambda a: a._rmatmat(vectors))

    def dense(self) -> Tensor:
        """The combined matrix."""
        return self._sum(lambda a: a.dense())

    def diagonal(self) -> Tensor:
        """The combined diagonal (n,)."""
        return self._sum(lambda a: a.diagonal())

    def dual(self) -> Dual | None:
        """That of a positive multiple of one operator; sums and shifts have none."""
        (c, a), *rest = self.terms
        dual = None if rest or c <= 0 else a.dual()
        if dual is None:
            return None
        root, lift, restrict = math.sqrt(c), dual.lift, dual.restrict
        return Dual(c * dual.operator, lambda u: root * lift(u), lambda t: root * restrict(t))

    def coarse(self) -> Combination:
        """The same combination with products in bfloat16, where every term offers them."""
        for _, a in self.terms:
            v.require(hasattr(a, "coarse"), "Combination.coarse", "terms must offer it", a.name)
        return Combination([(c, a.coarse()) for c, a in self.terms])  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return " + ".join(f"{c:g} * {a!r}" for c, a in self.terms)


def combine(terms: Sequence[tuple[float, LinearOperator]]) -> Combination:
    """The sum of c * A over ``terms``, nested sums laid flat.

    Raises:
        ValueError: shapes or devices that differ, a factor that is not finite.
        TypeError: dtypes that differ.
    """
    flat: list[tuple[float, LinearOperator]] = []
    for c, a in terms:
        v.require(math.isfinite(c), a.name, "a factor must be finite", c)
        inner = a.terms if isinstance(a, Combination) else ((1.0, a),)
        flat += [(float(c) * ci, ai) for ci, ai in inner]
    first = flat[0][1]
    for _, a in flat[1:]:
        where = f"{first.name} + {a.name}"
        v.require(a.shape == first.shape, where, f"shapes must agree ({first.shape})", a.shape)
        v.require(a.device == first.device, where, f"both must be on {first.device}", a.device)
        if a.dtype != first.dtype:
            v.fail(where, f"both must have dtype {first.dtype}", a.dtype, TypeError)
    return Combination(flat)
