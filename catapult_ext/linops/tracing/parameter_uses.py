"""Dense kernels from the per-sample Jacobian of each use of each parameter.

The graph of the frozen forward pass shows where parameters meet data
(:mod:`catapult_ext.linops.tracing.graph_uses`), or one more pass does, whose calls are watched
(:mod:`catapult_ext.linops.tracing.parameter_use_rules`); one backward pass per output gives the
derivatives g of all outputs by the results of those calls, for all samples at once.  Theta = sum
over parameters of J_p J_p' then needs J_p only one block of columns at a time; where a use is an
outer product, contracting its factors can be cheaper still.

Source: structured derivatives of Novak, Sohl-Dickstein and Schoenholz (2022), and the per-layer
choice of Bu et al. (2022), here for exact kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.model.graphs import nodes_of
from catapult_ext.linops.tracing.independence import samples_are_apart
from catapult_ext.linops.tracing.opened_calls import opened
from catapult_ext.linops.tracing.parameter_use_kinds import Memory, Use, empty
from catapult_ext.linops.tracing.parameter_use_rules import uses_of

_proven: WeakKeyDictionary[FixedModel, list[tuple[Any, ...]]] = WeakKeyDictionary()
_VIEWS_OF_ONE = ("expand", "expand_as", "repeat", "broadcast_to")


class UseTracer(TorchFunctionMode):
    """Finds every use of a parameter, or of a tensor made of parameters alone, with data.

    Args:
        snapshot: the model.
        constants: take constants with N rows for data, where they meet parameters alone.

    Attributes:
        met_constants: whether there were any.
        replaced: whether a call was computed by other operations than torch's own.
    """

    def __init__(self, snapshot: FixedModel, constants: bool = False) -> None:
        super().__init__()
        self._constants = constants
        self.met_constants = self.replaced = False
        self._second = False  # inside calls whose second dimension are the samples
        self.uses: list[Use] = []
        self.versions: list[list[int]] = []  # of what each use saved, when it was made
        self.why = ""
        self.n = snapshot.n_samples
        self._like = {id(p): p for p in snapshot.params.values()}
        self._data = WeakIdKeyDictionary()
        self.mark(snapshot.x)

    def mark(self, value: Any) -> None:
        """Take tensors for data."""
        for t in tree_leaves(value):
            if isinstance(t, Tensor):
                self._data[t] = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        parts = None if self.why else opened(self, func, args, kwargs)
        if parts is not None:
            self.replaced |= parts.replaced
            self.mark(parts.out)
            return parts.out
        out = func(*args, **kwargs)
        if not any(isinstance(t, Tensor) for t in tree_leaves(out)):
            return out
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        like = {id(t) for t in given if id(t) in self._like}
        data = any(t in self._data for t in given)
        if like and not data and any(self._per_sample(t) for t in given):
            self.met_constants, data = True, self._constants
        if like and not data:
            self._derived(func, out, given, like)
        if data:
            self.mark(out)
            if like and not self.why:
                self._record(func, args, kwargs, out, like)
        return out

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record the calls inside, which have their samples along the second dimension."""
        before, self._second = self._second, True
        try:
            with self:
                yield
        finally:
            self._second = before

    def is_parameter(self, t: Tensor) -> bool:
        """Whether a tensor is a parameter or made of parameters alone."""
        return id(t) in self._like

    def _per_sample(self, t: Tensor) -> bool:
        """A constant with as many rows as there are samples (token types made of a buffer)."""
        return id(t) not in self._like and t.dim() > 0 and t.shape[0] == self.n

    def _record(self, func: Any, args: Any, kwargs: Any, out: Any, like: set[int]) -> None:
        if all(t.numel() == 0 for t in tree_leaves(out) if isinstance(t, Tensor)):
            return  # an expert without a token: no output depends on this call
        found = uses_of(func, args, kwargs, out, self.n, like, self._second)
        if any(use is None for use in found) or not found:
            self.why = f"it uses a parameter in {getattr(func, '__name__', func)}"
        self.take(found)

    def take(self, found: Sequence[Use | None]) -> None:
        """Record uses."""
        for use in found:
            if use is not None and use.target.numel():
                self.uses.append(use)
                self.versions.append([t._version for t in use.saved()])

    def _derived(self, func: Any, out: Any, given: list[Tensor], like: set[int]) -> None:
        """A tensor of parameters alone; expanded to the samples, it counts as data."""
        for t in tree_leaves(out):
            if not (isinstance(t, Tensor) and t.requires_grad):
                continue
            first = given[0]
            expands = func.__name__ in _VIEWS_OF_ONE and t.dim() and t.shape[0] == self.n
            if expands and id(first) in like and t.dim() == first.dim() and first.shape[0] == 1:
                self.mark(t)
                found = uses_of(torch.add, (0, first), {}, t, self.n, like)
                self.take(found)
                self.why = self.why or ("" if found[0] else "it expands a parameter")
            else:
                self._like[id(t)] = t


