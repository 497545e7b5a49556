"""Prediction of an operator's costs before it runs: engine, chunks, flops, bytes, peak memory.

The costs come from the model itself: one or two samples go through set-up and product under a
:class:`~catapult_ext.linops.model.memory_meter.Meter`.  Bytes and flops are affine in the number of
samples.  Where all samples do not fit into the budget, chunks of them do, and every product
linearizes each chunk again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from catapult_ext import _validate as v
from catapult_ext._free_memory import show_bytes
from catapult_ext.linops.engines.base import Linearization
from catapult_ext.linops.engines.plan import Plan, same
from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.model.memory_meter import LIMITS, Meter, OverBudget, Usage

_PARAMETER_MARGIN = 1.1  # resident over counted bytes of parameters: few and large pieces
_FIXED = 8 << 20
_MOST_COLUMNS = 64
_MANY = 128  # samples from which on the plan looks at 16 and 32 of them too
# vectors (P,) that a product over chunks keeps: argument and result; two more for the Hessian
_VECTORS_OF_CHUNKS = {"kernel": 2, "parameter": 2, "hessian": 4}

_VECTORS_OF_A_SOLVE = 24  # of the smallest one, for one pair: seven rows of V and A V, and ten more


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
        """Linear extrapolation from ``one`` through self, by ``share`` of their distance."""
        pairs = (
            (self.setup, one.setup),
            (self.first, one.first),
            (self.following, one.following),
        )
        setup, first, following = (a + (b - a) * share for b, a in pairs)
        return Costs(setup=setup, first=first, following=following)


Build = Callable[[FixedModel], Linearization]


def sample_product(linearization: Linearization) -> Callable[[], object]:
    """One product, with one column, of the kind that the snapshot's ``probe`` names."""
    if linearization.snapshot.probe == "kernel":
        u = linearization.outputs.new_ones(linearization.rows, 1)
        return lambda: linearization.ntk(u)
    t = linearization.outputs.new_ones(linearization.n_params, 1)
    if linearization.snapshot.probe == "hessian":
        return lambda: linearization.second(linearization.outputs, t)
    return lambda: linearization.vjp(linearization.jvp(t))


def measure(part: FixedModel, build: Build, limit: float | None) -> tuple[Linearization, Costs]:
    """Linearize ``part``, multiply twice, and measure the cost of each of the three phases."""
    with Meter(part.tensors(), limit, work=True) as meter:
        linearization = build(part)
        product = sample_product(linearization)
        phases = [meter.phase()]
        for _ in range(2):
            out = product()
            phases.append(meter.phase())
            del out
            meter.phase()
    setup, first, following = phases
    return linearization, Costs(setup=setup, first=first, following=following)


def room_of_samples(snapshot: FixedModel, budget: float) -> float:
    """Resident bytes that ``budget`` leaves for what grows with the samples."""
    return max(budget - _FIXED - _PARAMETER_MARGIN * snapshot.bytes, 0)


