"""The metric in which an optimizer's step is measured: its diagonal preconditioner over its rate.

D is the diagonal of lr P^-1, so that a step is D times the filtered gradient.  D holds each group's
rate, and eta S is the top eigenvalue of D^1/2 H D^1/2 also where the rates of groups differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Inverse = Callable[[dict[str, Any], dict[str, Any], Tensor], Tensor]


class NoMetric(Exception):
    """The preconditioner is not known to be diagonal; the text says why."""


def _adam(state: dict[str, Any], group: dict[str, Any], _moved: Tensor) -> Tensor:
    key = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    corrected = state[key] / (1 - float(group["betas"][1]) ** float(state["step"]))
    return 1 / (corrected.sqrt() + float(group["eps"]))


def _radam(state: dict[str, Any], group: dict[str, Any], moved: Tensor) -> Tensor:
    beta, step = float(group["betas"][1]), float(state["step"])
    limit = 2 / (1 - beta) - 1
    rho = limit - 2 * step * beta**step / (1 - beta**step)
    if rho <= 5:
        return torch.ones_like(moved)
    ratio = (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)
    return math.sqrt(ratio * (1 - beta**step)) / (state["exp_avg_sq"].sqrt() + float(group["eps"]))


def _adamax(state: dict[str, Any], _group: dict[str, Any], _moved: Tensor) -> Tensor:
    return 1 / state["exp_inf"]


def _rmsprop(state: dict[str, Any], group: dict[str, Any], _moved: Tensor) -> Tensor:
    second = state["square_avg"]
    if group.get("centered"):
        second = second - state["grad_avg"].square()
    return 1 / (second.sqrt() + float(group["eps"]))


def _adagrad(state: dict[str, Any], group: dict[str, Any], _moved: Tensor) -> Tensor:
    fade = 1 + (float(state["step"]) - 1) * float(group["lr_decay"])
    return 1 / (fade * (state["sum"].sqrt() + float(group["eps"])))


def _adadelta(state: dict[str, Any], group: dict[str, Any], moved: Tensor) -> Tensor:
    rho, eps = float(group["rho"]), float(group["eps"])
    delta = moved / float(group["lr"])
    before = ((state["acc_delta"] - (1 - rho) * delta.square()) / rho).clamp_min(0)
    return ((before + eps) / (state["square_avg"] + eps)).sqrt()


def _asgd(state: dict[str, Any], group: dict[str, Any], moved: Tensor) -> Tensor:
    made = float(state["step"]) - 1
    fade = (1 + float(group["lambd"]) * float(group["lr"]) * made) ** float(group["alpha"])
    return torch.full_like(moved, 1 / fade)


INVERSES: dict[type, Inverse] = {
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.NAdam: _adam,
    torch.optim.RAdam: _radam,
    torch.optim.Adamax: _adamax,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adagrad: _adagrad,
    torch.optim.Adadelta: _adadelta,
    torch.optim.ASGD: _asgd,
}


@torch.no_grad()
def step_metric(
    optimizer: Any, rates: Sequence[float], displacement: Sequence[Tensor], preconditioned: bool
) -> list[Tensor]:
    """D = lr P^-1 of the step just made, a tensor for each parameter that it trains.

    Args:
        optimizer: after its step.
        rates: each group's learning rate at the step.
        displacement: theta - theta_+, a tensor for each trained parameter.
        preconditioned: whether the optimizer's filter was found with its denominators held.

    Raises:
        NoMetric: a class whose preconditioner is not known.
    """
    kind = type(optimizer)
    inverse = INVERSES.get(kind)
    if inverse is None and preconditioned:
        raise NoMetric(f"the preconditioner of {kind.__name__} is not known")
    parts, left = [], iter(displacement)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if not rate > 0:
            raise NoMetric(f"the learning rate is {rate}")
        for p in (p for p in group["params"] if p.requires_grad):
            moved = next(left)
            state = optimizer.state.get(p, {})
            at_step = {**group, "lr": rate}  # a schedule may have changed it since
            scale = torch.ones_like(moved) if inverse is None else inverse(state, at_step, moved)
            parts.append(rate * scale)
    return parts
