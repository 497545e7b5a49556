"""The linear filter that an optimizer applies to its gradients, found with impulses on a copy.

An optimizer step is theta <- theta - lr u.  Where u_t is the sum over j of h_j g_{t-j}, the numbers
h_j are the filter's impulse response, and nothing else about the optimizer matters for stability.
A copy of the optimizer on one 2 x 2 parameter receives an impulse and zero gradients after it.  The
copy's denominators are held constant by an ``eps`` far above any second moment, so that the filter
of Adam's first moment is seen without its second.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_HELD = 1e30  # an eps next to which second moments of unit gradients vanish in float64
_LATE = 10**9  # the step count of a copy: corrections of the first steps have faded
_WARM = 8  # steps with zero gradients, which create the state
_LONGEST = 100_000  # steps after which a response must have decayed
_QUIET = 64  # steps without response that end it
_SILENT = 1e-18  # of the largest response: counts as none
_SAME = 1e-9  # relative difference of two responses that count as equal
_SHOWN = 32  # steps compared where the parameter moves freely
_DECAYS = ("weight_decay", "lambd", "lr_decay")  # set to zero in the copy
_RAW = ("lr", "params", "initial_lr", "max_lr", "min_lr", *_DECAYS)


class NoFilter(Exception):
    """The optimizer applies no linear, time-invariant filter; the text says why."""


@dataclass(frozen=True, eq=False)
class StepFilter:
    """An impulse response.

    Attributes:
        response: (T,) float64, u_t after a unit gradient at t = 0, for a unit preconditioner.
        preconditioned: whether the copy's denominators had to be held constant.
    """

    response: Tensor
    preconditioned: bool

    def at(self, omega: float) -> complex:
        """Q(e^(i omega)) = sum of h_j e^(-i omega j)."""
        lags = torch.arange(len(self.response), dtype=torch.float64, device="cpu")
        angles = -omega * lags
        parts = torch.stack([self.response * angles.cos(), self.response * angles.sin()])
        return complex(*parts.sum(dim=1).tolist())


def settings(group: dict[str, Any]) -> str:
    """Settings that a parameter group's filter may depend on, as text."""
    return repr(sorted((k, repr(value)) for k, value in group.items() if k not in _RAW))


def step_filter(optimizer: Any, index: int) -> StepFilter:
    """The filter of parameter group ``index``.

    Args:
        optimizer: any ``torch.optim.Optimizer``; neither it nor its parameters are touched.
        index: index of the group.

    Raises:
        NoFilter: the steps are no linear time-invariant function of the gradients.

    Cost:
        Two or three responses of the copy, each about 37 / (1 - beta) steps of 20 microseconds for
        a slowest pole beta.
    """
    group = optimizer.param_groups[index]
    if group.get("maximize"):
        raise NoFilter("the optimizer ascends (maximize=True)")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise NoFilter("LBFGS calls its closure more than once for a step")
    try:
        return _probed(optimizer, index, group)
    except NoFilter:
        raise
    except Exception as error:  # a user's class may refuse the copy's shapes or state
        kind = type(error).__name__
        raise NoFilter(f"a copy cannot be probed ({kind}: {error})") from error


def _probed(optimizer: Any, index: int, group: dict[str, Any]) -> StepFilter:
    eps = group.get("eps")
    adaptive = isinstance(eps, (int, float)) and not isinstance(eps, bool)
    if not adaptive:
        return StepFilter(_response(_Copy(optimizer, index)), preconditioned=False)
    _require_separate_entries(optimizer, index)
    held = _response(_Copy(optimizer, index, eps=_HELD))
    other = _Copy(optimizer, index, eps=_HELD * 1e4)
    first = next(u for u in other.responses(1.0, len(held)) if u)
    lead = float(held[held != 0][0])
    # the steps scale with eps to this power: -1 for sqrt(v) + eps, -1/2 for sqrt(v + eps), 0 where
    # eps cancels; corrections of the first steps are far below the ratio 10^4 of the two eps
    power = round(2 * math.log10(abs(first / lead)) / 4) / 2
    return StepFilter(held * _HELD ** (-power), preconditioned=True)


def _require_separate_entries(optimizer: Any, index: int) -> None:
    """An entry of the step may depend on its own gradients only."""
    steps = []
    for other in (1.0, 3.0):
        probe = _Copy(optimizer, index, late=False)
        gradient = torch.tensor([[1.0, 0.5], [-0.3, other]], dtype=torch.float64, device="cpu")
        steps.append([probe.step(gradient)[0, 0].item() for _ in range(3)])
    for one, two in zip(*steps, strict=True):
        if abs(one - two) > _SAME * abs(one):
            raise NoFilter("its preconditioner is not diagonal: entries of a step are coupled")


