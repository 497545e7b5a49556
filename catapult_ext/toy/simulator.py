"""Runs a task of ``toy.simulate`` by fused kernels or batched torch, in chunks of replicas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from catapult_ext import _validate, ops
from catapult_ext._progress import Counter
from catapult_ext.toy.direct import descend
from catapult_ext.toy.initial_states import InitialStates
from catapult_ext.toy.maps import state_of
from catapult_ext.toy.network import Network
from catapult_ext.toy.problem import Data
from catapult_ext.toy.rules import Rule, Schedule
from catapult_ext.toy.task import Record, Task

FUSED_CHUNK_BYTES = 1 << 27  # of replicated state at a time, for the fused kernels
# With an activation: the curvature's N x N matrix is for LAPACK beyond, and on CUDA N sums for each
# warp no longer fit its shared memory.
MOST_SAMPLES = 1024
_REPORTS = 20  # of progress by fused kernels, of some replicas each
TORCH_CHUNK_BYTES = 1 << 24  # of state and temporaries, for the batched engine: about a cache


@dataclass(frozen=True)
class Simulator:
    """Runs a task from ``start`` in one form: "direct", "reduced" or "scalar"."""

    form: str
    network: Network
    start: InitialStates

    def run(self, task: Task, counter: Counter | None = None) -> Record:
        """One record of all replicas; their steps are counted."""
        counter = Counter(None, 0) if counter is None else counter
        fused = task.rule.is_plain and task.only_basics and self._native(task.data)
        run = self._scalar if self.form == "scalar" else self._fused if fused else self._torch
        size, replicas = self._chunk(task, in_torch=run == self._torch), len(task.rule.eta)
        if counter.wanted and run != self._torch:
            size = min(size, -(-replicas // _REPORTS))
        records = []
        for i, j in _parts(replicas, size):
            records.append(run(task.rows(i, j), i, j, counter))
            counter.at(j * task.schedule.steps)
        return Record.join(records)

    def _native(self, data: Data) -> bool:
        """Whether the network on these data is for the fused kernels."""
        return self.network.linear or len(data.x) <= MOST_SAMPLES

    def top(self, data: Data) -> Tensor:
        """(count,) curvature of the initial states, float64."""
        exact = Data(data.x.double(), data.y.double())
        zero = exact.y.new_zeros(self.start.count)
        top = self.run(Task(exact, Rule(zero[:, None] + 1, zero, zero), Schedule(0))).curvature[
            :, 0
        ]
        if not bool((top > 0).all()):
            need = "rates given as c need a positive initial curvature"
            _validate.fail("toy.simulate", need, float(top.min()))
        return top

    def _chunk(self, task: Task, in_torch: bool) -> int:
        """Replicas at a time, for a bounded memory."""
        samples, inputs = task.data.x.shape
        entries: float
        if self.form == "scalar":
            entries, budget = 8 + 6 * (task.schedule.steps // _stride(task) + 1), FUSED_CHUNK_BYTES
        else:
            rows = self.network.width if self.form == "direct" else inputs + 1
            entries, budget = rows * (inputs + 1), FUSED_CHUNK_BYTES
            if in_torch:
                wide = 0 if self.network.linear else samples
                entries, budget = rows * 3 * (inputs + wide + 1), TORCH_CHUNK_BYTES
        return max(1, int(budget // (entries * task.data.x.element_size())))

    def _torch(self, task: Task, first: int, last: int, counter: Counter) -> Record:
        U, v = self.start.rows(first, last, task.data.x)
        return descend(self.network, U, v, task, lambda: counter.add(last - first))

    def _fused(self, task: Task, first: int, last: int, _: Counter) -> Record:
        (x, y), (steps, record_every, curvature_every) = task.data, task.schedule
        state = self.start.rows(first, last, x, reduced=self.form == "reduced")
        eta = task.rule.eta[:, 0].contiguous()
        strides = {"record_every": record_every, "curvature_every": curvature_every}
        if self.form == "reduced":
            w, S, q = state
            return Record.basic(
                *ops.toy_gd_reduced(w, S, q, x, y, eta, self.network.width, steps, **strides)
            )
        U, v = state
        name = self.network.phi.name
        return Record.basic(*ops.toy_gd(U, v, x, y, eta, steps, activation=name, **strides))

    def _scalar(self, task: Task, first: int, last: int, _: Counter) -> Record:
        """One sample, x (1, 1) in its own direction: the map of ``ops.toy_scalar``."""
        x, y = (part.double().flatten() for part in task.data)
        eta, root = task.rule.eta[:, 0].double(), self.network.width**0.5
        w, S, q = (part.flatten() for part in self.start.rows(first, last, x, reduced=True))
        unit = eta * x.abs() / root  # a = unit (f - y)
        h, k = state_of(unit.square() / eta * (S + q), unit * x * w / root)
        end = ops.toy_scalar(
            h.to(task.data.x),
            k.to(task.data.x),
            task.schedule.steps,
            b=(unit * y).to(task.data.x),
            beta=task.rule.momentum if bool(task.rule.momentum.any()) else None,
            record_every=_stride(task),
        )
        residual, v = (part.double() for part in (end.record_a / unit[:, None], end.record_v))
        record, curvature = (every // _stride(task) for every in task.schedule[1:])
        loss = residual[:, ::record].square() / 2
        norm = (v[:, ::record] * (eta / unit.square())[:, None]).sqrt()
        top = v[:, ::curvature] / eta[:, None]
        loss, norm, top = (part.to(task.data.x) for part in (loss, norm, top))
        return Record.basic(loss, norm, end.diverged_at, top)


def _stride(task: Task) -> int:
    """Common stride of the records of a kernel that has only one."""
    return math.gcd(task.schedule.record_every, task.schedule.curvature_every)


def _parts(count: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(0, count, size):
        yield first, min(first + size, count)
