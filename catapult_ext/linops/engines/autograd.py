"""Engines for any model: one kept graph and a tangent program, and torch.func.linearize."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext.linops.engines import sample_rows
from catapult_ext.linops.engines.autograd_hessian import MODES, ForwardHVP, ReverseHVP
from catapult_ext.linops.engines.base import ForwardPass, HessianProducts, KernelPart, Linearization
from catapult_ext.linops.engines.difference_proof import (
    check_gradients,
    check_second,
    gradient_of,
    suspects,
)
from catapult_ext.linops.engines.freed_memory import return_freed_memory
from catapult_ext.linops.engines.pullback import Blocks, OfLast, Pullback, halves
from catapult_ext.linops.engines.recorded_hessian import RecordedHVP
from catapult_ext.linops.engines.transpose_proof import Product, mismatch
from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.model.graphs import nodes_of, require_second_derivatives
from catapult_ext.linops.model.memory_meter import LIMITS
from catapult_ext.linops.tracing import parameter_kernel
from catapult_ext.linops.tracing.graph_uses import uses_seen
from catapult_ext.linops.tracing.parameter_uses import Structured
from catapult_ext.linops.tracing.tangent_program import TangentRecorder, TangentTracer
from catapult_ext.losses import Loss

_KEPT = 64 << 20  # bytes of a graph that is kept for further kernels
_WHOLE = 256 << 20  # bytes of a gradient that is in memory at once where nothing needs all of it


class AutogradLinearization(Linearization):
    """One kept graph: backward for J'; for J the tangents of the recorded forward pass.

    Where a pass cannot be replayed, J is a backward through the backward of that graph.
    """

    engine = "autograd"
    hvp_modes: ClassVar[tuple[str, ...] | None] = MODES
    second_of_chunks = True

    def __init__(
        self,
        snapshot: FixedModel,
        outputs: Tensor | None = None,
        tangents: TangentTracer | None = None,
        why: str = "",
    ) -> None:
        if outputs is None:
            tangents = TangentTracer(list(snapshot.params.values()))
            outputs = tangents.forward(snapshot)
        if snapshot.composes():
            outputs = snapshot.forward() if tangents is None else tangents.forward(snapshot)
        super().__init__(snapshot, outputs)
        self._graph = outputs
        self.why = why or self.why
        self._leaves = list(snapshot.params.values())
        self._uses: Structured | None = None
        self._program = None if tangents is None else tangents.program
        self._tangents = tangents if snapshot.probe == "hessian" else None
        self._twice: tuple[list[int], list[Tensor], Tensor] | None = None
        self._seeded: tuple[list[int], list[Tensor], Tensor] | None = None
        self._jacobian: Tensor | None = None

    @classmethod
    def build(cls, snapshot: FixedModel) -> AutogradLinearization:
        """This engine by one forward pass, recorded unless it serves a Hessian."""
        if snapshot.probe == "hessian":  # needs the graph alone, and no tangent program
            return cls(snapshot, snapshot.forward())
        return cls(snapshot)

    @classmethod
    def recorder(cls, snapshot: FixedModel) -> TangentRecorder | None:
        """A recorder of tangents, which accepts any model."""
        return TangentRecorder(snapshot)

    @classmethod
    def from_pass(
        cls, snapshot: FixedModel, recorder: TangentRecorder, forward: ForwardPass
    ) -> AutogradLinearization:
        """This engine with the tangent program that ``recorder`` has made of the pass."""
        tangents = recorder.finished(forward.raw)
        return cls(snapshot, forward.outputs, tangents, forward.why)

    def check_derivatives(self) -> None:
        """Compare J' with central differences where Python code is in the graph."""
        check_gradients(self.snapshot, self._graph)

    def check_second(self, seed: Tensor) -> None:
        """Compare second derivatives of <seed, f> with central differences of J' seed."""
        check_second(
            self.snapshot,
            suspects(self.snapshot, self._graph),
            gradient_of(self.snapshot, lambda f: (f * seed).sum()),
            lambda t: self.second(seed, t)[1],
        )

    def vjp(self, u: Tensor) -> Tensor:
        """J' u: (N*O, K) to (P, K), one backward pass per column."""
        if self._pullback is not None:
            return self._pullback.columns(u)
        return self.snapshot.columns(u.shape[1], lambda k: self._blocks(u[:, k]))

    @cached_property
    def _pullback(self) -> Pullback | None:
        """Gradients that are made when they are read; None where those of all are kept anyhow."""
        if not (self.splits_half and self.snapshot.observed.plain):
            return None
        pullback = Pullback(self._graph, self._leaves)
        return pullback if 2 * pullback.kept <= pullback.total else None

    def _blocks(self, u: Tensor, which: Sequence[int] | None = None) -> list[Tensor | None]:
        """J' u for u (N*O,) in the shapes of all or some parameters; None for an unused one."""
        leaves = self._leaves if which is None else [self._leaves[i] for i in which]
        seed = u.reshape(self._graph.shape)
        found = torch.autograd.grad(self._graph, leaves, seed, retain_graph=True, allow_unused=True)
        return [g.to_dense() if g is not None and g.is_sparse else g for g in found]

    def ntk(self, u: Tensor) -> Tensor:
        """J J' u: (N*O, K) to (N*O, K).

        J' u stays in blocks, which are no second vector (P,).  Of more than ``_WHOLE`` bytes each
        block is made where J takes it, or, where that keeps more, they are made in halves, the
        second of which needs no pass through the first one's layers.
        """
        if self._program is None or not self._proven():
            return super().ntk(u)
        columns = list(u.unbind(1))
        del u  # the last reference, where the caller holds none: a vector (N*O,) less
        rows = [self._through(columns) for _ in range(len(columns))]
        return rows[0].unsqueeze(1) if len(rows) == 1 else torch.stack(rows).T

    def _through(self, columns: list[Tensor]) -> Tensor:
        """J J' u (N*O,) for the first u of ``columns``, which leaves them."""
        if self._pullback is None:
            return self._sum_over_halves(columns.pop(0))
        blocks = self._pullback(columns.pop(0))
        return_freed_memory()
        out = self._row_of(blocks)
        return_freed_memory()
        return out

    def _sum_over_halves(self, u: Tensor) -> Tensor:
        out = None
        for half in self._halves:
            blocks: list[Tensor | None] = [None] * len(self._leaves)
            for i, block in zip(half, self._blocks(u, half), strict=True):
                blocks[i] = block
            found = self._row_of(blocks)
            out = found if out is None else out.add_(found)
            del blocks, found
        assert out is not None
        return out

    @cached_property
    def _halves(self) -> list[list[int]]:
        """Positions of the parameters whose gradients are in memory together."""
        sizes = self.snapshot.sizes
        return halves(sizes) if self.splits_half else [list(range(len(sizes)))]

    @property
    def splits_half(self) -> bool:  # type: ignore[override]
        """Gradients are so large that they are not to be in memory together."""
        return self.n_params * self.snapshot.itemsize > _WHOLE

    def _backward_graph(self) -> tuple[list[int], list[Tensor], Tensor]:
        """J' d as a graph of a dummy d: linear in d, so that its own backward is J."""
        if self._twice is None:
            self._twice = self._pull(torch.zeros_like(self._graph))
        return self._twice

    def _pull(self, at: Tensor) -> tuple[list[int], list[Tensor], Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            dummy = at.detach().clone().requires_grad_()
            grads = torch.autograd.grad(
                self._graph, self._leaves, dummy, create_graph=True, allow_unused=True
            )
        used = [i for i, g in enumerate(grads) if g is not None and g.requires_grad]
        require_second_derivatives([grads[i] for i in used], self.snapshot.where)
        return used, [grads[i] for i in used], dummy

    def jvp(self, t: Tensor) -> Tensor:
        """J t: (P, K) to (N*O, K).

        By the first way that is the transpose of J' in every parameter: the tangent program, a
        backward pass through the backward pass, the rows of J one by one.
        """
        if self._program is not None and self._proven():
            return self._replayed(t)
        why = self._why_not("backward of backward", self._pushed_with_graph, self._signature)
        return self._rows_of_jacobian(why) @ t if why else self._backward_of_backward(t)

    def _replayed(self, t: Tensor) -> Tensor:
        rows = [self._row_of(self.snapshot.split(column.contiguous())) for column in t.unbind(1)]
        # of one column no second copy: it may be the largest tensor of all
        return rows[0].unsqueeze(1) if len(rows) == 1 else torch.stack(rows).T

    def _row_of(self, blocks: Sequence[Tensor | None]) -> Tensor:
        """J t (N*O,) by the tangent program, for t in the shapes of the parameters."""
        assert self._program is not None
        out = self._program(blocks)
        if out is None:
            return torch.zeros(self.rows, dtype=self.dtype, device=self.device)
        out = out.to(self.dtype)  # a hook of the outputs may have made them bfloat16
        if isinstance(blocks, Blocks):  # nobody else holds them
            return out.reshape(-1)
        given = {b.untyped_storage()._cdata for b in blocks if b is not None}
        own = out.untyped_storage()._cdata not in given  # not so where an output is a parameter
        return out.reshape(-1) if own else out.reshape(-1).clone()

    def _proven(self) -> bool:
        """Whether the program is the transpose of the backward pass: tried once per model."""
        program = self._program
        assert program is not None
        key = "replay", self.snapshot.coarse, program.signature
        if self.splits_half and key not in {*self.snapshot.proofs, *self.snapshot.facts}:
            self._prove_two_samples()
        if self._why_not("replay", lambda t: program(t, graph=True), program.signature, True):
            self._program = None
        return self._program is not None

    def _prove_two_samples(self) -> None:
        """The proof of a large model on two samples, for less memory; parts share their proofs.

        Of one sample torch makes other operations: its batches need no copies to be transposed.
        A model that needs more samples is proven on all.
        """
        chosen = self.snapshot.policy
        if self.snapshot.n_samples <= 2 or chosen.batch_stats or chosen.dropout:
            return
        try:
            one = AutogradLinearization(self.snapshot.part(slice(0, 2)))
        except LIMITS:
            raise
        except Exception:  # it needs more
            return
        if one._program is not None:
            program = one._program
            one._why_not("replay", lambda t: program(t, graph=True), program.signature, True)
        del one
        return_freed_memory()

    def _why_not(self, route: str, product: Product, signature: int, apart: bool = False) -> str:
        """Why a way to J t is wrong, proven once for each series of operations; empty if right.

        A proof of the same operations holds for later passes of the same model, unless Python code
        may hide others, or a parameter had no gradient that could have shown an error in one of
        torch's own formulas.
        """
        known, key = self.snapshot.proofs, (route, self.snapshot.coarse, signature)
        if key in known:
            return known[key]
        if key in self.snapshot.facts:
            known[key] = ""
            return ""
        sizes: list[float] = []
        pulled = None if self._pullback is None else OfLast(self._pullback)

        def vjp(u: Tensor, which: Sequence[int]) -> list[Tensor | None]:
            out = self._blocks(u[:, 0], which) if pulled is None else pulled(u, which)
            sizes.extend(0.0 if b is None else float(b.norm()) for b in out)
            return out

        known[key] = mismatch(self.snapshot, self.rows, product, vjp, apart, pulled is not None)
        own = self._program is not None and self._program.own_rules and route == "replay"
        shown = own or min(sizes) > torch.finfo(self.dtype).eps * max(sizes)
        if not known[key] and shown and self.snapshot.observed.plain:
            self.snapshot.facts.add(key)
        return known[key]

    @cached_property
    def _signature(self) -> int:
        """A number for the kinds of operations in the graph, in order."""
        return hash(tuple(type(n).__name__ for n in nodes_of([self._graph.grad_fn])))

    def _rows_of_jacobian(self, why: str) -> Tensor:
        """J (N*O, P) by one backward pass a row, kept for further products, since of ``why``."""
        if self._jacobian is None:
            size = self.rows * self.n_params * self.dtype.itemsize
            if size > min(self.workspace, self.allowance.room):
                raise RuntimeError(
                    f"catapult_ext.{self.snapshot.where}: products with J need second derivatives "
                    f"of all operations, got {why}; J itself, {size:.2e} bytes, does not fit into "
                    "the workspace (take fewer samples, or samples_at_once=)"
                )
            self._jacobian = Linearization.jacobian(self)
        return self._jacobian

    def _pushed_with_graph(self, blocks: Sequence[Tensor | None]) -> Tensor | None:
        """J t by a backward pass through the backward pass, which can be differentiated by t."""
        used, grads, dummy = self._backward_graph()
        if not used:
            return None
        return torch.autograd.grad(
            grads,
            dummy,
            [blocks[i] for i in used],
            retain_graph=True,
            create_graph=torch.is_grad_enabled(),
        )[0]

    def _backward_of_backward(self, t: Tensor) -> Tensor:
        columns = []
        with torch.no_grad():
            for k in range(t.shape[1]):
                out = self._pushed_with_graph(self.snapshot.split(t[:, k].contiguous()))
                columns.append(t.new_zeros(self.rows) if out is None else out.reshape(-1))
        return torch.stack(columns, 1)

    def structured(self) -> Structured | None:
        """Where parameters meet data, by the graph or one more pass; None where neither tells."""
        if self.snapshot.coarse:
            return None
        if self._uses is None:
            try:
                found = Structured(self.snapshot, uses_seen(self.snapshot, self._graph))
            except LIMITS:
                raise
            except Exception:  # sizes that are no numbers, as of jagged tensors inside the model
                return None
            if found.why:
                return None
            if self.allowance.budget is not None or found.bytes > _KEPT:
                return found
            self._uses = found  # with its graph: kernels, traces and diagonals take it again
        return self._uses

    def kernel(self, other: Linearization | None, outputs: str) -> Tensor | None:
        """J J2' from the parameter uses; None where a use or the workspace does not allow it."""
        self.kernel_too_large = self.allowance.budget is not None and self._gradients_exceed()
        if self.kernel_too_large:
            return None
        mine = self.structured()
        theirs = other.structured() if isinstance(other, AutogradLinearization) and mine else None
        if mine is None or (other is not None and theirs is None):
            return None
        known = parameter_kernel.kernel(mine, theirs, outputs, self.workspace)
        self.kernel_too_large = known is None
        return known

    def _gradients_exceed(self) -> bool:
        """Whether one sample tells that those of all do not fit, before all are run."""
        one = parameter_kernel.UsesPart.of(self.snapshot.part(slice(0, 1)), self.workspace)
        return one is not None and 2 * self.n_samples * one.gradient_bytes("all") > self.workspace

    def part(self, samples: slice) -> KernelPart | None:
        """The parameter uses of some samples, by a forward pass of their own."""
        return parameter_kernel.UsesPart.of(self.snapshot.part(samples), self.workspace)

    @classmethod
    def part_of(cls, snapshot: FixedModel, workspace: int) -> KernelPart | None:
        """The parameter uses of all samples of ``snapshot``, by one forward pass."""
        return parameter_kernel.UsesPart.of(snapshot, workspace)

    def coarse(self) -> AutogradLinearization:
        """This engine for the model rounded to bfloat16."""
        return AutogradLinearization(self.snapshot.in_bfloat16())

    def hessian(self, loss: Loss, y: Any, hvp: str | None) -> HessianProducts:
        """Products with the Hessian, by ``hvp``, a recorded backward pass, or two of them."""
        tracer, self._tangents = (self._tangents if hvp is None else None), None
        recorded = RecordedHVP.of(self.snapshot, loss, y, self._graph, tracer)
        kind = ForwardHVP if hvp == "forward" else ReverseHVP
        return recorded or kind(self.snapshot, loss, y, self._graph)

    def diagonal(self) -> Tensor:
        """Diagonal of J J', (N*O,): from parameter uses, else from rows per sample or per entry."""
        mine = self.structured()
        known = None if mine is None else parameter_kernel.diagonal(mine, self.workspace)
        known = sample_rows.diagonal(self) if known is None else known
        return super().diagonal() if known is None else known

    def weighted_diagonal(self, product: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Diagonal of J' H J, (P,), from parameter uses; None without them or beyond the room."""
        mine, of = self.structured(), parameter_kernel.weighted_diagonal
        return None if mine is None else of(mine, product, self.workspace)

    def jacobian(self) -> Tensor:
        """J (N*O, P): from parameter uses, else from rows per sample or one by one."""
        mine = self.structured()
        known = None if mine is None else parameter_kernel.jacobian(mine, self.workspace)
        known = sample_rows.jacobian(self) if known is None else known
        return super().jacobian() if known is None else known

    def second(self, seed: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """J t and the second derivative of <seed, f> times t, for t (P, K), in one backward each.

        ``seed`` (N, O) is held for all calls: the graph of its backward pass is kept.
        """
        why = self._why_not("backward of backward", self._pushed_with_graph, self._signature)
        if why:
            raise RuntimeError(
                f"catapult_ext.{self.snapshot.where}: an operation of the model has no second "
                f"derivative: {why}"
            )
        if self._seeded is None:
            self._seeded = self._pull(seed)
        used, kept, dummy = self._seeded
        rows = t.new_empty(self.rows, t.shape[1])

        def column(k: int) -> tuple[Tensor, ...]:
            blocks = self.snapshot.split(t[:, k].contiguous())
            first, *rest = torch.autograd.grad(
                kept,
                [dummy, *self._leaves],
                [blocks[i] for i in used],
                retain_graph=True,
                allow_unused=True,
            )
            rows[:, k] = first.reshape(-1)
            return tuple(rest)

        return rows, self.snapshot.columns(t.shape[1], column)


class TorchLinearization(AutogradLinearization):
    """J' by autograd; J by torch.func.linearize, which stores the tangent program."""

    engine = "linearize"
    hvp_modes = None
    second_of_chunks = False

    def __init__(self, snapshot: FixedModel) -> None:
        super().__init__(snapshot, snapshot.forward())
        self._trusted = False  # the tangents were seen to be the transpose of the gradients
        names = snapshot.names

        def of_params(*params: Tensor) -> Tensor:
            return snapshot.outputs(dict(zip(names, params, strict=True)))

        leaves = [p.detach() for p in self._leaves]
        try:
            with snapshot.aside(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch's own tracing
                _, self._tangent = torch.func.linearize(of_params, *leaves)
        except Exception as error:
            raise RuntimeError(
                f"catapult_ext.{snapshot.where}: torch.func.linearize cannot handle this model "
                f"(try engine='autograd'): {error}"
            ) from error

    @classmethod
    def recorder(cls, snapshot: FixedModel) -> None:
        """None: its set-up takes seconds, so that it serves by name alone."""

    @classmethod
    def build(cls, snapshot: FixedModel) -> TorchLinearization:
        """This engine by ``torch.func.linearize``."""
        return cls(snapshot)

    @classmethod
    def build_to_measure(cls, snapshot: FixedModel) -> AutogradLinearization:
        """The autograd engine, which keeps as much."""
        return AutogradLinearization.build(snapshot)

    def jvp(self, t: Tensor) -> Tensor:
        """J t: (P, K) to (N*O, K); the first product checks the transpose."""
        if not self._trusted:
            self._check_transpose()
            self._trusted = True
        return self._pushed(t)

    def _check_transpose(self) -> None:
        """Twice: traced programs may change their own constants (LSTM, torch 2.13)."""

        def vjp(u: Tensor, which: Sequence[int]) -> list[Tensor | None]:
            return self._blocks(u[:, 0], which)

        def product(blocks: Sequence[Tensor | None]) -> Tensor:
            with self.snapshot.policy.seeded(self.snapshot.device):
                return self._tangent(*blocks)

        for _ in range(2):
            why = mismatch(self.snapshot, self.rows, product, vjp)
            v.require(
                not why,
                self.snapshot.where,
                "engine='linearize' must give the transpose of the gradients; torch.func.linearize "
                "does not for this model (leave engine out)",
                why,
            )

    def _pushed(self, t: Tensor) -> Tensor:
        snapshot = self.snapshot
        columns = []
        for k in range(t.shape[1]):
            # the tangent program draws its masks again: from the same seed, the same masks
            with torch.no_grad(), snapshot.policy.seeded(snapshot.device):
                out = self._tangent(*snapshot.split(t[:, k].contiguous()))
            columns.append(out.reshape(-1))
        return torch.stack(columns, 1)
