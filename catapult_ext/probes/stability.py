"""Where an optimizer's linearised dynamics become unstable: its threshold, metric and decay.

On a quadratic a linear optimizer is stable while lr * lambda_max(P^-1 (H + W)) stays below its
threshold k*, which :func:`~catapult_ext.stability_threshold` finds without a list of optimizers.
P is its preconditioner, held; W the diagonal of the penalties in its gradient.  Parameter groups
with different rates enter through P: rates are counted in units of the first group's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext.linops import LinearOperator, Preconditioned
from catapult_ext.linops.preconditioned import bare_optimizer
from catapult_ext.probes.step_metric import NoMetric, as_real, has_stepped, step_metric
from catapult_ext.probes.threshold import stability_threshold

_WHERE = "learning_rate_window"
_ABOUT_EPS = 10.0  # second moments whose root is below this multiple of eps


@dataclass(frozen=True, eq=False)
class Rule:
    """An optimizer's stability on a quadratic: eta_crit = factor / lambda_max(P^-1 (H + W)).

    Attributes:
        name: the optimizer, for people.
        factor: its threshold k*, 2 for gradient descent; NaN without one.
        scale: (P,) diagonal of P^-1 times each group's rate over the first's, trainable parameters
            in order; None where it is one.
        decay: (P,) diagonal of W; None for none.
        held_by_eps: (P,) bool, where the preconditioner is about 1 / eps; None without eps.
        reason: why there is no threshold; None where there is one.
    """

    name: str
    factor: float
    scale: Tensor | None = None
    decay: Tensor | None = None
    held_by_eps: Tensor | None = None
    reason: str | None = None

    def seen(self, operator: LinearOperator) -> LinearOperator:
        """The curvature that the optimizer meets: P^-1/2 (A + W) P^-1/2."""
        if self.decay is not None:
            first = float(self.decay[0])
            same = bool((self.decay == first).all())
            operator = operator.shift(first) if same else operator + Diagonal(operator, self.decay)
        return operator if self.scale is None else Preconditioned.by(operator, self.scale)


class Diagonal(LinearOperator):
    """diag(entries) on the space of ``like``."""

    name = "Diagonal"

    def __init__(self, like: LinearOperator, entries: Tensor) -> None:
        self.shape, self.dtype, self.device = like.shape, like.dtype, like.device
        self._entries = entries.to(like.device, like.dtype)[:, None]

    def _matmat(self, vectors: Tensor) -> Tensor:
        return self._entries * vectors

    def diagonal(self) -> Tensor:
        """The entries (n,)."""
        return self._entries[:, 0]


def rule_of(optimizer: Any, model: nn.Module) -> Rule:
    """The rule of a torch optimizer (None: gradient descent).

    Raises:
        ValueError: parameters that are not the model's, groups whose rates have no ratio, an
            adaptive optimizer that has taken no steps.
        TypeError: no torch optimizer, or LBFGS, whose step needs a closure.
    """
    if optimizer is None:
        return Rule("gradient descent", 2.0)
    weights = trained_by(optimizer, model)
    ratios = relative_rates(optimizer)
    threshold = stability_threshold(optimizer)
    name = _described(optimizer)
    if threshold.reason is not None:
        reason = threshold.reason.removesuffix(": pass group=")  # a word to that function's callers
        return Rule(name, math.nan, reason=reason)
    group_of = {id(p): i for i, g in enumerate(optimizer.param_groups) for p in g["params"]}
    groups = [group_of[id(p)] for p in weights]
    scale = held = None
    if threshold.preconditioned:
        text = f"{name} must have taken steps (or pass burn_in=)"
        v.require(has_stepped(optimizer), _WHERE, text, "no state")
        try:
            inverse = _inverse(optimizer, weights)
        except NoMetric as error:
            return Rule(name, math.nan, reason=str(error))
        eps = _spread([float(optimizer.param_groups[i].get("eps", 0.0)) for i in groups], weights)
        held = inverse * eps >= 1 / (1 + _ABOUT_EPS)
        scale, name = inverse, f"{name}, its preconditioner held"
    if any(ratio != 1.0 for ratio in ratios):
        relative = _spread([ratios[i] for i in groups], weights)
        scale = relative if scale is None else scale * relative
    alphas = [_in_gradient(optimizer.param_groups[i]) for i in groups]
    decay = _spread(alphas, weights) if any(alphas) else None
    return Rule(name, threshold.k, scale, decay, held)


def own_rate(optimizer: Any) -> float:
    """The learning rate of the first parameter group, which users mean by *the* rate."""
    rate = float(optimizer.param_groups[0]["lr"])
    v.require(rate > 0, _WHERE, "the first parameter group's learning rate must be > 0", rate)
    return rate


def relative_rates(optimizer: Any) -> list[float]:
    """Each group's learning rate over the first group's; all 1 where they are equal.

    Raises:
        ValueError: rates that differ while the first is zero.
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if all(rate == rates[0] for rate in rates):
        return [1.0] * len(rates)
    first = own_rate(optimizer)
    return [rate / first for rate in rates]


