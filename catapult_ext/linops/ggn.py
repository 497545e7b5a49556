"""The Gauss-Newton matrix J' H_L J, of convex losses in whichever space is smaller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from catapult_ext._autocast import no_autocast
from catapult_ext.linops.base import Dual
from catapult_ext.linops.engines.base import Linearization
from catapult_ext.linops.engines.choose import Options, coarse, freeze
from catapult_ext.linops.engines.loss_curvature import (
    bound_loss,
    check_layout,
    checked_loss,
    is_known,
)
from catapult_ext.linops.model.habits import other_generators
from catapult_ext.linops.model.inputs import fresh_inputs, unpack
from catapult_ext.linops.model.pass_context import frozen_context
from catapult_ext.linops.model_operator import ModelOperator
from catapult_ext.losses import Loss, OutputFactor, resolve

if TYPE_CHECKING:
    from typing_extensions import Unpack


_OF_OUTPUTS = "(take cx.Hessian, or add the curvature of a penalty to this operator by .shift())"


class GGN(ModelOperator):
    """J' H_L J, (P, P), parameters in ``named_parameters`` order.

    H_L is the Hessian of the loss as trained, normaliser included: for ``half_mse`` the operator is
    J'J / N and its top eigenvalue is the lambda of eta_crit = 2 / lambda.  Positive semi-definite
    for every loss with a factor S S' = H_L; a callable's H_L comes from double backward, without
    that promise and without a dual.

    Args:
        model: any module with outputs (N, O) or (N,).
        loss: see :func:`catapult_ext.losses.resolve`.
        data: ``(x, y)``, the full batch.
        **options: see :class:`~catapult_ext.linops.engines.choose.Options`.

    Raises:
        ValueError: targets that do not fit, negative weights.
    """

    name = "GGN"

    @no_autocast()
    def __init__(
        self, model: nn.Module, loss: object, data: object, **options: Unpack[Options]
    ) -> None:
        x, y = unpack(data, self.name)
        known = resolve(loss)
        linearization = freeze(model, x, where=self.name, probe=self.probe, loss=known, **options)
        self._set_up(linearization, known, y)

    @classmethod
    def of(cls, linearization: Linearization, loss: object, y: Tensor) -> GGN:
        """The Gauss-Newton matrix of a model that is linearized already, without a forward pass."""
        return cls._of(linearization, resolve(loss), y)

    def _set_up(self, linearization: Linearization, loss: Loss, y: Tensor) -> None:
        self._use(linearization)
        self.loss = loss
        snapshot, f = linearization.snapshot, linearization.outputs
        check_layout(snapshot, loss, y, f)
        if not is_known(loss):
            with frozen_context():
                checked_loss(snapshot, loss, y, f.clone().requires_grad_(), of_outputs=_OF_OUTPUTS)
            loss, y = bound_loss(snapshot, loss), fresh_inputs(y, Tensor.clone)
            if not loss.convex and snapshot.vector_outputs:
                f = f.squeeze(1)  # a callable gets the outputs as the model returns them
        with snapshot.policy.seeded(snapshot.device), other_generators():
            self.factor = loss.output_hessian(f, loss.targets(f, y))
        self.shape = (linearization.n_params, linearization.n_params)

    def _matmat(self, vectors: Tensor) -> Tensor:
        return self.linearization.vjp(
            _rows(self.linearization, self.linearization.jvp(vectors), self.factor.hessian)
        )

    def dual(self) -> Dual | None:
        """S' Theta S, (N*O, N*O), where that is the smaller space."""
        if self.linearization.rows >= self.linearization.n_params or not isinstance(
            self.factor, OutputFactor
        ):
            return None
        dual = DualGGN(self.linearization, self.factor)
        return Dual(dual, dual.lift, dual.restrict)

    def coarse(self) -> GGN:
        """The same operator with products in bfloat16 (autocast), good to about 1 % of its norm."""
        return self._on(coarse(self.linearization))


class DualGGN(ModelOperator):
    """S' Theta S, (N*O, N*O): the non-zero spectrum of the Gauss-Newton matrix S S' = H_L."""

    name = "DualGGN"

    def __init__(self, linearization: Linearization, factor: OutputFactor) -> None:
        self._use(linearization)
        self.factor = factor
        self.shape = (linearization.rows, linearization.rows)

    def _matmat(self, vectors: Tensor) -> Tensor:
        inner = self.linearization.ntk(_rows(self.linearization, vectors, self.factor.apply))
        return _rows(self.linearization, inner, self.factor.apply_t)

    def coarse(self) -> DualGGN:
        """The same operator with products in bfloat16 (autocast), good to about 1 % of its norm."""
        return DualGGN(coarse(self.linearization), self.factor)

    def lift(self, vectors: Tensor) -> Tensor:
        """J' S u: (N*O, K) to (P, K)."""
        return self.linearization.vjp(_rows(self.linearization, vectors, self.factor.apply))

    def restrict(self, vectors: Tensor) -> Tensor:
        """S' J t: (P, K) to (N*O, K)."""
        return _rows(self.linearization, self.linearization.jvp(vectors), self.factor.apply_t)


def _rows(linearization: Linearization, u: Tensor, product: Any) -> Tensor:
    shaped = u.reshape(linearization.n_samples, linearization.n_outputs, -1)
    return product(shaped).reshape(linearization.rows, -1)
