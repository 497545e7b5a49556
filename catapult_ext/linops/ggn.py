"""The Gauss-Newton matrix J' H_L J of a convex loss, in whichever space is smaller."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext.linops.autograd import coarse
from catapult_ext.linops.base import Dual, LinearOperator
from catapult_ext.linops.frozen import Frozen, freeze
from catapult_ext.losses import Loss, OutputFactor, resolve


def unpack(data: object, where: str) -> tuple[Any, Any]:
    """``(x, y)`` or a clear error."""
    if not isinstance(data, Sequence) or isinstance(data, str) or len(data) != 2:
        shown = f"{type(data).__name__}" + (
            f" of {len(data)}" if isinstance(data, Sequence) else ""
        )
        v.fail(where, "data must be a pair (x, y)", shown, TypeError)
    return data[0], data[1]  # type: ignore[index]


class GGN(LinearOperator):
    """J' H_L J, (P, P), parameters in ``named_parameters`` order, positive semi-definite.

    H_L is the Hessian of the loss as trained, normaliser included: for ``half_mse`` the operator is
    J'J / N and its top eigenvalue is the lambda of eta_crit = 2 / lambda.

    Args:
        model: any module with outputs (N, O) or (N,).
        loss: see :func:`catapult_ext.losses.resolve`; it must have a factor (no bare callables).
        data: ``(x, y)``, the full batch.
        engine: as in :class:`~catapult_ext.linops.ntk.NTK`.

    Raises:
        ValueError: a loss without a Gauss-Newton factor, targets that do not fit.
    """

    name = "GGN"

    def __init__(
        self, model: nn.Module, loss: object, data: object, *, engine: str | None = None
    ) -> None:
        x, y = unpack(data, self.name)
        known = convex_loss(loss, self.name)
        self._set_up(freeze(model, x, engine=engine, where=self.name), known, y)

    @classmethod
    def of(cls, frozen: Frozen, loss: object, y: Tensor) -> GGN:
        """The Gauss-Newton matrix of an already frozen model: shares its forward pass."""
        self = cls.__new__(cls)
        self._set_up(frozen, convex_loss(loss, cls.name), y)
        return self

    def _set_up(self, frozen: Frozen, loss: Loss, y: Tensor) -> None:
        self.frozen, self.loss = frozen, loss
        self.factor = loss.factor(frozen.outputs, loss.targets(frozen.outputs, y))
        self.shape = (frozen.n_params, frozen.n_params)
        self.dtype, self.device, self.engine = frozen.dtype, frozen.device, frozen.engine

    def _matmat(self, vectors: Tensor) -> Tensor:
        return self.frozen.vjp(_rows(self.frozen, self.frozen.jvp(vectors), self.factor.hessian))

    def dual(self) -> Dual | None:
        """S' Theta S, (N*O, N*O), where that is the smaller space."""
        if self.frozen.rows >= self.frozen.n_params:
            return None
        dual = DualGGN(self.frozen, self.factor)
        return Dual(dual, dual.lift, dual.restrict)

    def coarse(self) -> GGN:
        """The same operator with products in bfloat16 (autocast), good to about 1 % of its norm."""
        out = copy.copy(self)
        out.frozen = coarse(self.frozen)
        return out


class DualGGN(LinearOperator):
    """S' Theta S, (N*O, N*O): the non-zero spectrum of the Gauss-Newton matrix S S' = H_L."""

    name = "DualGGN"

    def __init__(self, frozen: Frozen, factor: OutputFactor) -> None:
        self.frozen, self.factor = frozen, factor
        self.shape = (frozen.rows, frozen.rows)
        self.dtype, self.device = frozen.dtype, frozen.device

    def _matmat(self, vectors: Tensor) -> Tensor:
        inner = self.frozen.ntk(_rows(self.frozen, vectors, self.factor.apply))
        return _rows(self.frozen, inner, self.factor.apply_t)

    def coarse(self) -> DualGGN:
        """The same operator with products in bfloat16 (autocast), good to about 1 % of its norm."""
        return DualGGN(coarse(self.frozen), self.factor)

    def lift(self, vectors: Tensor) -> Tensor:
        """J' S u: (N*O, K) to (P, K)."""
        return self.frozen.vjp(_rows(self.frozen, vectors, self.factor.apply))

    def restrict(self, vectors: Tensor) -> Tensor:
        """S' J t: (P, K) to (N*O, K)."""
        return _rows(self.frozen, self.frozen.jvp(vectors), self.factor.apply_t)


def convex_loss(loss: object, where: str) -> Loss:
    """Resolve ``loss`` and require a Gauss-Newton factor."""
    known = resolve(loss)
    v.require(
        known.convex,
        where,
        "loss must be 'half_mse', 'half_mse_mean', MSELoss, CrossEntropyLoss or BCEWithLogitsLoss "
        "(use Hessian for other losses)",
        known.name,
    )
    return known


def _rows(frozen: Frozen, u: Tensor, product: Any) -> Tensor:
    shaped = u.reshape(frozen.n_samples, frozen.n_outputs, -1)
    return product(shaped).reshape(frozen.rows, -1)
