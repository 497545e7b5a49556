"""A simulation as every form takes it, and the record that every form returns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from catapult_ext.toy.problem import Data
from catapult_ext.toy.rules import Observe, Rule, Schedule, Stop


class Task(NamedTuple):
    """The simulation, except where it starts; ``rule`` says for how many replicas."""

    data: Data
    rule: Rule
    schedule: Schedule
    test: Data | None = None
    stop: Stop = Stop()
    observe: Observe = Observe()

    @property
    def only_basics(self) -> bool:
        """Loss, weight norm and curvature over all steps: what the fused kernels record."""
        return self.test is None and self.stop == Stop() and not self.observe.names

    def rows(self, first: int, last: int) -> Task:
        """Task of the replicas first .. last - 1."""
        return self._replace(rule=self.rule.rows(first, last))


class Record(NamedTuple):
    """Records that every engine makes of R replicas; see ``ops.ToyRecord``.

    Attributes:
        loss: (R, M).
        weight_norm: (R, M).
        diverged_at: (R,) int64, -1 for none.
        curvature: (R, C).
        test_loss: (R, M), or (R, 0).
        converged_at: (R,) int64, -1 for none.
        observed: name -> (R, C) or (R, C, k).
    """

    loss: Tensor
    weight_norm: Tensor
    diverged_at: Tensor
    curvature: Tensor
    test_loss: Tensor
    converged_at: Tensor
    observed: dict[str, Tensor]

    @staticmethod
    def basic(loss: Tensor, norm: Tensor, diverged_at: Tensor, curvature: Tensor) -> Record:
        """Record of an engine that records nothing else."""
        nothing = loss.new_empty(len(loss), 0)
        never = torch.full_like(diverged_at, -1)
        return Record(loss, norm, diverged_at, curvature, nothing, never, {})

    @staticmethod
    def join(parts: list[Record]) -> Record:
        """One record of all replicas."""
        *columns, observed = zip(*parts, strict=True)
        joined = {name: torch.cat([part[name] for part in observed]) for name in observed[0]}
        loss, norm, diverged, top, test, converged = (torch.cat(column) for column in columns)
        return Record(loss, norm, diverged, top, test, converged, joined)
