"""J' u block by block: one backward pass to where parameters meet data, gradients when asked for.

A plain backward pass holds the gradients of all parameters at once, a vector (P,).  What flows back
to the operation that takes a weight is often smaller than the gradient of that weight: a layer
(I, O) on B tokens gets (B, O).  One pass keeps that, and the gradient, a product of both, is made
when it is read.  The products are those of a plain pass, none is made twice.

Needs a graph of torch's own operations without hooks, which would run twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from catapult_ext.linops.engines.freed_memory import return_freed_memory
from catapult_ext.linops.model.graphs import nodes_of

_ROWS = "EmbeddingBackward0"  # its gradient has few rows that are not zero
_VIEWS = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")

_FRAGMENTS = 64 << 20  # bytes of freed blocks after which the system gets them back

_SMALL = 8  # gradients of an eighth of the average size are made at once

Edge = tuple[Any, int]  # a node and which of its inputs


@dataclass(eq=False)
class _Use:
    """One operation that takes a parameter: its node, and the edge from it towards the leaf."""

    node: Any
    towards: Edge

    @property
    def is_rows(self) -> bool:
        """Whether it reads rows, so that its gradient may be added to another one in place."""
        node = self.node
        return bool(
            node.name() == _ROWS
            and not node._saved_scale_grad_by_freq
            and not node._saved_sparse
            and self.towards[0].name() == "torch::autograd::AccumulateGrad"
        )


class Pullback:
    """The backward passes of ``graph`` to ``leaves``.

    Attributes:
        kept: bytes that a pass keeps until gradients are read.
        total: bytes of all gradients.
    """

    def __init__(self, graph: Tensor, leaves: Sequence[Tensor]) -> None:
        self._graph, self._leaves = graph, list(leaves)
        self._lazy: dict[int, list[_Use]] = {}
        self._edges: dict[Any, list[int]] = {}  # inputs of the nodes of lazy uses that are kept
        self.total = self.kept = 0
        self._choose(_Graph(graph))

    def _choose(self, graph: _Graph) -> None:
        """Leaves whose gradients are made when they are read: large ones where that keeps less."""
        leaf_nodes = {id(n.variable): n for n in graph.nodes if hasattr(n, "variable")}
        found = [(i, leaf_nodes.get(id(leaf))) for i, leaf in enumerate(self._leaves)]
        used = {i: node for i, node in found if node is not None}
        self.total = self.kept = sum(_bytes(self._leaves[i]) for i in used)
        for i, node in used.items():
            size = _bytes(self._leaves[i])
            if _SMALL * size * len(used) < self.total:
                continue  # a call for each would cost more than it saves
            uses = graph.uses(node) or []
            new = {u.node: graph.inputs[u.node] for u in uses if u.node not in self._edges}
            needed = sum(graph.bytes_into(n) for n in new)
            if uses and needed < size:
                self._lazy[i] = sorted(uses, key=lambda u: u.is_rows)
                self._edges |= new
                self.kept += needed - size

    def __call__(self, u: Tensor) -> Blocks:
        """J' u for u (N*O,)."""
        direct = [i for i in range(len(self._leaves)) if i not in self._lazy]
        edges = [(node, nr) for node, inputs in self._edges.items() for nr in inputs]
        ends: list[Any] = [self._leaves[i] for i in direct]
        found = torch.autograd.grad(
            self._graph,
            [*ends, *(GradientEdge(*e) for e in edges)],
            u.reshape(self._graph.shape),
            retain_graph=True,
            allow_unused=True,
        )
        made, kept = found[: len(direct)], found[len(direct) :]
        return Blocks(
            self, dict(zip(direct, made, strict=True)), dict(zip(edges, kept, strict=True))
        )

    def columns(self, u: Tensor) -> Tensor:
        """J' u for u (N*O, K): (P, K), without a second vector (P,)."""
        sizes = [p.numel() for p in self._leaves]
        out = self._leaves[0].new_empty(u.shape[1], sum(sizes))
        for k, row in enumerate(out):
            blocks = self(u[:, k])
            for i, part in enumerate(row.split(sizes)):
                block = blocks[i]
                if block is None:
                    part.zero_()
                else:
                    part.view(block.shape).copy_(block)
        return out.T


class Blocks(Sequence["Tensor | None"]):
    """J' u in the shapes of the parameters: each block is returned once.  None is zero."""

    def __init__(
        self, owner: Pullback, made: dict[int, Tensor | None], kept: dict[Edge, Tensor | None]
    ) -> None:
        self._owner, self._made, self._kept = owner, made, kept
        self._waiting = dict.fromkeys(owner._edges, 0)  # how many leaves still need a node's
        self._freed = 0  # bytes since fragments were returned
        self.left = set(range(len(owner._leaves)))
        for uses in owner._lazy.values():
            for use in uses:
                self._waiting[use.node] += 1

    def __len__(self) -> int:
        return len(self._owner._leaves)

    def __getitem__(self, i: Any) -> Any:
        if i not in self.left:
            raise IndexError(i)
        self.left.remove(i)
        if i in self._made:
            block = self._made.pop(i)
            return block.to_dense() if block is not None and block.is_sparse else block
        total: Tensor | None = None
        for use in self._owner._lazy[i]:
            total = self._added(total, use, self._owner._leaves[i])
            self._release(use.node)
        return total

    def _is_own(self, total: Tensor) -> bool:
        """Whether nothing else reads the memory of a gradient on the CPU, nor itself twice.

        Elsewhere sums of rows may come in any order.
        """
        others = (g for g in (*self._kept.values(), *self._made.values()) if g is not None)
        held = {g.untyped_storage()._cdata for g in others if not g.is_sparse}
        alone = total.untyped_storage()._cdata not in held
        return alone and total.device.type == "cpu" and not torch._debug_has_internal_overlap(total)

    def _release(self, node: Any) -> None:
        """Let go of what flowed into a node once the last leaf has taken it."""
        self._waiting[node] -= 1
        if self._waiting[node]:
            return
        for nr in self._owner._edges[node]:
            g = self._kept.pop((node, nr))
            self._freed += 0 if g is None else _bytes(g)
        if self._freed > _FRAGMENTS:
            self._freed = 0
            return_freed_memory()

    def _added(self, total: Tensor | None, use: _Use, leaf: Tensor) -> Tensor | None:
        """``total`` with the gradient by one use of ``leaf``, in place where that is possible."""
        edges = [(use.node, nr) for nr in self._owner._edges[use.node]]
        given = [(e, g) for e in edges if (g := self._kept[e]) is not None]
        if not given:
            return total
        if total is not None and use.is_rows and self._is_own(total):
            return _add_rows(total, use.node, given[0][1])
        found = _pulled([e for e, _ in given], use.towards, [g for _, g in given])
        node = use.towards[0]
        if found is not None and not hasattr(node, "variable"):
            (found,) = torch.autograd.grad(
                GradientEdge(*use.towards), leaf, found, retain_graph=True, allow_unused=True
            )
        if total is None or found is None:
            return total if found is None else found.to_dense() if found.is_sparse else found
        return total + found


