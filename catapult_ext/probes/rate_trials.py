"""Trials: short trainings of copies at one rate, and the search for the largest that works."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import training
from catapult_ext._module_copy import own_copy
from catapult_ext._progress import Counter
from catapult_ext._shown import Shown
from catapult_ext.linops.preconditioned import bare_optimizer
from catapult_ext.probes.observables import activity, hidden_width
from catapult_ext.probes.phases import divergence_cut, is_dead
from catapult_ext.probes.problem import Problem
from catapult_ext.probes.problem_descent import loss_of, steps
from catapult_ext.probes.stability import relative_rates


@dataclass(frozen=True, eq=False, repr=False)
class Trial(Shown, saved=True):
    """One short training.

    Attributes:
        rate: learning rate of the first parameter group.
        steps: made; fewer than asked for where the run diverged.
        end: loss at the end over that at the start.
        failure: why the rate does not train; None where it does.
    """

    rate: float
    steps: int
    end: float
    failure: str | None

    def _line(self) -> str:
        said = "trained" if self.failure is None else f"did not train: {self.failure}"
        return f"rate {self.rate:.4g} {said} ({self.steps} steps, loss x{self.end:.3g})"


@dataclass(frozen=True, eq=False)
class Ended:
    """Where the trial at ``rate`` ended."""

    rate: float
    model: nn.Module
    optimizer: Any


class Trials:
    """Trains copies of ``model`` on one batch from the same start, at rates of one's choice.

    A rate fails if the loss passes the divergence cut or ends no lower than it began, or if a layer
    dies (:class:`~catapult_ext.probes.Verdict`).

    Args:
        model: left as it is.
        problem: loss and data.
        optimizer: whose steps are made, from its present state; None for gradient descent.
        origin: the model that ``optimizer`` trains, of which ``model`` is a copy, or itself.
        lambda0: top curvature at the start, for the cut.
        counter: counter of the steps.

    Attributes:
        steps: made in all trials.
        done: the trials, in order.
        best: where the largest rate that trained ended; None without one.
    """

    def __init__(
        self,
        model: nn.Module,
        problem: Problem,
        optimizer: Any,
        origin: nn.Module,
        lambda0: float,
        counter: Counter | None = None,
    ) -> None:
        self._model, self._problem, self._origin = model, problem, origin
        self._optimizer = optimizer
        self._start = loss_of(own_copy(model), problem)
        self._cut = divergence_cut(self._start, hidden_width(model), lambda0)
        self._counter = Counter(None, 0) if counter is None else counter
        self.steps = 0
        self.done: list[Trial] = []
        self.best: Ended | None = None

    def __call__(self, rate: float, count: int, patience: int = 1) -> Trial:
        """Train for ``count`` steps at ``rate``, at most ``patience`` times as long.

        A run that is alive with a loss above its start, as in a catapult, is continued.
        """
        moved = own_copy(self._model)
        optimizer = optimizer_of_copy(self._optimizer, self._origin, moved, rate)
        for step in steps(moved, self._problem, optimizer, count * patience, self._cut):
            last = step
            self._counter.at(self.steps + step.number)
            over = step.number and step.number % count == 0
            if over and (step.loss < self._start or self._dead(moved)):
                break
        self.steps += last.number
        trial = Trial(rate, last.number, last.loss / self._start, self._why(last, moved))
        self.done.append(trial)
        if trial.failure is None and (self.best is None or rate > self.best.rate):
            self.best = Ended(rate, moved, optimizer)
        return trial

    def _why(self, last: training.Step, moved: nn.Module) -> str | None:
        if last.diverged:
            return "diverged"
        if self._dead(moved):
            return "a layer is dead"
        return None if last.loss < self._start else "the loss ends no lower than it began"

    def _dead(self, moved: nn.Module) -> bool:
        active = activity(moved, self._problem.x, self._problem.outputs)[1]
        return active is not None and is_dead(active.worst_inactive)

    def fails(self, count: int, patience: int = 1) -> Callable[[float], bool]:
        """A function of the rate: whether its trial fails."""
        return lambda rate: self(rate, count, patience).failure is not None


def optimizer_of_copy(optimizer: Any, old: nn.Module, new: nn.Module, rate: float | None) -> Any:
    """The same optimizer with the same state on the weights of ``new``, a copy of ``old``.

    Args:
        optimizer: an optimizer of any class; None: gradient descent.
        old: the model it trains.
        new: the copy.
        rate: rate of the first group, the others keep their ratio to it; None: as they are.
    """
    weights = training.moved(new)
    if optimizer is None:
        return torch.optim.SGD(weights, lr=1.0 if rate is None else rate)
    out = _copied(optimizer, training.moved(old), weights)
    if rate is not None:
        pairs = zip(out.param_groups, relative_rates(optimizer), strict=True)
        for group, ratio in pairs:
            held = group["lr"]
            group["lr"] = (
                torch.full_like(held, rate * ratio) if isinstance(held, Tensor) else rate * ratio
            )
    return out


def optimizer_of_chosen(optimizer: Any, old: nn.Module, new: nn.Module) -> Any:
    """The same optimizer with the same state on the trainable weights of ``new``, and no others.

    Groups that train none of them are left out.

    Args:
        optimizer: an optimizer of any class.
        old: the model it trains.
        new: a copy, of which fewer weights are trainable.
    """
    out = _copied(optimizer, list(old.parameters()), list(new.parameters()))
    bare = bare_optimizer(out)
    for group in bare.param_groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
    bare.param_groups[:] = [group for group in bare.param_groups if group["params"]]
    kept = {id(p) for group in bare.param_groups for p in group["params"]}
    for p in [p for p in bare.state if isinstance(p, Tensor) and id(p) not in kept]:
        del bare.state[p]
    return out


def _copied(optimizer: Any, old: Sequence[Tensor], new: Sequence[Tensor]) -> Any:
    memo: dict[int, Any] = {id(o): n for o, n in zip(old, new, strict=True)}
    out = object.__new__(type(optimizer))
    for name, value in vars(optimizer).items():
        if name.endswith("hooks"):
            out.__dict__[name] = OrderedDict()
        elif name not in ("step", "zero_grad"):  # schedulers wrap the original's
            out.__dict__[name] = copy.deepcopy(value, memo)
    return out