def _response(probe: _Copy) -> Tensor:
    """The settled impulse response, its linearity and time invariance checked."""
    first = probe.response(1.0)
    second = probe.response(-0.5)
    if not _equal(first, -2 * second):
        third = probe.response(1.0)
        if not _equal(third, -2 * second):
            text = "its steps are not linear in the gradients"
            raise NoFilter(text if _equal(third, first) else text + ", or change with time")
        first = third
    free = [
        u for u, _ in zip(probe.responses(1.0, _SHOWN, reset=False), range(_SHOWN), strict=True)
    ]
    if not _equal(torch.tensor(free, dtype=torch.float64, device="cpu"), first[:_SHOWN]):
        raise NoFilter("its steps depend on the parameters, not on the gradients alone")
    return first


def _equal(one: Tensor, two: Tensor) -> bool:
    size = max(len(one), len(two))
    a, b = (torch.nn.functional.pad(t, (0, size - len(t))) for t in (one, two))
    return bool((a - b).abs().max() <= _SAME * b.abs().max())


class _Copy:
    """A copy of an optimizer with one group, one float64 parameter (2, 2) at zero, and no hooks."""

    def __init__(self, optimizer: Any, index: int, *, eps: float | None = None, late: bool = True):
        self._late = late
        self.weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64, device="cpu"))
        own = {
            k: copy.deepcopy(v) for k, v in optimizer.param_groups[index].items() if k != "params"
        }
        changed: dict[str, Any] = {"lr": 1.0, "capturable": False, "fused": None, "foreach": False}
        changed |= dict.fromkeys(_DECAYS, 0.0)
        if eps is not None:
            changed["eps"] = eps
        own |= {key: value for key, value in changed.items() if key in own}
        groups = [{"params": [self.weight], **own}]
        state: dict[Any, Any] = defaultdict(dict)
        # parameters and the containers made above stand in for the original's in every attribute
        memo: dict[int, Any] = {id(optimizer.param_groups): groups, id(optimizer.state): state}
        memo |= {id(p): self.weight for g in optimizer.param_groups for p in g["params"]}
        self.optimizer = object.__new__(type(optimizer))
        for name, value in vars(optimizer).items():
            if name.endswith("hooks"):
                self.optimizer.__dict__[name] = OrderedDict()
            elif name not in ("step", "zero_grad"):  # schedulers wrap the original's
                self.optimizer.__dict__[name] = copy.deepcopy(value, memo)
        for _ in range(_WARM):
            self._warm()

    def _warm(self) -> None:
        self.step(torch.zeros_like(self.weight))
        if not self._late:
            return
        for state in self.optimizer.state.values():
            count = state.get("step") if isinstance(state, dict) else None
            if isinstance(count, Tensor):
                count.fill_(_LATE)
            elif isinstance(count, int):
                state["step"] = _LATE

    @torch.no_grad()
    def step(self, gradient: Tensor, *, reset: bool = True) -> Tensor:
        """The step u, (2, 2); the parameter then returns to zero where ``reset``."""
        before = self.weight.detach().clone()
        self.weight.grad = gradient.clone()
        self.optimizer.step()
        change = before - self.weight
        if reset:
            self.weight.zero_()
        return change

    def responses(self, size: float, count: int, *, reset: bool = True) -> Any:
        """The steps at the parameter's first entry, step by step, after an impulse of ``size``."""
        impulse = torch.full_like(self.weight, size)
        silence = torch.zeros_like(impulse)
        for t in range(count):
            yield self.step(silence if t else impulse, reset=reset)[0, 0].item()

    def response(self, size: float) -> Tensor:
        """All of it, until nothing follows."""
        found: list[float] = []
        largest, last = 0.0, 0
        for t, u in enumerate(self.responses(size, _LONGEST)):
            found.append(u)
            largest = max(largest, abs(u))
            if not largest < float("inf"):
                raise NoFilter("its response to an impulse is not finite")
            if abs(u) > _SILENT * largest:
                last = t
            elif t - last >= _QUIET:
                break
        else:
            raise NoFilter(f"its response to an impulse lasts for more than {_LONGEST} steps")
        if not largest:
            raise NoFilter("it does not answer an impulse")
        return torch.tensor(found[: last + 1], dtype=torch.float64, device="cpu")
