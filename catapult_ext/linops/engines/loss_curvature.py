"""A loss as a function of the model's outputs: value, slope and second derivative, checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext.linops.model.policy import frozen_context
from catapult_ext.linops.model.snapshot import Snapshot
from catapult_ext.losses import AutogradHessian, Loss


def output_curvature(
    snapshot: Snapshot, loss: Loss, y: Any, outputs: Tensor
) -> tuple[Tensor, Tensor, AutogradHessian]:
    """The loss, its slope dL/df (N, O) and its second derivative at detached outputs (N, O)."""
    with frozen_context():
        f = outputs.clone().requires_grad_()
        value = checked_loss(snapshot, loss, y, f)
        (slope,) = torch.autograd.grad(value, f)
    second = AutogradHessian(lambda moved: loss_value(snapshot, loss, y, moved), outputs, loss.name)
    return value, slope, second


def loss_value(snapshot: Snapshot, loss: Loss, y: Any, outputs: Tensor) -> Tensor:
    """The loss of outputs (N, O); a callable gets them as the model returns them."""
    vector = not loss.convex and snapshot.vector_outputs
    return loss(outputs.squeeze(1) if vector else outputs, y)


def checked_loss(snapshot: Snapshot, loss: Loss, y: Any, outputs: Tensor) -> Tensor:
    """The loss of outputs (N, O), finite and with a graph, or a clear error."""
    value, where = loss_value(snapshot, loss, y, outputs), snapshot.where
    v.require(bool(torch.isfinite(value)), where, "the loss must be finite", value.item())
    v.require(value.requires_grad, where, "the loss must depend on the outputs", "a constant")
    return value
