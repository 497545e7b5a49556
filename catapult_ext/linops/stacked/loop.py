"""Products of R operators one after the other: right for any model, and as slow as a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._progress import report_share
from catapult_ext.linops.base import LinearOperator
from catapult_ext.linops.stacked.base import StackedDual, StackedOperator, StackedProducts


class Loop(StackedProducts):
    """Operators of single models, multiplied one by one.

    Args:
        operators: of the replicas; None stands for one with non-finite values.
        why: what speaks against products of all at once.
    """

    def __init__(self, operators: Sequence[LinearOperator | None], why: str) -> None:
        self._operators, self._why = list(operators), why
        known = next(a for a in self._operators if a is not None)
        self._known = known
        self.replicas, self.n = len(self._operators), known.shape[0]
        self.dtype, self.device = known.dtype, known.device
        self.parameter_names = known.parameter_names
        good = [a for a in self._operators if a is not None]
        self.rounding_unit = max(a.rounding_unit for a in good)
        self.skew_is_rounding = all(a.skew_is_rounding for a in good)
        self.plan = f"{self.replicas} replicas one by one ({why})"

    def _each(self, of: Callable[[LinearOperator, int], Tensor], *shape: int) -> Tensor:
        """Results of all replicas, (R, *shape); NaN for one without an operator."""
        out = torch.empty(self.replicas, *shape, dtype=self.dtype, device=self.device)
        for r, operator in enumerate(self._operators):
            out[r] = torch.nan if operator is None else of(operator, r)
        return out

    def matmat(self, vectors: Tensor) -> Tensor:
        """Products of each operator with its own block (R, n, K)."""
        return self._each(lambda a, r: a._product(vectors[r]), *vectors.shape[1:])

    def select(self, index: Tensor) -> StackedProducts:
        """The operators of some replicas, which are not built again."""
        chosen = [self._operators[r] for r in index.tolist()]
        if any(a is not None for a in chosen):
            return Loop(chosen, self._why)
        return Nothing(self, len(chosen))

    def dense(self) -> Tensor:
        """The matrices, each by the shortest way of its operator."""

        def matrix(operator: LinearOperator, r: int) -> Tensor:
            report_share(r, self.replicas)
            return operator.dense()

        return self._each(matrix, self.n, self.n)

    def diagonal(self) -> Tensor:
        """The diagonals, each by the shortest way of its operator."""
        return self._each(lambda a, _: a.diagonal(), self.n)

    def dual(self) -> StackedDual | None:
        """The duals of the operators, one by one; None where one has none."""
        duals = [None if a is None else a.dual() for a in self._operators]
        given = [d for a, d in zip(self._operators, duals, strict=True) if a is not None]
        if any(d is None for d in given):
            return None
        small = Loop([None if d is None else d.operator for d in duals], self._why)

        def mapped(of: Callable[[Any, Tensor], Tensor], n: int) -> Callable[[Tensor], Tensor]:
            def apply(vectors: Tensor) -> Tensor:
                out = vectors.new_full((len(duals), n, vectors.shape[2]), torch.nan)
                for r, d in enumerate(duals):
                    if d is not None:
                        out[r] = of(d, vectors[r])
                return out

            return apply

        return StackedDual(
            StackedOperator.of(small, f"StackedDual{self._known.name}"),
            mapped(lambda d, u: d.lift(u), self.n),
            mapped(lambda d, t: d.restrict(t), small.n),
        )


class Nothing(StackedProducts):
    """Replicas whose values are all non-finite: every product is NaN."""

    def __init__(self, like: StackedProducts, replicas: int) -> None:
        self.replicas, self.n = replicas, like.n
        self.dtype, self.device = like.dtype, like.device
        self.parameter_names, self.rounding_unit = like.parameter_names, like.rounding_unit
        self.plan = f"{replicas} replicas without a finite product"

    def matmat(self, vectors: Tensor) -> Tensor:
        """NaN (R, n, K)."""
        return torch.full_like(vectors, torch.nan, memory_format=torch.contiguous_format)

    def select(self, index: Tensor) -> StackedProducts:
        """NaN for ``len(index)`` replicas."""
        return Nothing(self, len(index))


def one_by_one(
    make: Callable[[int], LinearOperator], replicas: Sequence[Any], why: object
) -> StackedProducts:
    """The operators ``make(r)`` of all replicas, multiplied one by one.

    Raises:
        NotFinite: every replica has non-finite values, so that no size is known.
    """
    operators: list[LinearOperator | None] = []
    error: v.NotFinite | None = None
    for r in range(len(replicas)):
        try:
            operators.append(make(r))
        except v.NotFinite as found:
            error = error or found
            operators.append(None)
    if error is not None and all(a is None for a in operators):
        raise error
    return Loop(operators, str(why))