def _pulled(edges: list[Edge], towards: Edge, grads: list[Tensor]) -> Tensor | None:
    """The gradient that flows along ``towards`` where ``grads`` flow into ``edges``."""
    return torch.autograd.grad(
        [GradientEdge(*e) for e in edges],
        [GradientEdge(*towards)],
        grads,
        retain_graph=True,
        allow_unused=True,
    )[0]


def _add_rows(total: Tensor, node: Any, g: Tensor) -> Tensor:
    """The gradient of an embedding added to ``total`` (V, D), which is changed."""
    rows, g = node._saved_indices.reshape(-1), g.reshape(-1, total.shape[1])
    padding = node._saved_padding_idx
    if 0 <= padding < len(total):
        taken = rows != padding
        rows, g = rows[taken], g[taken]
    return total.index_add_(0, rows, g)


def _bytes(t: Tensor) -> int:
    return t.numel() * t.element_size()


class _Graph:
    """The nodes of a graph, who calls whom, and which inputs of each are in use."""

    def __init__(self, output: Tensor) -> None:
        root = output.grad_fn
        self.nodes = nodes_of([root])
        self.inputs: dict[Any, list[int]] = {root: [output.output_nr]}
        self._callers: dict[Any, list[Any]] = {}
        for node in self.nodes:
            for child, nr in node.next_functions:
                if child is None:
                    continue
                self._callers.setdefault(child, []).append(node)
                inputs = self.inputs.setdefault(child, [])
                if nr not in inputs:
                    inputs.append(nr)
        self._free = {root}  # what flows into them is u itself, seen in another shape
        while root is not None and root.name() in _VIEWS:
            root = root.next_functions[0][0]
            if len(self._callers[root]) == 1:
                self._free.add(root)

    def bytes_into(self, node: Any) -> int:
        """Bytes of the gradients that flow into a node."""
        if node in self._free:
            return 0
        size = 0
        for nr in self.inputs[node]:
            meta = node._input_metadata[nr]
            size += math.prod(meta.shape) * meta.dtype.itemsize
        return size

    def uses(self, leaf: Any) -> list[_Use] | None:
        """The operations that take a leaf; None where they cannot be told apart."""
        out: list[_Use] = []
        for below, node in self._ends(leaf):
            inputs = [(n, nr) for n, nr in node.next_functions if n is below]
            others = [n for n, _ in node.next_functions if n is not None and n is not below]
            shared = len(self._callers[below]) > 1
            if len(inputs) != 1 or (shared and below in nodes_of(others)):
                return None
            out.append(_Use(node, inputs[0]))
        return out or None

    def _ends(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """Pairs of a node and its caller, where that caller takes something else as well.

        Below it lie nodes of one argument alone: transposes, casts and views of the leaf.
        """
        for caller in dict.fromkeys(self._callers.get(node, [])):
            arguments = [n for n, _ in caller.next_functions if n is not None]
            form = len(arguments) == 1 and self._callers.get(caller) and _entries(caller)
            if form and form == _entries(node):
                yield from self._ends(caller)
            else:
                yield node, caller


def _entries(node: Any) -> int:
    """Entries of the only tensor that flows into a node; 0 where it takes several."""
    metadata = node._input_metadata
    return math.prod(metadata[0].shape) if len(metadata) == 1 else 0


def halves(sizes: Sequence[int]) -> list[list[int]]:
    """Positions of parameters of these sizes whose gradients are to be in memory together."""
    ends = list(accumulate(sizes))
    first = [i for i, end in enumerate(ends) if end <= ends[-1] // 2 or i == 0]
    return [half for half in (first, list(range(len(first), len(sizes)))) if half]


class OfLast:
    """Blocks of J' u at some positions at a time: passes are made once for each u."""

    def __init__(self, pull: Callable[[Tensor], Blocks]) -> None:
        self._pull = pull
        self._u: Tensor | None = None
        self._blocks: Blocks | None = None

    def __call__(self, u: Tensor, which: Iterable[int]) -> list[Tensor | None]:
        """Blocks at positions ``which`` of J' u for u (N*O, 1)."""
        which = list(which)
        if u is not self._u or self._blocks is None or not self._blocks.left.issuperset(which):
            self._u, self._blocks = u, None
            return_freed_memory()
            self._blocks = self._pull(u[:, 0])
            return_freed_memory()
        return [self._blocks[i] for i in which]
