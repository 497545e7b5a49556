"""Rows of the Jacobian by groups of parameters, from one pass over all samples.

A group becomes whole as its last parameter does, and is handed out then, so that the rows of one
group are in memory, and not those of all.  A group whose rows would be too many, or whose kernel
takes fewer flops from the factors of a layer, is handed out as that kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from catapult_ext.linops.tracing.parameter_kernel import add_factors, add_gram, factors_pay, mirror_
from catapult_ext.linops.tracing.parameter_rows import Sink, each_block
from catapult_ext.linops.tracing.parameter_uses import Structured

PIECE = 1 << 20  # bytes of rows that stay in a cache while they are multiplied twice


@dataclass(eq=False)
class Rows:
    """Known rows of one group of parameters.

    Attributes:
        parts: rows (N*O, q) by some of the parameters' entries each, in any order.
        kernel: the inner products of all rows, (N*O, N*O); None where ``parts`` hold them.
    """

    parts: list[Tensor] = field(default_factory=list)
    kernel: Tensor | None = None


Take = Callable[[int, Rows], None]


def pieces(rows: Tensor) -> list[Tensor]:
    """Columns of rows (m, q), a few at a time, each in memory of its own."""
    step = max(1, PIECE // max(1, len(rows) * rows.element_size()))
    return [part.contiguous() for part in rows.split(step, 1)]


def _share(workspace: int) -> int:
    """Bytes of the rows or the kernel of one group."""
    return workspace // 4


def each_group(
    one: Structured,
    groups: Sequence[Sequence[int]],
    workspace: int,
    take: Take,
) -> bool:
    """Give the rows of every group of parameters to ``take``, with the group's position.

    Args:
        one: the uses of all parameters; its ``seeds`` say which combinations of outputs are rows.
        groups: positions of the parameters; each in one group at most.
        workspace: bytes that may be taken.
        take: called once for each group, in any order.

    Returns:
        False where the workspace does not suffice: nothing was given then.
    """
    with torch.no_grad():
        sink = _Groups(one, groups, workspace, take)
        if not sink.fits or not each_block([one], workspace, sink):
            return False
        for at in range(len(groups)):  # those that no output depends on
            if at not in sink.given:
                take(at, Rows([one.graph.new_zeros(sink.m, 1, requires_grad=False)]))
        return True


class _Groups(Sink):
    def __init__(
        self,
        one: Structured,
        groups: Sequence[Sequence[int]],
        workspace: int,
        take: Take,
    ) -> None:
        self._one, self._take, self._workspace = one, take, workspace
        self.m = one.n * one.outputs
        self._group = {i: at for at, members in enumerate(groups) for i in members}
        sizes = [p.numel() for p in one.leaves]
        used = {i for members, _ in one.groups() for i in members}
        self._left = [sum(sizes[i] for i in members if i in used) for members in groups]
        self._open: dict[int, Rows] = {}
        self.given: set[int] = set()
        item, room = one.graph.element_size(), _share(workspace)
        large = {at for at, left in enumerate(self._left) if self.m * left * item > room}
        square = self.m**2 * item <= room  # whether a kernel has room
        self.fits = square or not large
        self._kernels = large | self._by_factors() if square else set()

    def _by_factors(self) -> set[int]:
        """Groups of more entries than rows whose largest parameter is cheaper by its factors."""
        largest: dict[int, int] = {}
        for members, uses in self._one.groups():
            at = self._group.get(members[0])
            if at is None or len(uses) != 1 or self._left[at] <= self.m:
                continue
            known, entries = largest.get(at), self._one.uses[uses[0]].target.numel()
            if known is None or entries > self._one.uses[known].target.numel():
                largest[at] = uses[0]
        return {at for at, use in largest.items() if self._pays(use)}

    def _pays(self, use: int) -> bool:
        return factors_pay([self._one.uses[use]], [self._one.n] * 2, self._one.outputs, False)

    def wants_factors(self, use: int) -> bool:
        """Whether the group of this use is a kernel, and its factors make it cheaper."""
        at = self._group.get(self._one.touched(self._one.uses[use])[0])
        return at in self._kernels and self._pays(use)

    def _kernel(self, at: int) -> Tensor:
        rows = self._open.setdefault(at, Rows())
        if rows.kernel is None:
            rows.kernel = self._one.graph.new_zeros(self.m, self.m, requires_grad=False)
        return rows.kernel

    def factors(self, use: int, gradients: list[Tensor]) -> None:
        """Add the kernel of a use to that of its group."""
        (parameter,) = self._one.touched(self._one.uses[use])
        at = self._group[parameter]
        uses = [self._one.uses[use]]
        add_factors(self._kernel(at), uses, gradients, False, self._workspace // 4)
        self._done(at, self._one.leaves[parameter].numel())

    def rows(self, blocks: list[Tensor], parameter: int, place: slice) -> None:
        """Keep the rows of a few entries, or add their inner products."""
        at = self._group.get(parameter)
        if at is None:
            return
        rows = blocks[0].reshape(self.m, -1)
        if at in self._kernels:
            add_gram(self._kernel(at), rows)
        else:
            held = self._open.setdefault(at, Rows())
            held.parts.extend(pieces(rows))
        self._done(at, place.stop - place.start)

    def _done(self, at: int, entries: int) -> None:
        self._left[at] -= entries
        if self._left[at]:
            return
        found = self._open.pop(at)
        if found.kernel is not None:
            mirror_(found.kernel)
        self.given.add(at)
        self._take(at, found)
