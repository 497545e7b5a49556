"""Where an optimizer's linearised dynamics become unstable: its threshold and its preconditioner.

On a quadratic with top curvature lambda a step size eta is stable up to (theory: the characteristic
polynomial of each optimizer's two-term recurrence)

    gradient descent          2 / lambda
    heavy ball                2 (1 + beta) / ((1 - dampening) lambda)
    Nesterov                  (2 + 2 beta) / ((1 + 2 beta) lambda)
    Adam (frozen P)           2 (1 + beta1) / ((1 - beta1) lambda_max(P^-1 H))

with lambda + alpha in place of lambda for an L2 penalty alpha/2 |theta|^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext.linops.preconditioned import inverse_preconditioner

_WHERE = "learning_rate_window"


@dataclass(frozen=True, eq=False)
class Rule:
    """An optimizer's stability on a quadratic: eta_crit = factor / lambda_max(P^-1 (H + l2)).

    Attributes:
        name: what it is, for people.
        factor: 2 for gradient descent.
        l2: penalty alpha, in the optimizer's gradient.
        scale: (P,) diagonal of P^-1, trainable parameters in order; None for the identity.
    """

    name: str
    factor: float
    l2: float = 0.0
    scale: Tensor | None = None


def rule_of(optimizer: Any, model: nn.Module) -> Rule:
    """The rule of a torch optimizer (None: gradient descent).

    Raises:
        ValueError: groups that differ, an Adam without state.
        TypeError: an optimizer that is not SGD, Adam or AdamW.
    """
    if optimizer is None:
        return Rule("gradient descent", 2.0)
    kind = type(optimizer)
    if kind not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        text = "optimizer must be None, torch.optim.SGD, Adam or AdamW"
        v.fail(_WHERE, text, kind.__name__, TypeError)
    group = _only_group(optimizer, model)
    if kind is torch.optim.SGD:
        return _sgd(group)
    beta = float(group["betas"][0])
    decoupled = kind is torch.optim.AdamW or group.get("decoupled_weight_decay")
    l2 = 0.0 if decoupled else float(group["weight_decay"])
    scale = inverse_preconditioner(optimizer, model, None, _WHERE, hint=" (or pass burn_in=)")
    return Rule(f"{kind.__name__}, its preconditioner held", _ema(beta), l2, scale)


def _ema(beta: float) -> float:
    return 2 * (1 + beta) / (1 - beta)


def _only_group(optimizer: Any, model: nn.Module) -> dict[str, Any]:
    groups = optimizer.param_groups
    keys = [k for k in groups[0] if k not in ("params", "initial_lr")]
    same = all(g[k] == groups[0][k] for g in groups for k in keys)
    v.require(same, _WHERE, "all parameter groups must share their settings", len(groups))
    taught = {id(p) for g in groups for p in g["params"] if p.requires_grad}
    own = {name: id(p) for name, p in model.named_parameters() if p.requires_grad}
    text = "the optimizer must train the model's trainable parameters and no others"
    left = [name for name, key in own.items() if key not in taught]
    v.require(not left, _WHERE, text + " (freeze those it leaves out)", ", ".join(left[:3]))
    foreign = len(taught - set(own.values()))
    v.require(not foreign, _WHERE, text, f"{foreign} of another model")
    v.require(not groups[0].get("maximize"), _WHERE, "the optimizer must minimise", "maximize")
    return groups[0]


def _sgd(group: dict[str, Any]) -> Rule:
    beta, l2 = float(group["momentum"]), float(group["weight_decay"])
    if not beta:
        return Rule("gradient descent", 2.0, l2)
    if group["nesterov"]:
        return Rule(f"Nesterov, beta = {beta:g}", (2 + 2 * beta) / (1 + 2 * beta), l2)
    damping = 1 - float(group["dampening"])
    return Rule(f"heavy ball, beta = {beta:g}", 2 * (1 + beta) / damping, l2)