class Structured:
    """The uses of every parameter of a snapshot, checked against a plain backward pass.

    ``why`` says what stands against it, empty where nothing does: then :meth:`collect` and
    :meth:`groups` serve the kernels below.  ``seeds`` (N, O, O) makes rows of combinations of a
    sample's outputs, the columns of its matrix each, instead of the outputs themselves.

    Args:
        snapshot: the model.
        seen: outputs (N, O) of a forward pass of it and the uses that their graph shows; without
            them, or if they are not all, another pass is watched.
    """

    seeds: Tensor | None = None
    _replaced = False  # a call was computed by other operations than torch's own
    _all_shown = False  # every parameter had a gradient that an error would have shown in

    def __init__(self, snapshot: FixedModel, seen: tuple[Tensor, list[Use]] | None = None) -> None:
        self.snapshot, self.why = snapshot, ""
        self.leaves = list(snapshot.params.values())
        if any(t.layout != torch.strided for t in tree_leaves(snapshot.x) if isinstance(t, Tensor)):
            self.why = "its inputs are sparse"
            return
        if seen is not None:
            self._take(*seen, [[t._version for t in use.saved()] for use in seen[1]])
            if not self._refusal():
                return
        for constants in (False, True):
            tracer = UseTracer(snapshot, constants)
            found = snapshot.forward(tracer)
            snapshot.take_raw_output()
            self._take(found, tracer.uses, tracer.versions)
            self._replaced = tracer.replaced
            self.why = tracer.why or self._refusal()
            if not self.why or not tracer.met_constants:
                break

    def _take(self, graph: Tensor, uses: list[Use], versions: list[list[int]]) -> None:
        self.graph, self.uses, self._versions = graph, uses, versions
        self.n, self.outputs = graph.shape

    def _refusal(self) -> str:
        if self.n != self.snapshot.n_samples:
            return "its outputs are not one row per sample"
        if any(use.target.dtype != self.snapshot.dtype for use in self.uses):
            return "it computes in other precisions"
        own = {id(p) for p in self.leaves}
        if any(use.target.grad_fn is None and id(use.target) not in own for use in self.uses):
            return "it copies parameters while it runs"
        made = [use for use in self.uses if use.target.grad_fn is not None]
        self.parents = {id(use): self._parents(use) for use in made}
        for use, versions in zip(self.uses, self._versions, strict=True):
            if [t._version for t in use.saved()] != versions:
                return "it changes a saved tensor in place"
        # the same parameters on the same inputs, used in the same way, are proven once
        signature = [(type(use), tuple(use.target.shape), use.out) for use in self.uses]
        if _proven.get(self.snapshot) == signature:
            return ""
        # where torch's own operations in this order were proven, other inputs change nothing else
        # than which samples they connect
        plain = self.snapshot.observed.plain
        apart = plain and samples_are_apart(self.graph)
        operations = hash(tuple(node.name() for node in nodes_of([self.graph.grad_fn])))
        fact = "uses", self.snapshot.dtype, tuple(signature), operations
        if apart and fact in self.snapshot.facts:
            return ""
        why = self._check(apart)
        if not why:
            _proven[self.snapshot] = signature
            if apart and self._all_shown:
                self.snapshot.facts.add(fact)
        return why

    def _parents(self, use: Use) -> list[int]:
        """Positions of the parameters that a derived target is made of."""
        grads = torch.autograd.grad(
            use.target,
            self.leaves,
            torch.zeros_like(use.target),
            retain_graph=True,
            allow_unused=True,
        )
        return [i for i, g in enumerate(grads) if g is not None]

    def _check(self, apart: bool) -> str:
        """All uses found, and samples independent and in order, by a random cotangent.

        That samples are ``apart`` was read off the graph.
        """
        generator = torch.Generator().manual_seed(0)
        u = torch.randn(self.graph.shape, generator=generator, dtype=torch.float64, device="cpu")
        u = u.to(self.graph)
        edges = list(dict.fromkeys(use.edge for use in self.uses))
        wanted: list[Any] = [*edges, *self.leaves]
        found = torch.autograd.grad(self.graph, wanted, u, retain_graph=True, allow_unused=True)
        gradients = self._by_use(dict(zip(edges, found, strict=False)))
        if any(g is not None and g.is_complex() for g in gradients):
            return "it multiplies parameters by complex numbers"
        exact = found[len(edges) :]
        if self._replaced:  # the gradients of torch's own operations are the right ones
            plain = self.snapshot.forward()
            gap = (plain.detach() - self.graph.detach()).abs().max()
            if not bool(gap <= 1e3 * torch.finfo(u.dtype).eps * plain.detach().abs().max()):
                return "its recurrent layers give other outputs step by step"
            exact = torch.autograd.grad(plain, self.leaves, u, allow_unused=True)
            del plain
        sizes = [0.0 if g is None else float(g.norm()) for g in exact]
        self._all_shown = min(sizes) > torch.finfo(u.dtype).eps * max(sizes)
        why = "" if apart else self._check_order(u, edges, gradients)
        return why or self._check_sums(gradients, exact)

    def _by_use(self, by_edge: dict[Any, Tensor | None]) -> list[Tensor | None]:
        """The gradient (N, ...) by the result of every use."""
        found = [by_edge[use.edge] for use in self.uses]
        return [
            None if g is None else use.by_sample(g) for g, use in zip(found, self.uses, strict=True)
        ]

    def _check_order(self, u: Tensor, edges: list[Any], gradients: list[Tensor | None]) -> str:
        """Scaling the cotangent of every sample by its own number scales its gradients alone.

        A model that sorts its samples (routed experts) passes a test of sums and fails this one.
        """
        if self.n == 1 or not edges:  # threads of the model's own show no call
            return ""
        generator = torch.Generator().manual_seed(1)
        scale = torch.rand(self.n, generator=generator, dtype=torch.float64, device="cpu").to(u) + 1
        found = torch.autograd.grad(
            self.graph, edges, u * scale.unsqueeze(1), retain_graph=True, allow_unused=True
        )
        again = self._by_use(dict(zip(edges, found, strict=True)))
        epsilon = 1e2 * torch.finfo(u.dtype).eps
        for g, scaled in zip(gradients, again, strict=True):
            if g is None or scaled is None or g.numel() == 0:
                continue
            gap = torch.addcmul(scaled, g, scale.view(-1, *(1,) * (g.dim() - 1)), value=-1)
            if not bool(gap.abs().max() <= epsilon * g.abs().max()):
                return "its samples depend on each other or are not the leading dimension"
        return ""

    def _check_sums(self, gradients: list[Tensor | None], exact: Sequence[Tensor | None]) -> str:
        """The rows of all uses add up to the gradient of every parameter."""
        sums = [torch.zeros_like(p) for p in self.leaves]
        totals: list[Tensor | None] = []
        for use, g in zip(self.uses, gradients, strict=True):
            total = None if g is None else use.total(g)
            totals.append(total)
            if total is None:
                continue
            try:
                pulled = self._pull(use, total.unsqueeze(0))
            except RuntimeError as error:
                return f"it makes a parameter by what has no batched derivative ({error})"
            for i, part in pulled:
                sums[i] += part[0]
        epsilon = torch.finfo(self.graph.dtype).eps
        for i, (got, value) in enumerate(zip(sums, exact, strict=True)):
            right = torch.zeros_like(got) if value is None else value
            gap = (got - right).norm()
            if bool(gap <= 1e3 * epsilon * right.norm()):
                continue
            # a gradient whose terms cancel is as uncertain as they are large
            if not bool(gap <= 1e2 * epsilon * self._terms(i, gradients, totals)):
                return "it uses a parameter where no call shows it"
        return ""

    def _terms(
        self, leaf: int, gradients: list[Tensor | None], totals: list[Tensor | None]
    ) -> Tensor:
        """The norm of the sums of absolute values that make the gradient by a parameter."""
        size = self.graph.new_zeros((), requires_grad=False)
        for use, g, total in zip(self.uses, gradients, totals, strict=True):
            if g is None or total is None or leaf not in self.touched(use):
                continue
            terms = use.absolute().total(g.abs()).norm()
            if self.is_derived(use):  # by what the way from the target to the parameter magnifies
                part = next(p for i, p in self._pull(use, total.unsqueeze(0)) if i == leaf)
                tiny = torch.finfo(terms.dtype).tiny
                terms = terms * part.norm() / total.norm().clamp(min=tiny)
            size = size + terms
        return size

    def _pull(self, use: Use, rows: Tensor) -> list[tuple[int, Tensor]]:
        """(parameter, rows by it) of rows (R, *target.shape) by the target of ``use``."""
        if id(use) not in self.parents:
            at = next(i for i, p in enumerate(self.leaves) if p is use.target)
            return [(at, rows)]
        parents = self.parents[id(use)]
        parts = torch.autograd.grad(
            use.target,
            [self.leaves[i] for i in parents],
            rows,
            retain_graph=True,
            is_grads_batched=True,
        )
        return list(zip(parents, parts, strict=True))

    def groups(self) -> list[tuple[list[int], list[int]]]:
        """(parameters, uses) whose rows are to be summed before they are multiplied."""
        owner = list(range(len(self.leaves)))
        touched = [self.touched(use) for use in self.uses]
        for parents in touched:
            first = owner[parents[0]]
            for other in {owner[i] for i in parents}:
                owner = [first if o == other else o for o in owner]
        out = []
        for root in dict.fromkeys(owner):
            members = [i for i, o in enumerate(owner) if o == root]
            uses = [k for k, parents in enumerate(touched) if parents[0] in members]
            if uses:
                out.append((members, uses))
        return out

    def touched(self, use: Use) -> list[int]:
        """Positions of the parameters that a use's target is or is made of."""
        if id(use) in self.parents:
            return self.parents[id(use)]
        return [next(i for i, p in enumerate(self.leaves) if p is use.target)]

    def is_derived(self, use: Use) -> bool:
        """Whether the target is made of parameters, and not one itself."""
        return id(use) in self.parents

    def collect(
        self, direct: list[list[int]], stored: list[int]
    ) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Rows and gradients of all outputs, in one backward pass each.

        Args:
            direct: uses of one target each, whose rows are wanted.
            stored: uses whose gradients are wanted.

        Returns:
            Rows (O, N, q) for every list of ``direct``, and gradients (N, O, ...) by use.
        """
        sizes = [self.uses[same[0]].target.numel() for same in direct]
        blocks = [
            piece.view(self.outputs, self.n, -1)
            for piece in empty((self.outputs * self.n * sum(sizes),), self.graph).split(
                [self.outputs * self.n * q for q in sizes]
            )
        ]
        last = {self.uses[k].edge: k for k in stored}
        wanted = [k for same in (*direct, stored) for k in same]
        edges = list(dict.fromkeys(self.uses[k].edge for k in wanted))
        kept: dict[Any, Tensor] = {}
        for o in range(self.outputs):
            found = torch.autograd.grad(
                self.graph, edges, self._seed(o), retain_graph=True, allow_unused=True
            )
            by_edge = dict(zip(edges, found, strict=True))
            for block, same in zip(blocks, direct, strict=True):
                first = True
                for use in (self.uses[k] for k in same):
                    g = by_edge[use.edge]
                    if g is not None:
                        use.add_rows(use.by_sample(g), block[o], first)
                        first = False
                if first:
                    block[o] = 0
            for edge, k in last.items():
                g, out = by_edge[edge], self.uses[k].out
                g = None if g is None else self.uses[k].by_sample(g)
                if edge not in kept:
                    kept[edge] = self._room(g, out)
                kept[edge][:, o] = 0 if g is None else g
        return blocks, {k: kept[self.uses[k].edge] for k in stored}

    def _seed(self, o: int) -> Tensor:
        if self.seeds is not None:
            return self.seeds[:, :, o].contiguous()
        seed = torch.zeros_like(self.graph)
        seed[:, o] = 1
        return seed

    @property
    def bytes(self) -> int:
        """Bytes of the results of all uses: about what the graph holds."""
        return sum(prod(use.out) for use in self.uses) * self.graph.element_size()

    def _room(self, g: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """Empty (N, O, ...), outputs and channels innermost where channels are in ``g``."""
        if g is None or g.dim() != 4 or g.shape != shape or g.is_contiguous():
            return empty((shape[0], self.outputs, *shape[1:]), self.graph)
        n, c, *image = shape
        return empty((n, *image, self.outputs, c), self.graph).permute(0, 3, 4, 1, 2)

    def rows(
        self, use: Use, g: Tensor, lead: slice, room: int, memory: Memory | None = None
    ) -> Tensor:
        """All rows (N, O, q) by the entries ``lead`` of a target, few samples at a time."""
        step = max(1, room // max(1, use.scratch()))
        if step >= self.n:
            return use.rows(g, slice(0, self.n), lead, memory)
        parts = [
            use.rows(g[at : at + step], slice(at, min(at + step, self.n)), lead)
            for at in range(0, self.n, step)
        ]
        return torch.cat(parts)

    def leaf_rows(
        self, members: list[int], uses: list[int], gradients: list[Tensor], room: int
    ) -> dict[int, Tensor]:
        """Rows (N, O, size) by each parameter of a group with derived targets."""
        found: dict[int, Tensor] = {}
        for k, g in zip(uses, gradients, strict=True):
            use = self.uses[k]
            rows = self.rows(use, g, slice(0, use.leads), room)
            for i, part in self._pull(use, rows.view(-1, *use.target.shape)):
                part = part.reshape(self.n, self.outputs, -1)
                found[i] = found[i] + part if i in found else part
        return found
