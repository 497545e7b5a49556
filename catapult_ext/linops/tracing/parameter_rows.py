"""Blocks of Jacobian rows from the uses of every parameter, a few parameters at a time.

Rows of one output at a time are written where they belong, while the derivatives of that output are
in the caches.  Where that is not possible (convolutions, targets made of parameters, blocks larger
than the workspace) the derivatives of all outputs are stored first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

from torch import Tensor

from catapult_ext._progress import report_share
from catapult_ext.linops.tracing.parameter_use_kinds import Memory, Use

Group = tuple[list[int], list[int]]  # parameters and the uses that touch them


class Side(Protocol):
    """The uses of all parameters for the rows or the columns of a kernel: a ``Structured``."""

    n: int
    outputs: int
    graph: Tensor
    uses: list[Use]
    leaves: list[Tensor]

    def groups(self) -> list[Group]:
        """Parameters and uses whose rows are to be summed before they are multiplied."""

    def is_derived(self, use: Use) -> bool:
        """Whether the target is made of parameters."""

    def collect(
        self, direct: list[list[int]], stored: list[int]
    ) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Rows and gradients of all outputs."""

    def rows(
        self, use: Use, g: Tensor, lead: slice, room: int, memory: Memory | None = None
    ) -> Tensor:
        """Rows by some entries of a target."""

    def leaf_rows(
        self, members: list[int], uses: list[int], gradients: list[Tensor], room: int
    ) -> dict[int, Tensor]:
        """Rows by each parameter of a group with derived targets."""


class Sink(ABC):
    """Takes the Jacobian of one side or two, block by block."""

    def wants_factors(self, use: int) -> bool:
        """Whether :meth:`factors` should handle a group that has this use only."""
        return False

    def factors(self, use: int, gradients: list[Tensor]) -> None:
        """Receive derivatives (N, O, ...) by the results of a use, one tensor per side."""
        raise NotImplementedError(f"catapult_ext.{type(self).__name__}: takes no factors")

    @abstractmethod
    def rows(self, blocks: list[Tensor], parameter: int, place: slice) -> None:
        """Receive rows (N, O, q) by some entries of one parameter, one tensor per side."""

    keeps_rows = True  # whether :meth:`rows` keeps what it receives, or views of it

    def by_output(self, blocks: list[list[Tensor]], parameters: list[int]) -> None:
        """Receive rows (O, N, q): per side a list, with a tensor for each whole parameter."""
        for i, parameter in enumerate(parameters):
            block = [side[i].transpose(0, 1) for side in blocks]
            self.rows(block, parameter, slice(0, block[0].shape[2]))

    takes_outputs = True  # whether :meth:`by_output` has the room it needs


@dataclass
class _Pass:
    """Groups whose rows or gradients fit half the workspace together."""

    direct: list[Group] = field(default_factory=list)
    stored: list[Group] = field(default_factory=list)
    bytes: int = 0


class _Cut:
    """How the groups of parameters are shared out over passes."""

    def __init__(self, sides: Sequence[Side], sink: Sink, workspace: int) -> None:
        self._sides, self._sink, self._workspace = sides, sink, workspace
        self._item = sides[0].graph.element_size()

    def _stored_bytes(self, uses: list[int], outputs: bool = True) -> int:
        sizes = (
            s.n * (s.outputs if outputs else 1) * prod(s.uses[k].out[1:])
            for s in self._sides
            for k in uses
        )
        return sum(sizes) * self._item

    def _direct_bytes(self, group: Group) -> int | None:
        """Rows of a group by one output at a time; None where they cannot be made so."""
        uses = group[1]
        one = self._sides[0]
        known = all(one.uses[k].by_output and not one.is_derived(one.uses[k]) for k in uses)
        if not known or not self._sink.takes_outputs or self.by_factors(uses):
            return None
        rows = sum(s.n * s.outputs for s in self._sides) * one.uses[uses[0]].target.numel()
        size = rows * self._item + self._stored_bytes(uses, outputs=False)
        return size if size <= self._workspace // 4 else None

    def by_factors(self, uses: list[int]) -> bool:
        """Whether the sink takes the factors of this group."""
        return len(uses) == 1 and self._sink.wants_factors(uses[0])

    def passes(self) -> Iterator[_Pass] | None:
        """None where the gradients of one group alone exceed half the workspace."""
        one = self._sides[0]
        # the largest first: later blocks of rows fit into the memory of earlier ones
        large = sorted(one.groups(), key=lambda g: -sum(one.leaves[i].numel() for i in g[0]))
        groups = [(g, self._direct_bytes(g)) for g in large]
        limit = self._workspace // 2
        if any(d is None and self._stored_bytes(g[1]) > limit for g, d in groups):
            return None
        return self._shared_out(groups, limit)

    def _shared_out(self, groups: list[tuple[Group, int | None]], limit: int) -> Iterator[_Pass]:
        some = _Pass()
        for group, direct in groups:
            size = self._stored_bytes(group[1]) if direct is None else direct
            if some.bytes and some.bytes + size > limit:
                yield some
                some = _Pass()
            (some.stored if direct is None else some.direct).append(group)
            some.bytes += size
        if some.bytes:
            yield some


