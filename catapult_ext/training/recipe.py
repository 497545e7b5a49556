"""How a run trains, apart from its learning rate and seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext.training.batches import Augmentation
from catapult_ext.training.loop import Descent, TorchSteps


def probe_schedule(steps: int, factor: float) -> tuple[int, ...]:
    """Steps 0, 1, then growing by ``factor`` (at least by one), and the last one.

    With an infinite factor the first and the last one alone.

    Examples:
        >>> from catapult_ext.training import probe_schedule
        >>> probe_schedule(20, 2.0)
        (0, 1, 2, 4, 8, 16, 20)
    """
    if math.isinf(factor):
        return (0, steps)
    found = [0]
    while found[-1] < steps:
        found.append(min(steps, max(found[-1] + 1, math.ceil(found[-1] * factor))))
    return tuple(found)


@dataclass(frozen=True)
class Recipe:
    """How runs train, apart from their learning rate and seed.

    Attributes:
        steps: gradient steps at the learning rate (give this or ``time``).
        time: physical time eta * t instead: ceil(time / eta) steps.
        batch: samples of a step, drawn without replacement every epoch; None for all.
        momentum: heavy-ball factor beta in [0, 1): v <- beta v + g, theta <- theta - eta v.
        l2: alpha of the penalty alpha/2 |theta|^2; thresholds then use lambda + alpha.
        optimizer: ``optimizer(parameters, eta)`` returns one of torch, such as
            ``lambda p, eta: torch.optim.AdamW(p, lr=eta)``, instead of momentum and l2; None for
            gradient descent.
        final_rate: learning rate of a last stage that all runs share; None for no such stage.
        final_steps: its steps.
        augment: random crops and flips of every batch (``data.Augment``).
        probe_times: values of eta * t at which curvature and accuracies are also read.
        probe_factor: they are read at steps 0, 1 and steps growing by this factor; ``math.inf``
            for the first and last step alone.
        probe_every: they are also read at multiples of this number of steps; None for none.
        probe_samples: curvature uses at most this number of training samples, the first ones;
            None for all.
        probes: whether anything is measured along the way; without, only losses are kept.
        batch_stats: treatment of batch normalisation in the curvature, ``models.BATCH_STATS``; None
            measures everything on the model as it is.
        tol: relative tolerance of the curvature.
        top: eigenvectors of the initial kernel whose share in the residual is followed (full
            batch only); 0 for none.

    Examples:
        >>> from catapult_ext.training import Recipe
        >>> Recipe(steps=100, batch=32, momentum=0.9).momentum
        0.9
    """

    steps: int | None = None
    time: float | None = None
    batch: int | None = None
    momentum: float = 0.0
    l2: float = 0.0
    final_rate: float | None = None
    final_steps: int = 0
    augment: Augmentation | None = None
    probe_times: tuple[float, ...] = ()
    probe_factor: float = 2.0
    probe_every: int | None = None
    probe_samples: int | None = None
    probes: bool = True
    batch_stats: str | None = "coupled"
    tol: float = 1e-3
    top: int = 0
    optimizer: Callable[[list[Tensor], float], torch.optim.Optimizer] | None = None

    def __post_init__(self) -> None:
        where = "experiments.Recipe"
        given = (self.steps is None) != (self.time is None)
        v.require(given, where, "give either steps or time", (self.steps, self.time))
        v.require(self.steps is None or self.steps >= 1, where, "steps must be >= 1", self.steps)
        ok = self.time is None or (math.isfinite(self.time) and self.time > 0)
        v.require(ok, where, "time must be finite and > 0", self.time)
        v.require(self.batch is None or self.batch >= 1, where, "batch must be >= 1", self.batch)
        v.require(0 <= self.momentum < 1, where, "momentum must be in [0, 1)", self.momentum)
        v.require(self.l2 >= 0, where, "l2 must be >= 0", self.l2)
        own = self.optimizer is None or (self.momentum == 0 and self.l2 == 0)
        text = "momentum and l2 must be 0 beside optimizer, which has its own"
        v.require(own, where, text, (self.momentum, self.l2))
        ok = (self.final_rate is None) == (self.final_steps == 0)
        v.require(ok, where, "final_rate and final_steps go together", self.final_steps)
        ok = self.probe_every is None or self.probe_every >= 1
        v.require(ok, where, "probe_every must be >= 1", self.probe_every)
        v.require(self.probe_factor > 1, where, "probe_factor must be > 1", self.probe_factor)
        ok = self.top == 0 or (self.batch is None and self.augment is None)
        v.require(ok, where, "top needs full-batch steps without augmentation", self.top)

    def mover(self, weights: list[Tensor], eta: float) -> Descent | TorchSteps:
        """Stepper of a run at ``eta``, whose attribute ``rate`` is the learning rate."""
        if self.optimizer is None:
            return Descent(weights, eta, self.momentum, self.l2)
        made = self.optimizer(weights, eta)
        if not isinstance(made, torch.optim.Optimizer):
            kind = type(made).__name__
            text = "optimizer must return a torch.optim.Optimizer"
            v.fail("experiments.Recipe", text, kind, TypeError)
        return TorchSteps(weights, made)

    def steps_at(self, eta: float) -> int:
        """Steps of the first stage at ``eta``."""
        if self.steps is not None:
            return self.steps
        assert self.time is not None
        return max(1, math.ceil(self.time / eta - 1e-9))

    def probe_steps(self, eta: float) -> dict[int, str]:
        """When everything is measured, and why: ``schedule``, ``time``, ``end`` or ``final``."""
        if not self.probes:
            return {}
        last = self.steps_at(eta)
        found = dict.fromkeys(probe_schedule(last, self.probe_factor), "schedule")
        if self.probe_every is not None:
            found |= dict.fromkeys(range(0, last, self.probe_every), "schedule")
        for time in self.probe_times:
            found[min(last, math.ceil(time / eta - 1e-9))] = "time"
        found[last] = "end"
        if self.final_steps:
            found[last + self.final_steps] = "final"
        return found
