"""The Krylov basis on a device that should not wait: numbers come to the host once a step.

A step is a product and a launch of ``ops.lanczos_step`` for each vector of the block.  Norms and
the check that products are finite come from what the step returns: a vector is as long as its
projections and what is left of it together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from catapult_ext import ops
from catapult_ext.eig.krylov import NOTHING, Krylov
from catapult_ext.eig.operand import Operand
from catapult_ext.eig.sums import inner, on_host, row_norms


class DeviceKrylov(Krylov):
    """:class:`Krylov` with at most two waits a step; see the module."""

    def _started(self, block: Tensor) -> Tensor:
        return self._taken(block, 4 * self.eps)

    def _outside(self, block: Tensor) -> Tensor:
        return self._taken(block[: self.capacity - self.m], 8 * self.eps)

    def _sized(self, found: Tensor) -> bool:
        return self.scale != 0.0 or super()._sized(found)

    def _measure(self, products: Tensor) -> None:
        """Nothing is read: the step shows it."""

    def _projected(self, rows: slice) -> Tensor:
        w = self.w[rows]
        t, norms = on_host(inner(self.v[: rows.stop], w), row_norms(w))
        self._seen(norms)
        return t

    def _step(self, w: Tensor, rows: int, mirrored: Tensor | None) -> tuple[Tensor, Tensor | None]:
        b = len(w)
        columns, lengths = self._orthogonalised(w, rows, rows - b, NOTHING * self.eps)
        extra = [] if mirrored is None else [mirrored]
        numbers = on_host(*columns, lengths, *extra)
        found, lengths = numbers[:b], numbers[b]
        t, coupling = self.t.new_zeros(rows, b), self.t.new_zeros(b, b)
        for i, column in enumerate(found):
            t[:, i] = column[0, :rows]
            coupling[:i, i] = column[0, rows:]
            coupling[i, i] = lengths[i]
        self._seen((t.square().sum(0) + coupling.square().sum(0)).sqrt())
        kept = self._kept(rows, lengths)
        self.next, self.coupling = self.v[rows : rows + len(kept)], coupling[kept]
        return t, numbers[-1] if extra else None

    def _orthogonalised(
        self, block: Tensor, rows: int, step: int, breakdown: float
    ) -> tuple[list[Tensor], Tensor]:
        """Rows of the basis from ``rows`` on: what is left of each row of ``block``, normalised.

        Nothing is read from the device: a row with nothing left is zero.  Returns the projections
        of row i, (1, rows + i), and the lengths of what was left (b,).
        """
        basis, columns = self.v.unsqueeze(0), []
        for i, row in enumerate(block):
            columns.append(self.v.new_empty(1, rows + i))
            ops.lanczos_step(
                basis,
                self._alpha,
                self._beta,
                row.unsqueeze(0),
                step + i,
                rows=rows + i,
                coefficients=columns[-1],
                breakdown=breakdown,
            )
        return columns, self._beta[0, step : step + len(block)]

    def _taken(self, block: Tensor, breakdown: float) -> Tensor:
        """Rows of the basis, from here on, for the part of ``block`` that lies outside it."""
        block, at = block[: self.a.n - self.m], self.m
        first = block[:0].double().sum(1)
        if not at and len(block):  # the recurrence needs a row to start from
            first = row_norms(block[:1])
            self.v[:1] = block[:1] / first.clamp_min(1e-300)[:, None].to(block)
            at = 1
        lengths = first
        if len(block) > len(first):
            self._alpha.zero_()
            self._beta.zero_()
            _, left = self._orthogonalised(block[len(first) :], at, 0, breakdown)
            lengths = torch.cat([first, left.double()])
        (lengths,) = on_host(lengths)
        return self.v[self.m : self.m + len(self._kept(self.m, lengths))]

    def _kept(self, first: int, lengths: Tensor) -> list[int]:
        """Close the gaps that rows of length 0 have left in the basis; the others' numbers."""
        kept = [i for i, length in enumerate(lengths.tolist()) if length > 0]
        kept = kept[: self.a.n - first]
        for to, i in enumerate(kept):
            if to != i:
                self.v[first + to] = self.v[first + i]
        return kept


def krylov(
    a: Operand, capacity: int, seed: int, where: str, at_once: int = 1 << 30, keep: bool = True
) -> Krylov:
    """The basis for the device of ``a``."""
    kind = Krylov if a.device.type == "cpu" else DeviceKrylov
    return kind(a, capacity, seed, where, at_once, keep)
