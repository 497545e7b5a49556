"""Curvature as an adaptive optimizer sees it: P^-1/2 A P^-1/2, P from the optimizer's state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext._module_copy import unwrapped
from catapult_ext._progress import Progress
from catapult_ext.linops.base import LinearOperator

_STATES = {
    torch.optim.Adam: "exp_avg_sq",
    torch.optim.AdamW: "exp_avg_sq",
    torch.optim.NAdam: "exp_avg_sq",
    torch.optim.RMSprop: "square_avg",
    torch.optim.Adagrad: "sum",
}


class Preconditioned(LinearOperator):
    """P^-1/2 A P^-1/2, (P, P): symmetric, with the spectrum of P^-1 A.

    Its top eigenvalue is compared with 2 / eta in adaptive gradient methods (Cohen et al. 2022,
    "Adaptive Gradient Methods at the Edge of Stability", who add Adam's momentum factor (1 + beta1)
    / (1 - beta1)).

    Args:
        operator: Hessian, GGN or a combination of them, of ``model``'s trainable parameters.
        optimizer: Adam, AdamW, NAdam, RMSprop or Adagrad that has taken steps on ``model``, or a
            wrapper of such an optimizer (by accelerate, which Trainer uses, Lightning or opacus).
            Groups may differ in any setting: eta is the largest learning rate, and P^-1 of a group
            is multiplied by its own rate over eta. A parameter that never had a gradient does not
            move: its P^-1 is 0.
        model: the module from which the operator was made.

    Raises:
        TypeError: another optimizer.
        ValueError: a parameter without state that has a gradient or that the optimizer does not
            train, an operator of another size.

    Examples:
        >>> net, data = nn.Linear(3, 2), (torch.randn(8, 3), torch.randn(8, 2))
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        >>> nn.functional.mse_loss(net(data[0]), data[1]).backward()
        >>> optimizer.step()
        >>> A = cx.Preconditioned(cx.GGN(net, "mse", data), optimizer, net)
        >>> threshold = cx.stability_threshold(optimizer)
        >>> bool(1e-3 * cx.eigsh(A).eigenvalues[0] < threshold.k)  # this step size is stable here
        True
    """

    name = "Preconditioned"

    def __init__(self, operator: LinearOperator, optimizer: Any, model: nn.Module) -> None:
        names = operator.parameter_names
        inverse = inverse_preconditioner(optimizer, model, names, self.name)
        self._set_up(operator, inverse * relative_rates(optimizer, model, names))

    @classmethod
    def by(cls, operator: LinearOperator, inverse: Tensor) -> Preconditioned:
        """The preconditioned operator for a given diagonal of P^-1, (P,)."""
        return cls._of(operator, inverse)

    def _set_up(self, operator: LinearOperator, inverse: Tensor) -> None:
        fits = tuple(operator.shape) == (len(inverse),) * 2
        text = f"the operator must be over all {len(inverse)} preconditioned parameters"
        v.require(fits, self.name, text, tuple(operator.shape))
        self.operator, self.columns = operator, operator.columns
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device
        self._root = inverse.detach().to(operator.device, operator.dtype).sqrt()[:, None]

    @property
    def parameter_names(self) -> tuple[str, ...] | None:
        """Parameter names of the operator inside."""
        return self.operator.parameter_names

    @property
    def parameter_shapes(self) -> tuple[torch.Size, ...] | None:
        """Parameter shapes of the operator inside."""
        return self.operator.parameter_shapes

    @property
    def rounding_unit(self) -> float:
        """``rounding_unit`` of the operator inside."""
        return self.operator.rounding_unit

    def _matmat(self, vectors: Tensor) -> Tensor:
        return self._root * self.operator._product(self._root * vectors)

    @property
    def skew_is_rounding(self) -> bool:
        """Whether this holds for the inner operator."""
        return self.operator.skew_is_rounding

    def dense(self, *, progress: Progress = None) -> Tensor:
        """The matrix (P, P); ``progress`` is that of the operator inside."""
        return self._root * self.operator.dense(progress=progress) * self._root.T

    def diagonal(self) -> Tensor:
        """The diagonal (P,)."""
        return self._root[:, 0].square() * self.operator.diagonal()


def inverse_preconditioner(
    optimizer: Any,
    model: nn.Module,
    names: Sequence[str] | None = None,
    where: str = "Preconditioned",
    hint: str = "",
) -> Tensor:
    """Diagonal of P^-1, (P,): 1 / (sqrt(v) + eps), v the optimizer's (corrected) second moment.

    Args:
        optimizer: see :class:`Preconditioned`; rates of groups are not looked at.
        model: whose parameters it trains.
        names: names of the parameters to take, in order; None: all trainable ones.
        where: the public function named in errors.
        hint: another way out, added to the error for an optimizer that has taken no steps.
    """
    given, optimizer = type(optimizer).__name__, bare_optimizer(optimizer)
    kind = type(optimizer)
    if kind not in _STATES:
        known = ", ".join(k.__name__ for k in _STATES)
        v.fail(where, f"optimizer must be one of {known}, or wrap one", given, TypeError)
    parts, untouched = [], []
    for name, p, group in _trained(optimizer, model, names, where):
        key = "max_exp_avg_sq" if group.get("amsgrad") else _STATES[kind]
        state = optimizer.state.get(p, {})
        # Adagrad starts with a filled state; its step tells whether one was taken
        if key in state and float(state.get("step", 1)) > 0:
            second = _root_of(state, group, key) + float(group["eps"])
            parts.append(second.reciprocal().reshape(-1))
        else:
            untouched.append((name, p))
            parts.append(p.detach().new_zeros(p.numel()))
    # the loss does not depend on parameters that others have left behind
    missing = [n for n, p in untouched if p.grad is not None or len(untouched) == len(parts)]
    v.require(
        not missing,
        where,
        f"{kind.__name__} must have taken steps{hint}",
        f"no state for {', '.join(missing[:1])}",
    )
    return torch.cat(parts).detach()


def bare_optimizer(optimizer: Any) -> Any:
    """The torch optimizer inside wrappers of accelerate, Lightning and opacus."""
    seen: set[int] = set()
    while type(optimizer) not in _STATES and id(optimizer) not in seen:
        seen.add(id(optimizer))
        inner = getattr(optimizer, "optimizer", getattr(optimizer, "original_optimizer", None))
        if not isinstance(inner, torch.optim.Optimizer):
            break
        optimizer = inner
    return optimizer


def relative_rates(
    optimizer: Any, model: nn.Module, names: Sequence[str] | None = None
) -> Tensor | float:
    """Learning rates of the parameters' groups over the largest of them, (P,); 1 for one rate."""
    trained = _trained(bare_optimizer(optimizer), model, names, "Preconditioned")
    rates = [float(group["lr"]) for _, _, group in trained]
    largest = max(rates)
    if largest <= 0 or min(rates) == largest:  # a warm-up starts at zero
        return 1.0
    return torch.cat(
        [
            torch.full((p.numel(),), rate / largest, dtype=p.dtype, device=p.device)
            for rate, (_, p, _) in zip(rates, trained, strict=True)
        ]
    )


def _trained(
    optimizer: Any, model: nn.Module, names: Sequence[str] | None, where: str
) -> list[tuple[str, nn.Parameter, dict[str, Any]]]:
    """Names, parameters and their groups, in order."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    own = dict(unwrapped(model).named_parameters())
    chosen = [n for n, p in own.items() if p.requires_grad] if names is None else names
    for name in chosen:
        v.require(name in own, where, "parameters must be the model's", name)
        trains = "the optimizer must train all parameters of the operator (pass params= to it)"
        v.require(id(own[name]) in groups, where, trains, f"{name} in none of its groups")
    return [(name, own[name], groups[id(own[name])]) for name in chosen]


def _root_of(state: dict[str, Any], group: dict[str, Any], key: str) -> Tensor:
    second = state[key]
    if second.is_complex():  # of the real and of the imaginary part
        second = torch.view_as_real(second)
    if "betas" in group:
        second = second / (1 - float(group["betas"][1]) ** float(state["step"]))
    if group.get("centered"):
        second = (second - state["grad_avg"].square()).clamp_min(0)
    return second.sqrt()
