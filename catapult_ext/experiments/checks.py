"""What can be wrong with the arguments of a sweep, found before anything is computed or written."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import losses
from catapult_ext._validate import fail, require
from catapult_ext.data import Dataset
from catapult_ext.probes.observables import active_dropout

WHERE = "sweep"


def check_problem(model: nn.Module, data: Dataset, loss: Any, linearised: bool) -> losses.Loss:
    """Resolve the loss and check that model, data and loss fit, before anything is written.

    Raises:
        TypeError: not a module, or parameters of another dtype than the data's.
        ValueError: non-finite parameters, none at all, active dropout, outputs that are not
            (N, O), or a loss that the sweep cannot follow.
    """
    if not isinstance(model, nn.Module):
        fail(WHERE, "model must be a torch.nn.Module", type(model).__name__, TypeError)
    for name, p in model.named_parameters():
        if not p.is_floating_point():
            fail(WHERE, f"parameter {name} must have a floating dtype", p.dtype, TypeError)
        if p.dtype != data.x_train.dtype:
            fail(WHERE, f"parameter {name} must have the dtype of the data", p.dtype, TypeError)
        require(bool(torch.isfinite(p).all()), WHERE, f"parameter {name} must be finite", "nan")
    require(any(p.requires_grad for p in model.parameters()), WHERE, "model needs parameters", 0)
    dropout = active_dropout(model)
    require(dropout is None, WHERE, "dropout makes every step random: call model.eval()", dropout)
    resolved = losses.resolve(loss)
    require(resolved.convex, WHERE, "loss must have a Gauss-Newton matrix", resolved.name)
    if linearised:
        squared = isinstance(resolved, losses.SquaredLoss)
        require(squared, WHERE, "linearised=True needs a squared loss", resolved.name)
    with torch.no_grad():
        outputs = copy.deepcopy(model)(data.x_train)
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    wanted = (len(data.x_train), data.outputs)
    require(shape == wanted, WHERE, f"model must return outputs of shape {wanted}", shape)
    resolved.targets(outputs, data.y_train)
    return resolved