def _described(optimizer: Any) -> str:
    group, kind = optimizer.param_groups[0], type(optimizer)
    inner = bare_optimizer(optimizer)
    if inner is not optimizer:
        return f"{kind.__name__} of {_described(inner)}"
    if kind is not torch.optim.SGD:
        return kind.__name__
    if not group["momentum"]:
        return "gradient descent"
    return f"{'Nesterov' if group['nesterov'] else 'heavy ball'}, beta = {group['momentum']:g}"


def _in_gradient(group: dict[str, Any]) -> float:
    """The penalty alpha that the group adds to its gradient; decay outside of it does not count."""
    decoupled = group.get("decoupled_weight_decay")
    return 0.0 if decoupled else float(group.get("weight_decay", 0.0))


def _spread(values: Sequence[float], weights: Sequence[Tensor]) -> Tensor:
    """One value a parameter, repeated over its entries: (P,)."""
    pairs = zip(values, map(as_real, weights), strict=True)
    return torch.cat([torch.full((p.numel(),), x, device=p.device).double() for x, p in pairs])


def trained_by(optimizer: Any, model: nn.Module) -> list[Tensor]:
    """The trainable parameters, which the optimizer must train, and no others.

    Raises: as :func:`rule_of`.
    """
    closure = isinstance(bare_optimizer(optimizer), torch.optim.LBFGS)
    if closure or not isinstance(optimizer, torch.optim.Optimizer):
        text = "optimizer must be None or a torch.optim.Optimizer whose step needs no closure"
        v.fail(_WHERE, text, type(optimizer).__name__, TypeError)
    groups = optimizer.param_groups
    taught = {id(p) for g in groups for p in g["params"] if p.requires_grad}
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    text = "the optimizer must train the model's trainable parameters and no others"
    left = [name for name, p in own.items() if id(p) not in taught]
    v.require(not left, _WHERE, text + " (freeze those it leaves out)", ", ".join(left[:3]))
    foreign = len(taught - {id(p) for p in own.values()})
    v.require(not foreign, _WHERE, text, f"{foreign} of another model")
    maximize = any(g.get("maximize") for g in groups)
    v.require(not maximize, _WHERE, "the optimizer must minimise", "maximize")
    return list(own.values())


def _inverse(optimizer: Any, weights: Sequence[Tensor]) -> Tensor:
    """The diagonal of P^-1 (P,), of the state as it is."""
    optimizer = bare_optimizer(optimizer)
    own = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    parts = step_metric(optimizer, rates, preconditioned=True, weights=[1.0] * len(rates))
    by_parameter = {id(p): part for p, part in zip(own, parts, strict=True)}
    return torch.cat([by_parameter[id(p)].detach().double().reshape(-1) for p in weights])
