"""The Gauss-Newton matrix J' H_L J, of convex losses in whichever space is smaller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._batches import batch_of
from catapult_ext.linops.base import Dual
from catapult_ext.linops.engines.base import Linearization
from catapult_ext.linops.engines.choose import Options, coarse, freeze
from catapult_ext.linops.engines.kept_halves import KeptHalves
from catapult_ext.linops.engines.labels_inside import labels_as_trained
from catapult_ext.linops.engines.loss_curvature import (
    bound_loss,
    check_layout,
    checked_loss,
    is_known,
)
from catapult_ext.linops.model.habits import other_generators
from catapult_ext.linops.model.inputs import fresh_inputs
from catapult_ext.linops.model.pass_context import frozen_context
from catapult_ext.linops.model.several import TakesSeveral
from catapult_ext.linops.model_operator import ModelOperator
from catapult_ext.losses import OWN_LOSS, Loss, OutputFactor, resolve

if TYPE_CHECKING:
    from typing_extensions import Unpack


_OF_OUTPUTS = "(take cx.Hessian, or add the curvature of a penalty to this operator by .shift())"


class GGN(ModelOperator, TakesSeveral):
    """J' H_L J, (P, P), parameters in ``named_parameters`` order.

    H_L is the Hessian of the loss as trained, normaliser included: for ``half_mse`` the operator is
    J'J / N and its top eigenvalue is the lambda of eta_crit = 2 / lambda.  Positive semi-definite
    for every loss with a factor S S' = H_L; a callable's H_L comes from double backward, without
    that promise and without a dual.

    Args:
        model: any module with outputs (N,) or (N, d1, ..., dk), O = d1 * ... * dk; of a list of
            modules, :class:`~catapult_ext.StackedGGN` is made.
        loss: see :func:`catapult_ext.losses.resolve`.
        data: ``(x, y)``, the full batch, or another form that
            :func:`~catapult_ext._batches.batch_of` takes.
        **options: see :class:`~catapult_ext.linops.engines.choose.Options`.

    Attributes:
        targets: the labels as the loss compares them with the outputs.

    Raises:
        TypeError: data without labels.
        ValueError: targets that do not fit, negative weights.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> G = cx.GGN(net, "mse", (torch.randn(8, 3), torch.randn(8, 2)))
        >>> G.shape, (G @ torch.ones(26)).shape
        ((26, 26), torch.Size([26]))
        >>> bool(cx.eigsh(G).eigenvalues[0] > 0)
        True
    """

    name = "GGN"

    @no_autocast()
    def __init__(
        self, model: nn.Module, loss: object, data: object, **options: Unpack[Options]
    ) -> None:
        known = resolve(loss)
        v.require(
            known is not OWN_LOSS,
            self.name,
            "loss= must be given: the Gauss-Newton matrix is of outputs and a loss of them "
            "(cx.Hessian takes loss=None, the model's own)",
            None,
        )
        batch = batch_of(data, self.name)
        linearization = freeze(
            model,
            batch.x,
            where=self.name,
            probe=self.probe,
            loss=known,
            y=batch.y,
            **options,
        )
        snapshot, outputs = linearization.snapshot, linearization.outputs
        self._set_up(linearization, known, labels_as_trained(snapshot, known, batch, outputs))

    @classmethod
    def of(cls, linearization: Linearization, loss: object, y: Tensor) -> GGN:
        """The Gauss-Newton matrix of a model that is linearized already, without a forward pass."""
        return cls._of(linearization, resolve(loss), y)

    def _set_up(self, linearization: Linearization, loss: Loss, y: Tensor) -> None:
        self._use(linearization)
        self.loss, self.targets = loss, y
        snapshot, f = linearization.snapshot, linearization.outputs
        check_layout(snapshot, loss, y)
        if not is_known(loss):
            with frozen_context():
                checked_loss(snapshot, loss, y, f.clone().requires_grad_(), of_outputs=_OF_OUTPUTS)
            loss, y = bound_loss(snapshot, loss), fresh_inputs(y, Tensor.clone)
        f = snapshot.as_returned(f)
        with snapshot.policy.seeded(snapshot.device), other_generators():
            self.factor = loss.output_hessian(f, loss.targets(f, y))
        self.shape = (linearization.n_params, linearization.n_params)

    def _matmat(self, vectors: Tensor) -> Tensor:
        return self.linearization.vjp(
            weighed(self.linearization, self.linearization.jvp(vectors), self.factor.hessian)
        )

    def half_product(self, vectors: Tensor) -> Tensor | None:
        """S' J t: (P, K) to (N*O, K), by forward passes alone; None for a loss without a factor."""
        if not isinstance(self.factor, OutputFactor):
            return None
        self.linearization.snapshot.require_unchanged()
        return weighed(self.linearization, self.linearization.jvp(vectors), self.factor.apply_t)

    @property
    def lower_bound(self) -> float | None:
        """0 for a loss whose output Hessian has a factor; None else."""
        return 0.0 if isinstance(self.factor, OutputFactor) else None

    @no_autocast()
    def diagonal(self) -> Tensor:
        """The diagonal (P,), exact: from rows of J where the engine has them, else P products.

        Rows cost about as much as O backward passes with gradients of every sample.
        """
        known = self.known_diagonal()
        return super().diagonal() if known is None else known

    def known_diagonal(self) -> Tensor | None:
        """The diagonal (P,) from rows of J; None where the engine has none."""
        self.linearization.snapshot.require_unchanged()

        def product(u: Tensor) -> Tensor:
            return weighed(self.linearization, u, self.factor.hessian).reshape(u.shape)

        return self.linearization.weighted_diagonal(product)

    def dual(self) -> Dual | None:
        """S' Theta S, (N*O, N*O), where that is the smaller space."""
        if self.linearization.rows >= self.linearization.n_params or not isinstance(
            self.factor, OutputFactor
        ):
            return None
        dual = DualGGN(self.linearization, self.factor)
        return Dual(dual, dual.lift, dual.restrict)

    def coarse(self) -> GGN:
        """The same operator in the numbers of ``mixed``; where it has none, in bfloat16."""
        return self._on(coarse(self.linearization))


