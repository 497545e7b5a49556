"""Loss, data and the model's call as probes take them: one form for every form of data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext._batches import (
    batch_of,
    count_samples,
    first_labels,
    first_samples,
    inputs_of,
    map_tensors,
    one_pass,
    tensors_of,
)
from catapult_ext._model_call import Forward, call_model, loss_in, output_tensor, own_loss
from catapult_ext._module_copy import own_copy, without_cached_weights
from catapult_ext.linops.model.policy import Policy
from catapult_ext.linops.model.state import selected_names
from catapult_ext.losses import OWN_LOSS, Loss, resolve
from catapult_ext.losses.labels import read_as


@dataclass(frozen=True, eq=False)
class Problem:
    """A loss on one batch, as a function of any copy of one model.

    Attributes:
        where: the public function named in errors.
        loss: resolved; ``OWN_LOSS`` where the model returns its loss.
        x: inputs.
        y: labels.
        inside: the labels are among the inputs: the model's own loss tells how to read them.
        forward: the user's ``forward(model, x)``, or None.
        params: names or patterns of the parameters that are trained; None for all.
        dropout: None, or ``"fixed"`` for one fixed mask.
        memory_budget: memory budget of the operators.
        seed: seed of the mask.
    """

    where: str
    loss: Loss
    x: Any
    y: Any = None
    inside: bool = False
    forward: Forward | None = None
    params: str | Sequence[str] | None = None
    dropout: str | None = None
    memory_budget: int | str | None = None
    seed: int = 0

    @classmethod
    def of(cls, loss: object, data: Any, where: str, **options: Any) -> Problem:
        """The problem of a user's loss and data: see :func:`~catapult_ext._batches.batch_of`.

        Raises:
            TypeError: data of another form, without labels, or ``forward=`` that is no function.
            ValueError: an unknown loss or policy.
        """
        known, data = resolve(loss), _outside_inference(data)
        forward = options.get("forward")
        needs = "forward must be a function (model, x)"
        v.require(forward is None or callable(forward), where, needs, forward)
        Policy(dropout=options.get("dropout")).check(where)
        if known is OWN_LOSS:
            return cls(where, known, inputs_of(data, where), **options)
        x, y, inside = batch_of(data, where)
        return cls(where, known, x, y, inside, **options)

    @property
    def data(self) -> Any:
        """Data in the form that operators take, besides the loss."""
        return self.x if self.inside or self.loss is OWN_LOSS else (self.x, self.y)

    @property
    def options(self) -> dict[str, Any]:
        """Keywords of operators."""
        names = ("forward", "params", "dropout", "memory_budget", "seed")
        return {name: getattr(self, name) for name in names}

    @property
    def n_samples(self) -> int:
        """N of the inputs."""
        return count_samples(self.x, self.y)

    def first(self, count: int | None) -> Problem:
        """The problem on the first ``count`` samples."""
        n = self.n_samples
        x, y = first_samples(self.x, count, n), first_labels(self.y, count, n)
        return replace(self, x=x, y=y)

    def read_as(self, targets: Any) -> Problem:
        """The problem with labels as an operator has read them (its ``targets``)."""
        return replace(self, y=targets, inside=False)

    def read(self, model: nn.Module) -> Problem:
        """The problem with labels in the inputs, as the model reads them, by one forward pass."""
        if not self.inside:
            return self
        with torch.no_grad():
            out = self._passed(self._returned, own_copy(model))
        own, f = loss_in(out), output_tensor(out, self.where)
        if own is None or out is f:
            return self.read_as(self.y)
        value = float(own)
        return self.read_as(read_as(f, value, slice(None), self.loss, self.y, self.where))

    def called(self, model: nn.Module, x: Any) -> Tensor:
        """Outputs of ``model`` for inputs ``x`` in the form of this problem, with their graph."""
        pick = own_loss if self.loss is OWN_LOSS else output_tensor
        return pick(self._returned(model, x), self.where)

    def _returned(self, model: nn.Module, x: Any) -> Any:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        with Policy(None, self.dropout, self.seed).seeded(device):
            return call_model(model, x, self.forward)

    def outputs(self, model: nn.Module) -> Tensor:
        """The outputs of ``model``, as it returns them; with graph where gradients are on.

        Raises:
            TypeError: no tensor among what it returns.
            ValueError: the forward pass fails.
        """
        try:
            with without_cached_weights():
                found: Tensor = self._passed(self.called, model)
                return found
        except RuntimeError as error:  # half precision, which operators widen and models may not
            shown = self.x.dtype if isinstance(self.x, Tensor) else type(self.x).__name__
            raise ValueError(
                f"catapult_ext.{self.where}: the model must accept the inputs (or pass forward=), "
                f"got {shown}: {error}"
            ) from error

    def _passed(self, call: Callable[[nn.Module, Any], Any], model: nn.Module) -> Any:
        """``call`` of ``model`` and of inputs of its own, which a model may write in place."""
        return one_pass(lambda: call(model, map_tensors(self.x, Tensor.clone)))

    def trained_copy(self, model: nn.Module) -> nn.Module:
        """``model``, or a copy in which only ``params`` are trainable."""
        if self.params is None:
            return model
        copy: nn.Module = own_copy(model)
        trainable = {name: p for name, p in copy.named_parameters() if p.requires_grad}
        chosen = set(selected_names(list(trainable), self.params, self.where))
        for name, p in trainable.items():
            p.requires_grad_(name in chosen)
        return copy


def _outside_inference(data: Any) -> Any:
    """The data as tensors that a graph can keep; tensors made in inference mode are copied."""
    if any(t.is_inference() for t in tensors_of(data)):
        return map_tensors(data, Tensor.clone)
    return data
