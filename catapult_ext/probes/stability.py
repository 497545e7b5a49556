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
    group = _only_group(optimizer)
    if type(optimizer) is torch.optim.SGD:
        return _sgd(group)
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
        beta = float(group["betas"][0])
        decoupled = type(optimizer) is torch.optim.AdamW or group.get("decoupled_weight_decay")
        l2 = 0.0 if decoupled else float(group["weight_decay"])
        scale = _adam_scale(optimizer, model, group)
        return Rule(f"{type(optimizer).__name__}, its preconditioner held", _ema(beta), l2, scale)
    v.fail(
        _WHERE,
        "optimizer must be None, torch.optim.SGD, Adam or AdamW",
        type(optimizer).__name__,
        TypeError,
    )
    raise AssertionError


def _ema(beta: float) -> float:
    return 2 * (1 + beta) / (1 - beta)


def _only_group(optimizer: Any) -> dict[str, Any]:
    groups = optimizer.param_groups
    keys = [k for k in groups[0] if k not in ("params", "lr", "initial_lr")]
    same = all(g[k] == groups[0][k] for g in groups for k in keys)
    v.require(same, _WHERE, "all parameter groups must share their settings", len(groups))
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


def _adam_scale(optimizer: Any, model: nn.Module, group: dict[str, Any]) -> Tensor:
    """1 / (sqrt(vhat) + eps), flat over the trainable parameters."""
    second = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    parts = []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        state = optimizer.state.get(p, {})
        v.require(
            second in state,
            _WHERE,
            f"{type(optimizer).__name__} must have taken steps (or pass burn_in=)",
            f"no state for {name}",
        )
        corrected = state[second] / (1 - float(group["betas"][1]) ** float(state["step"]))
        parts.append((corrected.sqrt() + float(group["eps"])).reciprocal().reshape(-1))
    return torch.cat(parts).detach()


class Preconditioned:
    """P^-1/2 (A + l2) P^-1/2 of an operator, which has the spectrum of P^-1 (A + l2)."""

    def __init__(self, operator: Any, rule: Rule) -> None:
        self._operator, self._l2 = operator, rule.l2
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device
        assert rule.scale is not None
        self._root = rule.scale.sqrt().to(dtype=self.dtype, device=self.device)[:, None]

    def __matmul__(self, vectors: Tensor) -> Tensor:
        inner = self._root * vectors
        return self._root * (self._operator @ inner + self._l2 * inner)
