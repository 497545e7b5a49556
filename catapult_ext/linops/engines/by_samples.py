"""A model too large to linearize on all samples: chunks of them, again for every product."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext.linops.engines.base import (
    Allowance,
    HessianProducts,
    KernelPart,
    Linearization,
)
from catapult_ext.linops.engines.freed_memory import return_freed_memory
from catapult_ext.linops.engines.loss_curvature import output_curvature
from catapult_ext.linops.engines.planner import room_of_samples
from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.model.memory_meter import Meter
from catapult_ext.linops.model.policy import check_repeats
from catapult_ext.losses import Loss

Make = Callable[[FixedModel], Linearization]


class LinearizationBySamples(Linearization):
    """J' and J as sums and stacks over chunks of samples, one of which is alive at a time.

    Args:
        snapshot: the model and all its inputs.
        samples: in a chunk.
        make: linearizes one chunk.
        check: compare the outputs of every pass with those of the first one, and those of the
            chunks with all samples at once, or with as many other ones as fit.
        budget: bytes that all may take; None for any.

    Raises:
        ValueError: samples whose outputs change with those they are run with.
    """

    gains_from_columns = True  # one pass over the chunks serves them all
    streamed = True

    def __init__(
        self,
        snapshot: FixedModel,
        samples: int,
        make: Make,
        check: bool = True,
        budget: int | None = None,
    ) -> None:
        self._samples, self._make, self._check = samples, make, check
        n = snapshot.n_samples
        self._slices = [slice(at, min(at + samples, n)) for at in range(0, n, samples)]
        with Meter(snapshot.tensors(), work=True) as meter:
            first = snapshot.plain_outputs(self._slices[0])
        others = [snapshot.plain_outputs(s) for s in self._slices[1:]]
        super().__init__(snapshot, torch.cat([first, *others]))
        one = make(snapshot.part(slice(0, 1)))
        self._kind = type(one)
        self.engine = self._kind.engine
        snapshot.observed = one.snapshot.observed
        if check:
            self._check_independence(self._fitting(meter.peak, budget))
            one.check_derivatives()

    def _fitting(self, peak: float, budget: int | None) -> int:
        """How many samples fit into one pass without graph, whose first chunk took ``peak``."""
        if budget is None:
            return self.n_samples
        room = room_of_samples(self.snapshot, budget) / self._kind.memory_margin
        return int(self._samples * room / max(peak, 1))

    def _check_independence(self, company: int) -> None:
        """Compare the chunks with passes of at most ``company`` samples, far from each other.

        Routing of limited capacity, say, shows in none of the first few samples.  The samples are
        at least two, and as many as in a chunk: their passes take less than those with graph.
        """
        snapshot, n = self.snapshot, self.snapshot.n_samples
        step = math.ceil(n / max(company, self._samples, 2))
        other = torch.empty_like(self.outputs)
        for at in range(step):
            other[at::step] = snapshot.plain_outputs(slice(at, n, step))
        scale = 1e3 * torch.finfo(self.dtype).eps * self.outputs.abs().max()
        moved = int(((other - self.outputs).abs() > scale).any(1).sum())
        v.require(
            moved == 0,
            snapshot.where,
            "samples can be taken in chunks only where they do not depend on each other (leave "
            "samples_at_once out, or raise memory_budget)",
            f"outputs of {moved} of {n} samples that change with the samples run with them",
        )

    def coarse(self) -> LinearizationBySamples:
        """The same chunks of the model rounded to bfloat16."""
        rounded = self.snapshot.in_bfloat16()
        return LinearizationBySamples(rounded, self._samples, self._make, check=False)

    def hessian(self, loss: Loss, y: Any, hvp: str | None) -> StreamedHVP:
        """Hessian products that linearize one chunk after another."""
        return StreamedHVP(self, loss, y)

    def each(self, use: Callable[[slice, Linearization], None]) -> None:
        """Linearize one chunk after another and ``use`` it; only one is alive at a time."""
        for s in self._slices:
            piece = self._piece(s)
            use(s, piece)
            del piece
            return_freed_memory()

    def check_first(self, slope: Tensor) -> None:
        """Compare second derivatives of the first chunk with central differences, if in doubt."""
        if self._check:
            self._piece(self._slices[0]).check_second(slope[self._slices[0]])

    def _piece(self, s: slice) -> Linearization:
        piece = self._make(self.snapshot.part(s)).allowed(Allowance(workspace=self.workspace))
        if self._check:
            check_repeats(self.outputs[s], piece.outputs, self.snapshot.where)
        return piece

    def rows_of(self, s: slice) -> slice:
        """Flat rows n*O + o of samples ``s``."""
        return slice(s.start * self.n_outputs, s.stop * self.n_outputs)

    def vjp(self, u: Tensor) -> Tensor:
        """J' u: (N*O, K) to (P, K), summed over chunks."""
        out = u.new_zeros(u.shape[1], self.n_params).T

        def use(s: slice, piece: Linearization) -> None:
            out.add_(piece.vjp(u[self.rows_of(s)]))

        self.each(use)
        return out

    def jvp(self, t: Tensor) -> Tensor:
        """J t: (P, K) to (N*O, K), chunk by chunk."""
        return self._rows(t.shape[1], lambda piece: piece.jvp(t))

    def diagonal(self) -> Tensor:
        """Diagonal of J J', (N*O,), chunk by chunk."""
        return self._rows(1, lambda piece: piece.diagonal().unsqueeze(1))[:, 0]

    def jacobian(self) -> Tensor:
        """J (N*O, P), chunk by chunk."""
        return self._rows(self.n_params, lambda piece: piece.jacobian())

    def part(self, samples: slice) -> KernelPart | None:
        """The kernel part of some samples, by the engine that handles the chunks."""
        return self._kind.part_of(self.snapshot.part(samples), self.workspace)

    def _rows(self, columns: int, of: Callable[[Linearization], Tensor]) -> Tensor:
        out = torch.empty(self.rows, columns, dtype=self.dtype, device=self.device)

        def use(s: slice, piece: Linearization) -> None:
            out[self.rows_of(s)] = of(piece)

        self.each(use)
        return out


class StreamedHVP(HessianProducts):
    """J' H_L J + the curvature of <g, f>, g = dL/df at fixed outputs, over chunks of samples.

    The first term needs J V of every sample before any of them goes back, so that losses may
    couple samples; one product passes all chunks twice.
    """

    def __init__(self, linearization: LinearizationBySamples, loss: Loss, y: Any) -> None:
        self._linearization = linearization
        self.value, self._slope, self._outputs = output_curvature(
            linearization.snapshot, loss, y, linearization.outputs
        )

    @property
    def gradient(self) -> Tensor:
        """dL/dtheta (P,), by one pass over the chunks."""
        return self._linearization.vjp(self._slope.reshape(-1, 1))[:, 0]

    def check(self) -> None:
        """Compare the first chunk with central differences where Python code is in its graph."""
        self._linearization.check_first(self._slope)

    def product(self, vectors: Tensor) -> Tensor:
        """H V for V (P, K)."""
        linearization = self._linearization
        rows = vectors.new_empty(linearization.rows, vectors.shape[1])
        out = torch.zeros_like(vectors)

        def use(s: slice, piece: Linearization) -> None:
            rows[linearization.rows_of(s)], curved = piece.second(self._slope[s], vectors)
            out.add_(curved)

        linearization.each(use)
        shaped = rows.reshape(linearization.n_samples, linearization.n_outputs, -1)
        out += linearization.vjp(self._outputs.hessian(shaped).reshape(rows.shape))
        return out
