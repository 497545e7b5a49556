"""NTK and Gauss-Newton products of R models from their Jacobians."""

from __future__ import annotations

import torch
from torch import Tensor

from catapult_ext.linops.stacked.base import StackedDual, StackedOperator, StackedProducts
from catapult_ext.linops.stacked.linearization import StackedLinearization
from catapult_ext.linops.stacked.loss import StackedLoss


class _JacobianProducts(StackedProducts):
    """Products made of those of one linearization, in its output or parameter space."""

    def _use(self, linearization: StackedLinearization, n: int) -> None:
        self._j, self.n = linearization, n
        f = linearization.outputs
        self.replicas, self.dtype, self.device = len(f), f.dtype, f.device
        self.parameter_names = linearization.names
        self.rounding_unit = linearization.rounding_unit
        self.columns, self.at_once = linearization.columns, linearization.at_once
        self.plan = (
            f"{len(f)} replicas at once, engine {linearization.engine} ({linearization.why})"
        )

    @property
    def _exact(self) -> bool:
        """Whether products are good to the dtype's own rounding."""
        return self.rounding_unit <= torch.finfo(self.dtype).eps


class NTKProducts(_JacobianProducts):
    """J J'."""

    def __init__(self, linearization: StackedLinearization) -> None:
        self._use(linearization, linearization.rows)

    def matmat(self, vectors: Tensor) -> Tensor:
        """J J' u for u (R, N*O, K)."""
        return self._j.ntk(vectors)

    def select(self, index: Tensor) -> NTKProducts:
        """Products of some replicas."""
        return NTKProducts(self._j.select(index))

    def written_out(self) -> Tensor | None:
        """The kernels where solves with them are cheaper than products."""
        return self._j.written_out(None) if self._exact else None

    def dense(self) -> Tensor | None:
        """The kernels from layer factors, where the engine knows them."""
        return self._j.kernel("all")

    def diagonal(self) -> Tensor | None:
        """Their diagonals from layer factors, where the engine knows them."""
        return self._j.kernel("diagonal")


class GGNProducts(_JacobianProducts):
    """J' H_L J."""

    def __init__(self, linearization: StackedLinearization, loss: StackedLoss) -> None:
        self._use(linearization, linearization.n_params)
        self._loss = loss

    def matmat(self, vectors: Tensor) -> Tensor:
        """J' H_L J t for t (R, P, K)."""
        return self._j.vjp(self._loss.hessian(self._j.jvp(vectors)))

    def select(self, index: Tensor) -> GGNProducts:
        """Products of some replicas."""
        return GGNProducts(self._j.select(index), self._loss.select(index))

    def dual(self) -> StackedDual | None:
        """S' Theta S, (R, N*O, N*O), where that is the smaller space."""
        if self._j.rows >= self.n or not self._loss.has_factor:
            return None
        small = DualGGNProducts(self._j, self._loss)
        operator = StackedOperator.of(small, "StackedDualGGN")
        return StackedDual(operator, small.lift, small.restrict)


class DualGGNProducts(_JacobianProducts):
    """S' Theta S: the non-zero spectrum of the Gauss-Newton matrix, S S' = H_L."""

    def __init__(self, linearization: StackedLinearization, loss: StackedLoss) -> None:
        self._use(linearization, linearization.rows)
        self._loss = loss

    def matmat(self, vectors: Tensor) -> Tensor:
        """S' J J' S u for u (R, N*O, K)."""
        return self._loss.apply_t(self._j.ntk(self._loss.apply(vectors)))

    def select(self, index: Tensor) -> DualGGNProducts:
        """Products of some replicas."""
        return DualGGNProducts(self._j.select(index), self._loss.select(index))

    def written_out(self) -> Tensor | None:
        """The matrices where solves with them are cheaper than products."""
        r, n, o = self._j.outputs.shape
        if not self._exact:
            return None
        eye = torch.eye(o, dtype=self.dtype, device=self.device).expand(r, n, o, o)
        return self._j.written_out(self._loss.apply_t(eye.reshape(r, n * o, o)).view(r, n, o, o))

    def lift(self, vectors: Tensor) -> Tensor:
        """J' S u: (R, N*O, K) to (R, P, K)."""
        return self._j.vjp(self._loss.apply(vectors))

    def restrict(self, vectors: Tensor) -> Tensor:
        """S' J t: (R, P, K) to (R, N*O, K)."""
        return self._loss.apply_t(self._j.jvp(vectors))


class WithoutBad(StackedProducts):
    """Products that are NaN for replicas whose outputs are not finite.

    ``relu'(NaN)`` is zero, so that products alone would hide what went wrong.
    """

    def __init__(self, products: StackedProducts, bad: Tensor) -> None:
        self._products, self._bad = products, bad
        for name in ("replicas", "n", "dtype", "device", "plan", "parameter_names", "columns"):
            setattr(self, name, getattr(products, name))
        self.rounding_unit, self.at_once = products.rounding_unit, products.at_once
        self.skew_is_rounding = products.skew_is_rounding

    def _spoil(self, out: Tensor) -> Tensor:
        return torch.where(self._bad.view(-1, *[1] * (out.dim() - 1)), torch.nan, out)

    def matmat(self, vectors: Tensor) -> Tensor:
        """Products with (R, n, K)."""
        return self._spoil(self._products.matmat(vectors))

    def select(self, index: Tensor) -> StackedProducts:
        """Products of some replicas."""
        kept = self._bad[index.to(self._bad.device)]
        some = self._products.select(index)
        return WithoutBad(some, kept) if bool(kept.any()) else some

    def written_out(self) -> Tensor | None:
        """The matrices (R, n, n), where solves with them are cheaper than products."""
        known = self._products.written_out()
        return None if known is None else self._spoil(known)

    def dense(self) -> Tensor | None:
        """The matrices (R, n, n)."""
        known = self._products.dense()
        return None if known is None else self._spoil(known)

    def diagonal(self) -> Tensor | None:
        """The diagonals (R, n)."""
        known = self._products.diagonal()
        return None if known is None else self._spoil(known)

    def dual(self) -> StackedDual | None:
        """The dual, NaN in the same replicas."""
        dual = self._products.dual()
        if dual is None:
            return None
        operator = StackedOperator.of(
            WithoutBad(dual.operator.products, self._bad), dual.operator.name
        )
        lift, restrict = dual.lift, dual.restrict
        return StackedDual(
            operator, lambda u: self._spoil(lift(u)), lambda t: self._spoil(restrict(t))
        )
