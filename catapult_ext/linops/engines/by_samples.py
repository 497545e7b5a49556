"""A model too large to freeze on all samples: chunks of them, frozen anew for every product."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from catapult_ext.linops.engines.autograd import UsesPart
from catapult_ext.linops.engines.base import KernelPart, Linearization
from catapult_ext.linops.engines.freed_memory import return_freed_memory
from catapult_ext.linops.model.policy import check_repeats
from catapult_ext.linops.model.snapshot import Snapshot

Make = Callable[[Snapshot], Linearization]


class LinearizationBySamples(Linearization):
    """J' and J as sums and stacks over chunks of samples, one of which is held at a time.

    Args:
        snapshot: the model and all its inputs.
        samples: in a chunk.
        make: freezes one chunk.
        check: compare the outputs of every pass with those of the first one.
    """

    streamed = True

    def __init__(self, snapshot: Snapshot, samples: int, make: Make, check: bool = True) -> None:
        self._samples, self._make, self._check = samples, make, check
        n = snapshot.n_samples
        self._slices = [slice(at, min(at + samples, n)) for at in range(0, n, samples)]
        super().__init__(snapshot, torch.cat([snapshot.plain_outputs(s) for s in self._slices]))
        self.engine = make(snapshot.part(slice(0, 1))).engine

    def rebuilt(self, snapshot: Snapshot) -> LinearizationBySamples:
        """The same chunks of another snapshot (as in bfloat16)."""
        return LinearizationBySamples(snapshot, self._samples, self._make, False)

    def each(self, use: Callable[[slice, Linearization], None]) -> None:
        """Freeze one chunk after another and ``use`` it; only one is alive at a time."""
        for s in self._slices:
            piece = self._piece(s)
            use(s, piece)
            del piece
            return_freed_memory()

    def _piece(self, s: slice) -> Linearization:
        piece = self._make(self.snapshot.part(s))
        piece.workspace = self.workspace
        if self._check:
            check_repeats(self.outputs[s], piece.outputs, self.snapshot.where)
        return piece

    def rows_of(self, s: slice) -> slice:
        """Flat rows n*O + o of samples ``s``."""
        return slice(s.start * self.n_outputs, s.stop * self.n_outputs)

    def vjp(self, u: Tensor) -> Tensor:
        """See :class:`~catapult_ext.linops.engines.base.Linearization`."""
        out = u.new_zeros(u.shape[1], self.n_params).T

        def use(s: slice, piece: Linearization) -> None:
            out.add_(piece.vjp(u[self.rows_of(s)]))

        self.each(use)
        return out

    def jvp(self, t: Tensor) -> Tensor:
        """See :class:`~catapult_ext.linops.engines.base.Linearization`."""
        return self._rows(t.shape[1], lambda piece: piece.jvp(t))

    def diagonal(self) -> Tensor:
        """See :class:`~catapult_ext.linops.engines.base.Linearization`."""
        return self._rows(1, lambda piece: piece.diagonal().unsqueeze(1))[:, 0]

    def jacobian(self) -> Tensor:
        """See :class:`~catapult_ext.linops.engines.base.Linearization`."""
        return self._rows(self.n_params, lambda piece: piece.jacobian())

    def part(self, samples: slice) -> KernelPart | None:
        """See :class:`~catapult_ext.linops.engines.base.Linearization`."""
        if self.engine != "layers":
            return UsesPart.of(self.snapshot.part(samples))
        piece = self._piece(samples)
        return piece.part(slice(0, piece.n_samples))

    def _rows(self, columns: int, of: Callable[[Linearization], Tensor]) -> Tensor:
        out = torch.empty(self.rows, columns, dtype=self.dtype, device=self.device)

        def use(s: slice, piece: Linearization) -> None:
            out[self.rows_of(s)] = of(piece)

        self.each(use)
        return out
