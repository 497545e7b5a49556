"""A loss as a function of the model's outputs: value, slope and second derivative, checked.

A callable may refer to the model (a penalty of its parameters, an output layer tied to the
embedding, a loss that layers leave in an attribute).  It is evaluated as a copy that refers to the
module tree of the pass instead, in its first state every time.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext.linops.model.dispatch_mode import DispatchMode
from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.model.graphs import listed, reached
from catapult_ext.linops.model.habits import other_generators
from catapult_ext.linops.model.inputs import fresh_inputs
from catapult_ext.linops.model.pass_context import frozen_context
from catapult_ext.losses import (
    AutogradHessian,
    BinaryCrossEntropy,
    CrossEntropy,
    LogLikelihood,
    Loss,
    SquaredLoss,
)

_OF_OUTPUTS = "where samples go in chunks or engine is 'dense-chain' (leave both out)"
# functions of outputs and targets alone
_KNOWN = (SquaredLoss, CrossEntropy, BinaryCrossEntropy, LogLikelihood)


def is_known(loss: Loss) -> bool:
    """Whether the loss is one of the library's own, which keep no state and see no model."""
    return type(loss) in _KNOWN


def output_curvature(
    snapshot: FixedModel, loss: Loss, y: Any, outputs: Tensor
) -> tuple[Tensor, Tensor, AutogradHessian]:
    """The loss, its slope dL/df (N, O) and its second derivative at detached outputs (N, O)."""
    with frozen_context():
        f = outputs.clone().requires_grad_()
        value = checked_loss(snapshot, loss, y, f, of_outputs=_OF_OUTPUTS)
        (slope,) = torch.autograd.grad(value, f)
    second = AutogradHessian(lambda moved: loss_value(snapshot, loss, y, moved), outputs, loss.name)
    return value, slope, second


class _NoDraws(DispatchMode):
    """Refuses random numbers of torch, before they are drawn."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self._where = where

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            v.fail(
                self._where,
                "the loss must not draw random numbers (sample before, or pass dropout='fixed' for "
                "one fixed draw)",
                func,
            )
        return func(*args, **(kwargs or {}))


def bound_loss(snapshot: FixedModel, loss: Loss) -> Loss:
    """The loss as a copy that refers to the modules of the last pass, where it may refer to any."""
    return loss if is_known(loss) else snapshot.own_loss(loss)


def loss_value(snapshot: FixedModel, loss: Loss, y: Any, outputs: Tensor) -> Tensor:
    """The loss of outputs (N, O); a callable gets them as the model returns them."""
    check_layout(snapshot, loss, y)
    f = snapshot.as_returned(outputs)
    if is_known(loss):
        return loss(f, y)
    with snapshot.policy.seeded(snapshot.device):
        return bound_loss(snapshot, loss)(f, fresh_inputs(y, torch.Tensor.clone))


def checked_loss(
    snapshot: FixedModel, loss: Loss, y: Any, outputs: Tensor, *, of_outputs: str = ""
) -> Tensor:
    """The same, finite, with a graph and the same twice, or a clear error.

    Args:
        snapshot: the model whose last pass gave ``outputs``.
        loss: see :func:`catapult_ext.losses.resolve`.
        y: targets.
        outputs: (N, O), with the graph of the pass, or without one.
        of_outputs: the reason why the loss may depend on parameters through ``outputs`` alone,
            where it must not do so otherwise.

    Raises:
        ValueError: a loss that is not finite, does not depend on the outputs, draws random
            numbers, differs between two calls, or depends on parameters past the model's tree.
    """
    where = snapshot.where
    draws = is_known(loss) or snapshot.policy.dropout is not None
    with other_generators() if not is_known(loss) else nullcontext():
        with nullcontext() if draws else _NoDraws(where):
            value = loss_value(snapshot, loss, y, outputs)
        v.finite(bool(torch.isfinite(value)), where, "the loss", value.item())
        v.require(value.requires_grad, where, "the loss must depend on the outputs", "a constant")
        if is_known(loss):
            return value
        again = loss_value(snapshot, loss, y, outputs).detach()
    bound = 5e-5 * abs(value.item()) + torch.finfo(value.dtype).tiny
    v.require(
        abs(value.item() - again.item()) <= bound,
        where,
        "the loss must give the same value twice (does it draw random numbers, or change state "
        "that a copy of it shares?)",
        f"{value.item():.6g} and {again.item():.6g}",
    )
    seen = parameters_seen(snapshot, value, outputs)
    v.require(
        not (seen and of_outputs),
        where,
        f"the loss must depend on parameters through the outputs alone {of_outputs}",
        f"a loss that sees {listed(seen)} itself",
    )
    return value


def loss_sees_parameters(snapshot: FixedModel, loss: Loss, y: Any, outputs: Tensor) -> bool:
    """Whether the loss depends on parameters otherwise than through ``outputs`` (no graph)."""
    if is_known(loss):
        return False
    with frozen_context():
        f = outputs.clone().requires_grad_()
        return bool(parameters_seen(snapshot, checked_loss(snapshot, loss, y, f), f))


def parameters_seen(snapshot: FixedModel, value: Tensor, outputs: Tensor) -> list[str]:
    """Names of parameters on which the loss depends otherwise than through the outputs."""
    leaves = reached(value, outputs).leaves
    past = snapshot.own_names(leaves)
    v.require(
        not past,
        snapshot.where,
        "a loss must reach the model's parameters through its own closure, arguments or modules",
        f"{listed(past)} of another reference (a function it calls, a class)",
    )
    ids = {id(t) for t in leaves}
    return [name for name, p in snapshot.params.items() if id(p) in ids]


def check_layout(snapshot: FixedModel, loss: Loss, y: Any) -> None:
    """Refuse targets (N, 1) for outputs (N,) and the reverse, which torch broadcasts to (N, N)."""
    if not isinstance(loss, (SquaredLoss, BinaryCrossEntropy)) or not isinstance(y, Tensor):
        return
    shape = tuple(snapshot.output_shape)
    n = shape[0] if shape else 1
    shapes = {(n,): (n, 1), (n, 1): (n,)}
    v.require(
        n == 1 or shape not in shapes or tuple(y.shape) != shapes[shape],
        snapshot.where,
        f"targets must have the shape of the outputs {shape} (flatten one of them, or "
        "unsqueeze(1) the other)",
        tuple(y.shape),
    )
