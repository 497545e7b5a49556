"""How the replicas of a simulation move, on which samples, for how long, and what is recorded."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from catapult_ext import _validate


class Batches(NamedTuple):
    """Mini-batches without replacement, reshuffled every epoch; a function of seed and step only.

    Attributes:
        samples: N.
        size: samples per batch; what an epoch leaves over is left out.
        seeds: one for all replicas, or one each.
    """

    samples: int
    size: int
    seeds: list[int]

    def rows(self, first: int, last: int) -> Batches:
        """Batches of the replicas first .. last - 1."""
        return self if len(self.seeds) == 1 else self._replace(seeds=self.seeds[first:last])

    def weights(self, t: int) -> Tensor:
        """(len(seeds), N) float64: N / size for the samples of step t, 0 for the others."""
        epoch, part = divmod(t, self.samples // self.size)
        out = torch.zeros(len(self.seeds), self.samples, dtype=torch.float64, device="cpu")
        for row, seed in zip(out, self.seeds, strict=True):
            order = np.random.default_rng([seed, 1, epoch]).permutation(self.samples)
            row[order[part * self.size : (part + 1) * self.size]] = self.samples / self.size
        return out


class Rule(NamedTuple):
    """How R replicas move: m = momentum m - eta (gradient + decay weights), weights += m.

    Attributes:
        eta: (R, steps), or (R, 1) for constant rates.
        momentum: (R,).
        decay: (R,) weight of |U|^2 / 2 + |v|^2 / 2 in the loss.
        batches: draws the samples of a step, None for all of them.
    """

    eta: Tensor
    momentum: Tensor
    decay: Tensor
    batches: Batches | None = None

    @property
    def is_steady(self) -> bool:
        """Full batch, constant rate, no L2: the same map at every step."""
        return self.eta.shape[1] == 1 and self.batches is None and not bool(self.decay.any())

    @property
    def is_plain(self) -> bool:
        """Full-batch gradient descent at a constant rate, nothing else."""
        return self.is_steady and not bool(self.momentum.any())

    def at(self, t: int) -> Tensor:
        """(R,) rates of step t, beyond the last step those of the last."""
        return self.eta[:, min(t, self.eta.shape[1] - 1)]

    def to(self, like: Tensor) -> Rule:
        """In the dtype and on the device of ``like``."""
        eta, momentum, decay = (part.to(like) for part in (self.eta, self.momentum, self.decay))
        return Rule(eta, momentum, decay, self.batches)

    def rows(self, first: int, last: int) -> Rule:
        """Rule of the replicas first .. last - 1."""
        batches = None if self.batches is None else self.batches.rows(first, last)
        part = slice(first, last)
        return Rule(self.eta[part], self.momentum[part], self.decay[part], batches)


class Schedule(NamedTuple):
    """Number of steps, and strides of the records."""

    steps: int
    record_every: int = 1
    curvature_every: int = 1


class Stop(NamedTuple):
    """Conditions that stop a replica early; its later records then repeat the last values.

    Attributes:
        converged: the replica stops before a step that would lower the loss by less than this
            fraction of the initial loss, to first order: eta |gradient|^2 <= converged * loss_0
            (the gradient is that of the step, including mini-batch and L2). None: never.
        diverged: loss above which it has diverged. None: the rule of ``ops.toy_gd``, which no
            bounded run reaches, at any width.

    Examples:
        >>> stop = cx.toy.Stop(converged=1e-6)
        >>> x, y = torch.ones(1, 1), torch.zeros(1)
        >>> runs = cx.toy.simulate(c=[1.0], width=4096, x=x, y=y, steps=500, stop=stop)
        >>> int(runs.converged_at[0]) < 500
        True
    """

    converged: float | None = None
    diverged: float | None = None


class Observe(NamedTuple):
    """Names out of ``observables.OBSERVABLES``, and how many kernel directions k to follow."""

    names: tuple[str, ...] = ()
    k: int = 1


def check_stop(where: str, stop: Stop | None) -> Stop:
    """The rules, or those that never stop anything early."""
    if stop is None:
        return Stop()
    if not isinstance(stop, Stop):
        _validate.fail(where, "stop must be a toy.Stop", type(stop).__name__, TypeError)
    for name, value in stop._asdict().items():
        ok = value is None or value > 0
        _validate.require(ok, where, f"stop.{name} must be positive", value)
    return stop
