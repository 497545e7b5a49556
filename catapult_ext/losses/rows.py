"""Outputs of any shape as rows of classes, one row for each term of a cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext.losses.factors import OutputFactor

_WAY_OUT = (
    "pass forward=lambda model, x: ... that returns one row a term, (N*T, classes), and flat labels"
)


@dataclass(frozen=True)
class ClassRows:
    """Class dimension of outputs (N, d1, ..., dk); a row is one position in all other dimensions.

    Attributes:
        shape: shape of the outputs.
        dim: dimension of the classes.
    """

    shape: tuple[int, ...]
    dim: int

    @classmethod
    def of(cls, f: Tensor, y: Tensor, where: str) -> ClassRows:
        """The reading that fits outputs ``f`` and targets ``y``.

        Torch's convention is tried first: classes on dimension 1, labels (N, d2, ..., dk) or
        probabilities in the shape of the outputs.  Labels in the shape of all dimensions but the
        last, (N, T) for outputs (N, T, V), are read as classes last.

        Raises:
            ValueError: no reading fits, or both do.
        """
        shape = tuple(f.shape)
        if len(shape) <= 2:
            return cls(shape, 1)
        if y.is_floating_point():
            return cls._of_probabilities(shape, y, where)
        first = tuple(y.shape) == shape[:1] + shape[2:]
        last = tuple(y.shape) == shape[:-1]
        v.require(
            not (first and last),
            where,
            f"labels must tell which dimension of the outputs {shape} holds the classes: the "
            f"second (torch's) and the last one fit; {_WAY_OUT}",
            tuple(y.shape),
        )
        v.require(
            first or last,
            where,
            f"labels must have shape {shape[:1] + shape[2:]} (classes on dimension 1, as torch) or "
            f"{shape[:-1]} (classes last) for outputs {shape}; or {_WAY_OUT}",
            tuple(y.shape),
        )
        return cls(shape, 1 if first else len(shape) - 1)

    @classmethod
    def _of_probabilities(cls, shape: tuple[int, ...], y: Tensor, where: str) -> ClassRows:
        """Dimension 1, as torch; refused where these look like classes last."""
        if tuple(y.shape) == shape:
            sums = [y.sum(d) - 1 for d in (1, -1)]
            first, last = (bool((s.abs() < 1e-3).all()) for s in sums)
            v.require(
                first or not last,
                where,
                "probabilities must sum to one over dimension 1, where torch has the classes; "
                f"{_WAY_OUT}",
                "sums of one over the last dimension",
            )
        return cls(shape, 1)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.shape[self.dim] if len(self.shape) > 1 else 1

    def rows(self, f: Tensor) -> Tensor:
        """Tensors in the shape of the outputs as (rows, classes)."""
        if len(self.shape) == 2:
            return f
        return f.unsqueeze(1) if len(self.shape) < 2 else f.movedim(self.dim, -1).flatten(0, -2)

    def columns(self, u: Tensor) -> Tensor:
        """(N, O, K) as (rows, classes, K)."""
        if len(self.shape) <= 2:
            return u
        shaped = u.reshape(*self.shape, u.shape[-1])
        return shaped.movedim(self.dim, -2).flatten(0, -3)

    def back(self, u: Tensor) -> Tensor:
        """(rows, classes, K) as (N, O, K)."""
        if len(self.shape) <= 2:
            return u
        others = [size for d, size in enumerate(self.shape) if d != self.dim]
        shaped = u.reshape(*others, self.classes, u.shape[-1]).movedim(-2, self.dim)
        return shaped.reshape(self.shape[0], -1, u.shape[-1])

    def factor(self, inner: OutputFactor) -> OutputFactor:
        """A factor over rows as one over samples."""
        return inner if len(self.shape) <= 2 else RowsFactor(self, inner)


class RowsFactor(OutputFactor):
    """S of the rows of outputs (N, d1, ..., dk), for vectors (N, O, K) in the outputs' order."""

    def __init__(self, rows: ClassRows, inner: OutputFactor) -> None:
        self.rows, self.inner = rows, inner

    def apply(self, u: Tensor) -> Tensor:
        """S u for u (N, O, K)."""
        return self.rows.back(self.inner.apply(self.rows.columns(u)))

    def apply_t(self, u: Tensor) -> Tensor:
        """S' u for u (N, O, K)."""
        return self.rows.back(self.inner.apply_t(self.rows.columns(u)))

    def hessian(self, u: Tensor) -> Tensor:
        """H_L u for u (N, O, K)."""
        return self.rows.back(self.inner.hessian(self.rows.columns(u)))
