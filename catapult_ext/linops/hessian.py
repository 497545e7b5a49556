"""The Hessian of the loss: double backward on one kept graph."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext.linops.base import LinearOperator
from catapult_ext.linops.frozen import Options, snapshot
from catapult_ext.linops.ggn import unpack
from catapult_ext.linops.policy import frozen_context
from catapult_ext.linops.snapshot import Snapshot, require_second_derivatives
from catapult_ext.losses import Loss, resolve

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Hessian(LinearOperator):
    """Second derivatives of the loss, (P, P), parameters in ``named_parameters`` order.

    Forward and backward run once; a product is one backward through that backward.

    Args:
        model: any module with outputs (N, O) or (N,).
        loss: a name, torch loss module or any callable ``(outputs, targets) -> scalar``, which
            gets the outputs as the model returns them (see :func:`catapult_ext.losses.resolve`).
        data: ``(x, y)``, the full batch.
        **options: see :class:`~catapult_ext.linops.frozen.Options`.

    Raises:
        ValueError: targets that do not fit, a non-finite loss.
        RuntimeError: an operation without second derivative.
    """

    name = "Hessian"

    def __init__(
        self, model: nn.Module, loss: object, data: object, **options: Unpack[Options]
    ) -> None:
        x, y = unpack(data, self.name)
        v.require(
            options.get("engine") in (None, "autograd"),
            self.name,
            "engine must be None or 'autograd'",
            repr(options.get("engine")),
        )
        known = resolve(loss)
        held = snapshot(model, x, self.name, options)
        self._set_up(held, known, y, check=options.get("check", True))

    def coarse(self) -> Hessian:
        """The same operator with products in bfloat16 (autocast), good to about 1 % of its norm."""
        held = copy.copy(self.snapshot)
        held.coarse = True
        out = Hessian.__new__(Hessian)
        out._set_up(held, self.loss, self._targets)
        return out

    def _set_up(self, snapshot: Snapshot, known: Loss, y: Any, check: bool = False) -> None:
        self.snapshot, self._targets = snapshot, y
        outputs = self.snapshot.forward()
        if check:
            self.snapshot.check_repeats(outputs)
        with frozen_context():
            if known.convex:
                value = known(outputs, y)
            else:
                raw = outputs.squeeze(1) if self.snapshot.vector_outputs else outputs
                value = known(raw, y)
            v.require(
                bool(torch.isfinite(value)), self.name, "the loss must be finite", value.item()
            )
            v.require(
                value.requires_grad, self.name, "the loss must depend on the outputs", "a constant"
            )
            leaves = list(self.snapshot.params.values())
            grads = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
        # a gradient without graph is constant: its rows of the Hessian are zero
        self._used = [g for g in grads if g is not None and g.requires_grad]
        self._which = [i for i, g in enumerate(grads) if g is not None and g.requires_grad]
        require_second_derivatives(self._used, self.name)
        self._leaves = leaves
        self.value = value.detach()
        self.gradient = self.snapshot.join(grads)
        self.loss = known
        self.shape = (self.snapshot.n_params, self.snapshot.n_params)
        self.dtype, self.device = self.snapshot.dtype, self.snapshot.device

    def _matmat(self, vectors: Tensor) -> Tensor:
        columns = [self._product(vectors[:, k].contiguous()) for k in range(vectors.shape[1])]
        return torch.stack(columns, 1)

    def _product(self, vector: Tensor) -> Tensor:
        if not self._used:
            return torch.zeros_like(vector)
        blocks = self.snapshot.split(vector)
        try:
            second = torch.autograd.grad(
                self._used,
                self._leaves,
                [blocks[i] for i in self._which],
                retain_graph=True,
                allow_unused=True,
            )
        except RuntimeError as error:
            if "derivative" not in str(error):
                raise
            raise RuntimeError(
                f"catapult_ext.{self.name}: an operation of the model has no second "
                f"derivative: {error}"
            ) from error
        return self.snapshot.join(second)