class Planner:
    """Makes the :class:`~catapult_ext.linops.engines.plan.Plan` of one operator.

    Args:
        snapshot: the model and its inputs.
        build: linearizes a part of them.
        budget: bytes.
        samples: at a time; None chooses.
        columns: at a time; None chooses.
    """

    def __init__(
        self,
        snapshot: FixedModel,
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
        self._coupled = False  # the outputs of one sample were seen to change with the others

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
            samples = self._chosen() if splits else 0
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
            if len(self._points) == 2 and small[0] == 1:
                self._coupled = not same(linearization.outputs[:1], self.linearization.outputs)
        if len(self._points) == 1:  # no second point: everything grows with the samples
            twice = Costs(setup=one.setup * 2, first=one.first * 2, following=one.following * 2)
            self._points.append((2 * first, twice))

    def _several(self, failed: int) -> tuple[int, tuple[Linearization, Costs]]:
        """Two samples where one is too few, or all of them, whose error is the user's."""
        if failed == 1 and self.n >= 4:
            try:
                return 2, self._run(2)
            except LIMITS:
                raise
            except Exception:
                pass
        return self.n, self._run(self.n)

    def _run(self, n: int) -> tuple[Linearization, Costs]:
        part = self.snapshot.part(slice(0, n)) if n < self.n else self.snapshot
        return measure(part, self.build, self.budget)

    def _costs(self, n: int) -> Costs:
        below = [k for k, (size, _) in enumerate(self._points) if size <= n]
        upper = max(1, below[-1] if below else 1)
        (n1, one), (n2, two) = self._points[upper - 1 : upper + 1]
        return two.at(one, (n - n1) / (n2 - n1))

    def _peak(self, n: int, streamed: bool) -> float:
        snapshot = self.snapshot
        vectors = _VECTORS_OF_CHUNKS[snapshot.probe] if streamed else 0
        results = snapshot.itemsize * snapshot.n_params * vectors
        peak = max(self._costs(n).peak, 0)
        whatever_n = min(max(self._costs(0).peak, 0), peak)
        of_parameters = snapshot.bytes + results + whatever_n
        of_samples = peak - whatever_n + self.linearization.native_bytes(n)
        margin = self.linearization.memory_margin
        return _PARAMETER_MARGIN * of_parameters + margin * of_samples + _FIXED

    def _chosen(self) -> int:
        """Samples at a time, which leave room for a solve in parameter space where they can."""
        reserve = 0
        if self.snapshot.probe == "hessian":
            vectors = _VECTORS_OF_A_SOLVE * self.snapshot.n_params * self.snapshot.itemsize
            reserve = min(vectors, self.budget // 2)
        return self._largest(self.budget - reserve) or self._largest(self.budget)

    def _largest(self, limit: int) -> int:
        low, high = 0, self.n
        while low + 1 < high:
            middle = (low + high) // 2
            fits = self._peak(middle, streamed=True) <= limit
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
        column += self.linearization.native_bytes(samples)
        # the columns of one graph run one by one: only chunks and native products gain from many
        gains = streamed or self.linearization.gains_from_columns
        fitting = int((self.budget - peak) // max(column, 1)) + 1 if gains else 1
        columns = self.columns or max(1, min(fitting, _MOST_COLUMNS))
        once = costs.setup if streamed else Usage(0, 0, 0, 0, 0)
        product = (costs.first + once * 2) if streamed else costs.following
        parts = self.n / samples
        native = None if streamed else self.linearization.native_flops(samples)
        flops = product.flops if native is None else native
        side, dense_flops = self._dense(flops * parts)
        kept = 0.0 if streamed else costs.setup.kept + costs.first.kept
        return Plan(
            name=snapshot.where,
            engine=self.linearization.engine,
            why=self.linearization.why,
            n_samples=self.n,
            samples=samples,
            columns=columns,
            budget=self.budget,
            peak=int(peak),
            column=int(column),
            kept=int(snapshot.bytes + max(kept, 0)),
            setup_flops=costs.setup.flops * parts,
            product_flops=flops * parts,
            product_bytes=product.traffic * parts,
            product_calls=product.calls * parts,
            side=side,
            dense_flops=dense_flops,
            dense_calls=product.calls * parts * self._times(side, columns),
            dense_room=self._dense_room(int(peak), int(column), columns),
            device=self.linearization.device,
            dtype=self.linearization.dtype,
        )

    def _dense(self, product: float) -> tuple[int, float]:
        """Side of the matrix, and the flops to write it out, from those of one column."""
        of_few, snapshot = self.linearization, self.snapshot
        if snapshot.where == "Jacobian":
            return 0, 0.0
        if snapshot.probe != "kernel":
            return snapshot.n_params, snapshot.n_params * product
        rows = of_few.rows // of_few.n_samples * self.n
        return rows, min(rows * product, of_few.kernel_flops(self.n, product))

    def _times(self, side: int, columns: int) -> int:
        """Passes over the model to write a matrix out."""
        return 1 if self.snapshot.probe == "kernel" else -(-side // columns)

    def _dense_room(self, peak: int, column: int, columns: int) -> int:
        if self.snapshot.probe == "kernel":
            return max(self.linearization.kernel_room(self.n), peak)
        return peak + (columns - 1) * column