def gradient_bytes(one: Side) -> int:
    """Bytes of per-sample rows in the largest group of uses."""
    item = one.graph.element_size()
    sizes = (sum(prod(one.uses[k].out[1:]) for k in uses) for _, uses in one.groups())
    return max(sizes, default=0) * one.outputs * item


def each_block(sides: Sequence[Side], workspace: int, sink: Sink) -> bool:
    """Give the blocks of all Jacobian rows to ``sink``.

    Returns:
        False where the workspace does not suffice: nothing was given then.
    """
    cut = _Cut(sides, sink, workspace)
    passes = cut.passes()
    if passes is None:
        return False
    item = sides[0].graph.element_size()
    room = max(1, workspace // 8 // item)
    total_rows = sum(s.n * s.outputs for s in sides)
    sizes = [p.numel() for p in sides[0].leaves]
    for members, uses in sides[0].groups():
        derived = any(sides[0].is_derived(sides[0].uses[k]) for k in uses)
        if derived and total_rows * sum(sizes[i] for i in members) * item > workspace // 2:
            return False
    memories = [None if sink.keeps_rows else Memory() for _ in sides]
    done = 0
    for some in passes:
        wanted = [k for _, uses in some.stored for k in uses]
        found = [s.collect([uses for _, uses in some.direct], wanted) for s in sides]
        if some.direct:
            members = [group[0][0] for group in some.direct]
            sink.by_output([blocks for blocks, _ in found], members)
            done += sum(sizes[i] for i in members)
            report_share(done, sum(sizes))
        gradients = [kept for _, kept in found]
        del found
        for group in some.stored:
            parts = [[g[k] for k in group[1]] for g in gradients]
            if cut.by_factors(group[1]):
                sink.factors(group[1][0], [p[0] for p in parts])
            else:
                _each_part(sides, group, parts, room, sink, memories)
            done += sum(sizes[i] for i in group[0])
            report_share(done, sum(sizes))
        del gradients
    return True


def _each_part(
    sides: Sequence[Side],
    group: Group,
    parts: list[list[Tensor]],
    room: int,
    sink: Sink,
    memories: Sequence[Memory | None],
) -> None:
    """Rows of one group from its stored gradients, as many entries at a time as ``room`` holds."""
    members, uses = group
    one = sides[0]
    if any(one.is_derived(one.uses[k]) for k in uses):
        found = [s.leaf_rows(members, uses, p, room) for s, p in zip(sides, parts, strict=True)]
        for i in found[0]:
            sink.rows([f[i] for f in found], i, slice(0, one.leaves[i].numel()))
        return
    total_rows = sum(s.n * s.outputs for s in sides)
    target = one.uses[uses[0]].target
    rest = target[0].numel() if target.dim() else 1
    step = max(1, room // (total_rows * rest))
    length = len(target) if target.dim() else 1
    for at in range(0, length, step):
        lead = slice(at, min(at + step, length))
        blocks = []
        for s, p, memory in zip(sides, parts, memories, strict=True):
            alone = memory if len(uses) == 1 else None  # further rows would overwrite the first
            block = s.rows(s.uses[uses[0]], p[0], lead, room, alone)
            for k, g in zip(uses[1:], p[1:], strict=True):
                block = block + s.rows(s.uses[k], g, lead, room)
            blocks.append(block)
        sink.rows(blocks, members[0], slice(lead.start * rest, lead.stop * rest))
