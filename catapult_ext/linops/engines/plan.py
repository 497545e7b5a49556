"""What an operator will cost, known before it runs: engine, chunks, flops, bytes, peak memory.

The costs come from the model itself: one or two samples go through set-up and product under a
:class:`~catapult_ext.linops.model.memory_meter.Meter`, and bytes and flops are affine in the
number of samples.
Where all samples do not fit into the budget, chunks of them do, frozen anew for every product.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from catapult_ext import _validate as v
from catapult_ext.linops.engines.base import Linearization
from catapult_ext.linops.model.memory_meter import LIMITS, Meter, OverBudget, Usage
from catapult_ext.linops.model.snapshot import Snapshot

SHARE = 0.5  # of the free memory, where no budget is given
# resident over counted bytes, measured on ten models: the allocator's fragments, library scratch
_ROOM = {"layers": 1.1, "autograd": 1.5}
_ROOM_OF_PARAMETERS = 1.1  # few and large pieces
_FIXED = 8 << 20
_MOST_COLUMNS = 64
_MANY = 128  # samples from which on the plan looks at 16 and 32 of them too
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Plan:
    """How an operator runs, and what that is predicted to cost.

    Attributes:
        name: of the operator.
        engine: of the frozen model; ``why`` says what decided it.
        n_samples: N; ``samples`` of them are held at a time (all: frozen once).
        columns: right-hand sides multiplied at a time.
        budget: bytes the operator may take, beside the model and the data it was given.
        peak: predicted peak bytes of set-up and a product with one column, result included;
            ``column`` more for each further one.
        kept: predicted bytes held between products.
        setup_flops: of freezing (check and probes not counted), ``product_flops`` and
            ``product_bytes`` (memory traffic) of a product with one column; 1 multiply-add = 2.
    """

    name: str
    engine: str
    why: str
    n_samples: int
    samples: int
    columns: int
    budget: int
    peak: int
    column: int
    kept: int
    setup_flops: float
    product_flops: float
    product_bytes: float

    def __str__(self) -> str:
        held = (
            f"all {self.n_samples} samples, frozen once"
            if self.samples >= self.n_samples
            else f"{self.samples} of {self.n_samples} samples at a time, frozen anew every product"
        )
        rows = {
            self.name: f"engine {self.engine} ({self.why})",
            "samples": held,
            "columns": f"{self.columns} at a time, {show_bytes(self.column)} each",
            "set-up": f"{self.setup_flops / 1e9:.3g} GFLOP",
            "product": f"{self.product_flops / 1e9:.3g} GFLOP, "
            f"{show_bytes(self.product_bytes)} moved, per column",
            "memory": f"{show_bytes(self.peak)} at the peak, {show_bytes(self.kept)} between "
            f"products, of a budget of {show_bytes(self.budget)}",
        }
        return "\n".join(f"{key:8s} {text}" for key, text in rows.items())


def show_bytes(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def parse_budget(budget: object, device: torch.device, where: str) -> int:
    """Bytes of ``memory_budget``: a number, a text like ``"512 MiB"``, or None for the default."""
    if budget is None:
        return int(SHARE * free_bytes(device))
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)i?B?\s*", budget, re.IGNORECASE)
        v.require(match is not None, where, "memory_budget must read like '512 MiB'", repr(budget))
        assert match is not None
        return int(float(match[1]) * _UNITS[match[2].upper()])
    if not v.is_number(budget):
        v.fail(
            where,
            "memory_budget must be a number of bytes or a text like '512 MiB'",
            repr(budget),
            TypeError,
        )
    v.require(budget > 0, where, "memory_budget must be positive", budget)  # type: ignore[operator]
    return int(budget)  # type: ignore[call-overload]


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken: of the device, or of this machine and control group."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        with open("/proc/meminfo") as file:
            match = re.search(r"MemAvailable:\s+(\d+)", file.read())
        free = int(match[1]) * 1024 if match else free
        limits = []
        for name in ("max", "current"):  # "max" is no number where there is no limit
            with open(f"/sys/fs/cgroup/memory.{name}") as file:
                limits.append(int(file.read()))
        free = min(free, limits[0] - limits[1])
    except (OSError, ValueError):
        pass
    return max(free, 1)


@dataclass(frozen=True)
class Costs:
    """Three phases of a run on n samples: freezing, the first product, the next ones."""

    setup: Usage
    first: Usage
    following: Usage

    @property
    def peak(self) -> float:
        """Highest live bytes of all three."""
        first, kept = self.setup.kept, self.setup.kept + self.first.kept
        return max(self.setup.peak, first + self.first.peak, kept + self.following.peak)

    def at(self, one: Costs, share: float) -> Costs:
        """Extrapolated by ``share`` of the distance from ``one`` to self, and beyond."""
        pairs = (
            (self.setup, one.setup),
            (self.first, one.first),
            (self.following, one.following),
        )
        return Costs(*(a + (b - a) * share for b, a in pairs))


Build = Callable[[Snapshot], tuple[Linearization | None, Callable[[], object]]]


def measure(
    part: Snapshot, build: Build, limit: float | None
) -> tuple[Linearization | None, Costs]:
    """Freeze ``part`` and multiply twice under a meter."""
    with Meter(part.tensors(), limit, work=True) as meter:
        linearization, product = build(part)
        phases = [meter.phase()]
        for _ in range(2):
            out = product()
            phases.append(meter.phase())
            del out
            meter.phase()
    return linearization, Costs(*phases)


class Planner:
    """Makes the :class:`Plan` of one operator.

    Args:
        held: the model and its inputs.
        build: freezes a part of them and returns what multiplies by one column.
        budget: bytes.
        samples: at a time; None chooses.
        columns: at a time; None chooses.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        build: Build,
        budget: int,
        samples: int | None = None,
        columns: int | None = None,
    ) -> None:
        self.snapshot, self.build, self.budget = snapshot, build, budget
        for name, value in (("samples_at_once", samples), ("columns_at_once", columns)):
            good = value is None or (isinstance(value, int) and value >= 1)
            v.require(good, snapshot.where, f"{name} must be a positive int or None", repr(value))
        self.samples, self.columns = samples, columns
        self.n = snapshot.n_samples

    def plan(self) -> Plan:
        """Probe, then choose chunks.

        Raises:
            ValueError: a budget that one sample exceeds, or samples that cannot be split.
        """
        self._probe()
        splits = self.snapshot.policy.batch_stats is None and self.snapshot.policy.dropout is None
        whole = self._peak(self.n, streamed=False)
        samples = self.n if self.samples is None else min(self.samples, self.n)
        if self.samples is None and whole > self.budget:
            samples = self._largest() if splits else 0
        if samples < self.n:
            self._check_splits(splits, samples, whole)
        return self._describe(samples)

    def _probe(self) -> None:
        small = (1, 2) if self.snapshot.policy.batch_stats is None else (2, 4)
        self._points: list[tuple[int, Costs]] = []
        proofs = len(self.snapshot.proofs)
        first = min(small[0], self.n)
        try:
            try:
                self.linearization, one = self._run(first)
            except LIMITS:
                raise
            except Exception:  # a model that needs several samples, or all (the edges of a graph)
                small, self._coupled = (2, 4), True
                first, (self.linearization, one) = self._several(first)
            if len(self.snapshot.proofs) > proofs:  # a proof ran, which comes once and not again
                self.linearization, one = self._run(first)
        except OverBudget:
            self._too_small(f"{show_bytes(self.budget)} for a pass over {small[0]} of them")
        self._points.append((first, one))
        # what a few samples take may be hidden behind what the parameters do: then more are tried
        for n in (small[1], 16, 32):
            if not first < n <= self.n or (n == 16 and self.n < _MANY):
                break
            try:
                linearization, costs = self._run(n)
            except LIMITS:
                break
            except Exception:
                self._coupled = True
                break
            self._points.append((n, costs))
            if len(self._points) == 2 and linearization is not None and small[0] == 1:
                assert self.linearization is not None
                self._coupled = not same(linearization.outputs[:1], self.linearization.outputs)
        if len(self._points) == 1:  # no second point: everything grows with the samples
            twice = Costs(one.setup * 2, one.first * 2, one.following * 2)
            self._points.append((2 * first, twice))

    _coupled = False

    def _several(self, failed: int) -> tuple[int, tuple[Linearization | None, Costs]]:
        """Two samples where one is too few, or all of them, whose error is the user's."""
        if failed == 1 and self.n >= 4:
            try:
                return 2, self._run(2)
            except LIMITS:
                raise
            except Exception:
                pass
        return self.n, self._run(self.n)

    def _run(self, n: int) -> tuple[Linearization | None, Costs]:
        part = self.snapshot.part(slice(0, n)) if n < self.n else self.snapshot
        return measure(part, self.build, self.budget)

    def _costs(self, n: int) -> Costs:
        below = [k for k, (size, _) in enumerate(self._points) if size <= n]
        upper = max(1, below[-1] if below else 1)
        (n1, one), (n2, two) = self._points[upper - 1 : upper + 1]
        return two.at(one, (n - n1) / (n2 - n1))

    def _layers(self, n: int) -> float:
        """What the native products of ``layers`` take, which the meter does not see."""
        extra = getattr(self.linearization, "native_bytes", None)
        return extra(n) if extra else 0.0

    def _peak(self, n: int, streamed: bool) -> float:
        snapshot = self.snapshot
        vectors = (4 if snapshot.where == "Hessian" else 2) if streamed else 0
        results = snapshot.itemsize * snapshot.n_params * vectors
        peak = max(self._costs(n).peak, 0)
        whatever_n = min(max(self._costs(0).peak, 0), peak)
        of_parameters = snapshot.bytes + results + whatever_n
        of_samples = peak - whatever_n + self._layers(n)
        room = _ROOM[getattr(self.linearization, "engine", "autograd")]
        return _ROOM_OF_PARAMETERS * of_parameters + room * of_samples + _FIXED

    def _largest(self) -> int:
        low, high = 0, self.n
        while low + 1 < high:
            middle = (low + high) // 2
            fits = self._peak(middle, streamed=True) <= self.budget
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _check_splits(self, splits: bool, samples: int, whole: float) -> None:
        where = self.snapshot.where
        v.require(
            splits and not self._coupled,
            where,
            "samples can be taken in chunks only where they do not depend on each other "
            f"(all at once need {show_bytes(whole)})",
            "batch statistics, a fixed dropout mask or outputs that change with the batch",
        )
        if samples == 0:
            self._too_small(
                f"{show_bytes(self.budget)}, and one sample needs {show_bytes(self._peak(1, True))}"
            )

    def _too_small(self, text: str) -> None:
        v.fail(self.snapshot.where, "memory_budget must hold the model and one sample", text)

    def _describe(self, samples: int) -> Plan:
        snapshot, streamed = self.snapshot, samples < self.n
        costs, peak = self._costs(samples), self._peak(samples, streamed)
        column = snapshot.itemsize * (2.0 * snapshot.n_params + 2 * snapshot.n_params * streamed)
        column += self._layers(samples)
        # the columns of one graph run one by one: only chunks and native products gain from many
        gains = streamed or getattr(self.linearization, "engine", "") == "layers"
        fitting = int((self.budget - peak) // max(column, 1)) + 1 if gains else 1
        columns = self.columns or max(1, min(fitting, _MOST_COLUMNS))
        once = costs.setup if streamed else Usage(0, 0, 0, 0)
        product = (costs.first + once * 2) if streamed else costs.following
        parts = self.n / samples
        native = getattr(self.linearization, "native_flops", None)
        flops = native(samples) if native and not streamed else product.flops
        kept = 0.0 if streamed else costs.setup.kept + costs.first.kept
        return Plan(
            snapshot.where,
            getattr(self.linearization, "engine", "autograd"),
            getattr(self.linearization, "why", "chosen"),
            self.n,
            samples,
            columns,
            self.budget,
            int(peak),
            int(column),
            int(snapshot.bytes + max(kept, 0)),
            costs.setup.flops * parts,
            flops * parts,
            product.traffic * parts,
        )


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal up to rounding: a batch of another size takes other kernels."""
    bound = 1e3 * torch.finfo(left.dtype).eps * left.abs().max()
    return left.shape == right.shape and bool(((left - right).abs() <= bound).all())