class DualGGN(ModelOperator):
    """S' Theta S, (N*O, N*O): the non-zero spectrum of the Gauss-Newton matrix S S' = H_L."""

    name = "DualGGN"

    def __init__(self, linearization: Linearization, factor: OutputFactor) -> None:
        self._use(linearization)
        self.factor = factor
        self.shape = (linearization.rows, linearization.rows)
        # a captured product keeps nothing, and a budget has no room for it
        free = linearization.allowance.budget is None and linearization.allowance.graphs is None
        self._halves = KeptHalves() if free else None

    @property
    def lower_bound(self) -> float:
        """0."""
        return 0.0

    def _matmat(self, vectors: Tensor) -> Tensor:
        weighted = weighed(self.linearization, vectors, self.factor.apply)
        if self._halves is not None and self._halves.wanted:
            inner, half = self.linearization.ntk_and_half(weighted)
            if half is not None:
                self._halves.keep(vectors, half)
        else:
            inner = self.linearization.ntk(weighted)
        return weighed(self.linearization, inner, self.factor.apply_t)

    def written_out(self) -> Tensor | None:
        """The matrix where a solve with it is cheaper than products; else None."""
        if self.rounding_unit > torch.finfo(self.dtype).eps:
            return None
        self.linearization.snapshot.require_unchanged()
        n, o = self.linearization.n_samples, self.linearization.n_outputs
        eye = torch.eye(o, dtype=self.dtype, device=self.device).expand(n, -1, -1)
        return self.linearization.written_out(self.factor.apply_t(eye))

    def coarse(self) -> DualGGN:
        """The same operator in the numbers of ``mixed``; where it has none, in bfloat16."""
        return DualGGN(coarse(self.linearization), self.factor)

    def lift(self, vectors: Tensor) -> Tensor:
        """J' S u: (N*O, K) to (P, K); without a pass for combinations of what was multiplied."""
        known = None if self._halves is None else self._halves.combined(vectors)
        if known is not None:
            return known
        return self.linearization.vjp(weighed(self.linearization, vectors, self.factor.apply))

    def restrict(self, vectors: Tensor) -> Tensor:
        """S' J t: (P, K) to (N*O, K)."""
        return weighed(self.linearization, self.linearization.jvp(vectors), self.factor.apply_t)


def weighed(linearization: Linearization, u: Tensor, product: Any) -> Tensor:
    """A product with the outputs' Hessian or its factor, of u (N*O, K)."""
    shape = linearization.snapshot.output_shape
    shaped = u.reshape(shape[0] if shape else 1, -1, u.shape[-1])
    return product(shaped).reshape(linearization.rows, -1)
