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

# state, group and parameter of the step; its displacement where it is known
Inverse = Callable[[dict[str, Any], dict[str, Any], Tensor, "Tensor | None"], Tensor]


class NoMetric(Exception):
    """The preconditioner is not known to be diagonal; the text says why."""


def _adam(state: dict[str, Any], group: dict[str, Any], *_: Any) -> Tensor:
    key = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    corrected = state[key] / (1 - float(group["betas"][1]) ** float(state["step"]))
    return 1 / (corrected.sqrt() + float(group["eps"]))


def _radam(state: dict[str, Any], group: dict[str, Any], p: Tensor, *_: Any) -> Tensor:
    beta, step = float(group["betas"][1]), float(state["step"])
    limit = 2 / (1 - beta) - 1
    rho = limit - 2 * step * beta**step / (1 - beta**step)
    if rho <= 5:
        return torch.ones_like(p)
    ratio = (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)
    return math.sqrt(ratio * (1 - beta**step)) / (state["exp_avg_sq"].sqrt() + float(group["eps"]))


def _adamax(state: dict[str, Any], *_: Any) -> Tensor:
    return 1 / state["exp_inf"]


def _rmsprop(state: dict[str, Any], group: dict[str, Any], *_: Any) -> Tensor:
    second = state["square_avg"]
    if group.get("centered"):
        second = second - state["grad_avg"].square()
    return 1 / (second.sqrt() + float(group["eps"]))


def _adagrad(state: dict[str, Any], group: dict[str, Any], *_: Any) -> Tensor:
    fade = 1 + (float(state["step"]) - 1) * float(group["lr_decay"])
    return 1 / (fade * (state["sum"].sqrt() + float(group["eps"])))


def _adadelta(
    state: dict[str, Any], group: dict[str, Any], _p: Tensor, moved: Tensor | None
) -> Tensor:
    rho, eps = float(group["rho"]), float(group["eps"])
    before = state["acc_delta"]
    if moved is not None and float(group["lr"]) > 0:  # what the step itself was divided by
        delta = moved / float(group["lr"])
        before = ((before - (1 - rho) * delta.square()) / rho).clamp_min(0)
    return ((before + eps) / (state["square_avg"] + eps)).sqrt()


def _asgd(state: dict[str, Any], group: dict[str, Any], p: Tensor, *_: Any) -> Tensor:
    made = float(state["step"]) - 1
    fade = (1 + float(group["lambd"]) * float(group["lr"]) * made) ** float(group["alpha"])
    return torch.full_like(p, 1 / fade)


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


def as_real(value: Any) -> Any:
    """A complex tensor seen as pairs of real numbers, as optimizers and operators take them."""
    complex_tensor = isinstance(value, Tensor) and value.is_complex()
    return torch.view_as_real(value) if complex_tensor else value


def is_adaptive(optimizer: Any) -> bool:
    """Whether the class divides by something of its state, in a way that is known."""
    return type(optimizer) in INVERSES


def has_stepped(optimizer: Any) -> bool:
    """Whether a parameter has the state of at least one step."""
    # Adagrad starts with a filled state; its step tells whether one was taken
    return any(float(state.get("step", 1)) > 0 for state in optimizer.state.values())


@torch.no_grad()
def step_metric(
    optimizer: Any,
    rates: Sequence[float],
    preconditioned: bool,
    displacement: Sequence[Tensor] | None = None,
    weights: Sequence[float] | None = None,
) -> list[Tensor]:
    """D = lr P^-1 of the step just made, a tensor for each parameter that it trains.

    That of a complex parameter is of its real and imaginary parts, (..., 2).

    Args:
        optimizer: after its step.
        rates: each group's learning rate at the step.
        preconditioned: whether the optimizer's filter was found with its denominators held.
        displacement: theta - theta_+, a tensor for each trained parameter; without it Adadelta's
            numerator is that of the next step.
        weights: by which each group's P^-1 is multiplied; None: by ``rates``.

    Raises:
        NoMetric: a class whose preconditioner is not known, or that has taken no step.
    """
    kind = type(optimizer)
    inverse = INVERSES.get(kind)
    if inverse is None and preconditioned:
        raise NoMetric(f"the preconditioner of {kind.__name__} is not known")
    weights = rates if weights is None else weights
    parts: list[Tensor] = []
    left, made = iter(displacement or ()), False
    for group, rate, weight in zip(optimizer.param_groups, rates, weights, strict=True):
        if not weight >= 0 or (displacement is not None and not rate > 0):
            raise NoMetric(f"the learning rate is {rate}")
        at_step = {**group, "lr": rate}  # a schedule may have changed it since
        for p in (p for p in group["params"] if p.requires_grad):
            moved = None if displacement is None else next(left)
            state = {k: as_real(s) for k, s in optimizer.state.get(p, {}).items()}
            p, moved = as_real(p), None if moved is None else as_real(moved)
            taken = bool(state) and float(state.get("step", 1)) > 0
            made |= taken or inverse is None
            if inverse is None:
                scale = torch.ones_like(p)
            elif taken:
                scale = inverse(state, at_step, p, moved)
            else:  # a parameter that has had no gradient does not move
                scale = torch.zeros_like(p)
            parts.append(weight * scale)
    if not made:
        raise NoMetric(f"{kind.__name__} has taken no step")
    return parts
