"""Cheap observables of a model: accuracy, weight norm, inactive units, width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v

# Activations that fall to (about) zero on the negative side, so that a unit can be inactive.
ONE_SIDED = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU)
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True)
class Activity:
    """Fractions over the activation layers of a model.

    Attributes:
        inactive: fraction of pre-activations <= 0, mean over the layers.
        worst_inactive: the same of the layer with the largest fraction.
        dead: fraction of units that are inactive on every sample, of the worst layer.
    """

    inactive: float
    worst_inactive: float
    dead: float


def activity(model: nn.Module, x: Tensor) -> tuple[Tensor, Activity | None]:
    """Outputs of ``model(x)`` and the activity of its one-sided activation modules.

    None where the model has no such module (activations called as functions are not seen).
    Costs one forward pass; units are counted along dimension 1, samples along all others.
    """
    shares: list[tuple[float, float]] = []

    def look(_module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        # After an in-place activation this is its output, which is <= 0 for the same units.
        off = inputs[0] <= 0
        per_unit = off.transpose(0, 1).flatten(1).all(dim=1) if off.dim() > 1 else off
        shares.append((off.float().mean().item(), per_unit.float().mean().item()))

    v.module("probes.activity", model)
    if not isinstance(x, Tensor):
        v.fail("probes.activity", "x must be a torch.Tensor", type(x).__name__, TypeError)
    hooks = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, ONE_SIDED)]
    try:
        with torch.no_grad():
            try:
                outputs = model(x)
            except (TypeError, ValueError, RuntimeError, IndexError) as error:
                kind = TypeError if "dtype" in str(error) else ValueError
                raise kind(
                    "catapult_ext.probes.activity: the model must accept x, got "
                    f"{tuple(x.shape)} {x.dtype}, on which its forward pass fails: {error}"
                ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if not shares:
        return outputs, None
    inactive = [s[0] for s in shares]
    return outputs, Activity(
        sum(inactive) / len(inactive), max(inactive), max(s[1] for s in shares)
    )


def weight_norm(model: nn.Module) -> float:
    """Euclidean norm of all parameters, accumulated in float64."""
    squares = [p.detach().double().square().sum() for p in model.parameters()]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def accuracy(outputs: Tensor, targets: Tensor) -> float | None:
    """Share of samples whose largest output is the target class; None without samples.

    Args:
        outputs: (N, O), O >= 2.
        targets: (N, O) one-hot, or (N,) labels.
    """
    if not len(outputs):
        return None
    labels = targets if targets.dim() == 1 else targets.argmax(dim=1)
    return (outputs.argmax(dim=1) == labels).double().mean().item()


def hidden_width(model: nn.Module) -> int:
    """Largest number of units (channels) of a weight that is not the last one; at least 1."""
    rows = [p.shape[0] for p in model.parameters() if p.dim() >= 2]
    return max(rows[:-1], default=1)


def active_dropout(model: nn.Module) -> str | None:
    """Name of a dropout module that is switched on, or None."""
    for name, module in model.named_modules():
        if isinstance(module, DROPOUT) and module.training and module.p > 0:
            return name
    return None
