"""Jacobian-vector products by a recorded program: every operation's rule at the frozen values.

One forward pass records the operations between parameters and outputs; a product replays their
tangents alone.  An operation without a rule of its own here takes torch's forward-mode formula at
the recorded inputs.  What cannot be replayed (writes through views, say) is told by ``why``.

Source: forward-mode accumulation of a linearised program (Griewank and Walther 2008, chapter 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from catapult_ext.linops.model.dispatch_mode import DispatchMode
from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.model.leaves import tensors_and_places
from catapult_ext.linops.model.pass_context import draws
from catapult_ext.linops.tracing.gradient_rules import GRADIENT_RULES
from catapult_ext.linops.tracing.slots import Places, Slots
from catapult_ext.linops.tracing.tangent_rules import (
    SHAPES,
    STOPS,
    TANGENT_RULES,
    WITHOUT_VALUE,
)
from catapult_ext.linops.tracing.tensor_call import Made, Rule, TensorCall, aten, by_formula

_RULES = {**TANGENT_RULES, **GRADIENT_RULES}


@dataclass(frozen=True)
class _Known:
    """What is known of an operation, whatever it is called with."""

    rule: Callable[[TensorCall], Made] | None
    stops: bool
    writes: bool
    views: bool


@cache  # schemas are slow to ask
def _known(func: Any) -> _Known:
    rule = _RULES.get(func._overloadpacket)
    return _Known(rule, func in STOPS, func._schema.is_mutable, func.is_view)


@dataclass(eq=False, slots=True)
class Step:
    """One operation: slots of its tensor arguments (None: constant) and of its results."""

    inputs: list[int | None]
    results: list[int | None]
    dtypes: list[torch.dtype | None]  # of the results: operations may mix them (autocast)
    rule: Rule
    dying: Sequence[int] = ()  # slots that no later step reads


class TangentTracer(DispatchMode):
    """Records a forward pass from ``leaves``; ``program`` replays it once :meth:`finish` ran.

    ``why`` says what stands against it; then ``program`` stays None.

    Args:
        leaves: the parameters.
        gradients: record the backward pass as well (:meth:`finish_gradients`).  Autograd saves
            results of operations as other tensors of the same memory: these are told by their
            places in memory.
    """

    def __init__(self, leaves: Sequence[Tensor], gradients: bool = False) -> None:
        super().__init__()
        self._leaves = list(leaves)
        self._gradients = gradients
        self.restart()

    def restart(self) -> None:
        """Forget what was recorded."""
        self.why = ""
        self.program: Program | None = None
        self._signature, self._own_rules = 0, True
        self._slots = Slots()
        self._count = 0
        self._steps: list[Step] = []
        self._saved: list[tuple[Tensor, int]] = []
        self._viewed: set[int] = set()  # storages that views share: no writes in place
        self._places = Places()
        self.backward = False  # what runs now is no part of the forward pass
        self.output: Any = None  # of the forward pass, until the backward pass has run
        for leaf in self._leaves:
            self._new(leaf)

    def another(self) -> TangentTracer:
        """A tracer of another pass from the same leaves."""
        return TangentTracer(self._leaves, self._gradients)

    def forward(self, snapshot: FixedModel) -> Tensor:
        """Outputs of a forward pass that this tracer records, and nothing before it."""
        self.restart()
        outputs = snapshot.forward(self)
        self.finish(snapshot.take_raw_output())
        return outputs

    def _new(self, tensor: Tensor) -> int:
        self._slots.put(tensor, self._count)
        if self._gradients and tensor.layout == torch.strided:
            self._places.put(tensor, self._count)
        self._count += 1
        return self._count - 1

    def _slot(self, tensor: Tensor) -> int | None:
        known = self._slots.get(tensor)
        if known is None and self.backward and tensor.layout == torch.strided:
            return self._places.get(tensor)
        return known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = _known(func)
        # without grad mode results are constants to autograd as well
        if self.why or known.stops or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        tensors, places = tensors_and_places(args, kwargs)
        slots = [self._slot(t) for t in tensors]
        active = [s is not None for s in slots]
        if not any(active):
            return func(*args, **kwargs)
        call = TensorCall(func, args, kwargs, None, tensors, active, places)
        written = tensors[0] if known.writes else None
        if written is not None and not self._writable(call):
            return func(*args, **kwargs)
        out = call.out = func(*args, **kwargs)
        self._record(call, slots, written)
        call.forget()
        return out

    def _writable(self, call: TensorCall) -> bool:
        """Makes an in-place call one without; where that cannot be, says why."""
        name = call.func._schema.name.split("::")[1]
        plain = getattr(aten, name[:-1], None) if name.endswith("_") else None
        overload = "int" if name == "transpose_" else call.func._overloadname
        target = call.tensors[0]
        good = plain is not None and overload in plain.overloads() and call.active[0]
        shared = target.untyped_storage()._cdata in self._viewed and plain not in SHAPES
        if not good or shared:
            self.why = f"it writes in place by {name}"
            return False
        if plain not in WITHOUT_VALUE | SHAPES or (plain is aten.mul and call.active[1:] == [True]):
            call.tensors = [target.clone(), *call.tensors[1:]]
            left = iter(call.tensors)
            call.args, call.kwargs = tree_map_only(
                Tensor, lambda _: next(left), (call.args, call.kwargs)
            )
        call.func = getattr(plain, overload)
        return True

    def _record(self, call: TensorCall, slots: list[int | None], written: Tensor | None) -> None:
        outs = [call.out] if isinstance(call.out, Tensor) else list(tree_leaves(call.out))
        known = _known(call.func)
        if known.views:
            self._viewed.add(outs[0].untyped_storage()._cdata)
        results = [
            self._new(t)
            if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())
            else None
            for t in outs
        ]
        if results.count(None) == len(results):
            return
        if draws(call.func, call.args, call.kwargs):
            self.why = f"it draws random numbers in {call.func}"
            return
        try:
            made, saved = by_formula(call) if known.rule is None else known.rule(call)
        except (TypeError, ValueError, IndexError) as error:  # a form of the call not foreseen
            self.why = f"it calls {call.func} with other arguments ({error})"
            return
        # the version of what is written in place goes up when this call has returned
        self._saved += [(t, t._version + (t is written)) for t in saved]
        dtypes = [t.dtype if isinstance(t, Tensor) else None for t in outs]
        self._steps.append(Step(slots, results, dtypes, made))
        self._signature = hash((self._signature, call.func))
        self._own_rules = self._own_rules and known.rule is not None

    def finish(self, output: Any) -> None:
        """Make ``program`` of the finished forward pass, whose result was ``output``.

        Where gradients are to follow, it is ``output`` that they start from.
        """
        if self._gradients:
            self.output, self.backward = output, True
            return
        end = self._slots.get(output) if isinstance(output, Tensor) else None
        if not self.why and end is None:
            self.why = "its output was not seen to be made of its parameters"
        if not self.why and any(t._version != version for t, version in self._saved):
            self.why = "it changes a saved tensor in place"
        if not self.why and end is not None:
            self._make([end])

    def finish_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Make ``program`` of the finished backward pass, which gave ``gradients`` of the leaves.

        Its results are the tangents of these.
        """
        ends = [None if g is None else self._slots.get(g) for g in gradients]
        if not self.why and all(end is None for end in ends):
            self.why = "no gradient was seen to be made of its parameters"
        if not self.why and any(t._version != version for t, version in self._saved):
            self.why = "it changes a saved tensor in place"
        if not self.why:
            self._make(ends)
        self._places, self.output = Places(), None

    def _make(self, ends: Sequence[int | None]) -> None:
        self.program = Program(len(self._leaves), self._steps, ends)
        self.program.signature = self._signature
        self.program.own_rules = self._own_rules


class TangentRecorder:
    """Records the tangent program of a forward pass, and accepts any model.

    For a Hessian it records for the backward pass that will follow.
    """

    why = ""
    altered = False
    likely = False
    cheap = False

    def __init__(self, snapshot: FixedModel) -> None:
        leaves = list(snapshot.params.values())
        self._tracer = TangentTracer(leaves, gradients=snapshot.probe == "hessian")

    def mode(self) -> AbstractContextManager[Any]:
        """The tracer."""
        return self._tracer

    def finished(self, raw: Any) -> TangentTracer:
        """The tracer with its program, of the pass that returned ``raw``."""
        self._tracer.finish(raw)
        return self._tracer


class Program:
    """The tangent program of one pass: from leaf tangents to those of its results."""

    signature = 0  # of the operations in order
    own_rules = False  # no operation takes torch's formula

    def __init__(self, leaves: int, steps: list[Step], ends: Sequence[int | None]) -> None:
        needed, kept = {end for end in ends if end is not None}, []
        for step in reversed(steps):
            reads = {s for s in step.inputs if s is not None}
            if needed.isdisjoint(r for r in step.results if r is not None):
                continue
            step.dying = sorted(reads - needed)
            needed |= reads
            kept.append(step)
        self._leaves, self._ends = leaves, ends
        self._steps = kept[::-1]

    def __call__(self, tangents: Sequence[Tensor | None], graph: bool = False) -> Tensor | None:
        """Tangents of the leaves, in their shapes, to that of the first result; None is zero.

        A leaf's tangent is read where the first operation takes it, once, and let go after the
        last.  With ``graph`` the result can be differentiated by the tangents.
        """
        return self.results(tangents, graph)[0]

    def results(
        self, tangents: Sequence[Tensor | None], graph: bool = False
    ) -> list[Tensor | None]:
        """Tangents of all results."""
        with torch.inference_mode(False), torch.set_grad_enabled(graph):
            values: dict[int, Tensor | None] = {}

            def value(slot: int | None) -> Tensor | None:
                if slot is not None and slot < self._leaves and slot not in values:
                    t = tangents[slot]
                    values[slot] = t.clone() if t is not None and t.is_inference() else t
                return None if slot is None else values.get(slot)

            for step in self._steps:
                given = [value(s) for s in step.inputs]
                if any(v is not None for v in given):
                    self._keep(values, step, step.rule(given))
                del given
                for slot in step.dying:
                    values.pop(slot, None)
            return [value(end) for end in self._ends]

    @staticmethod
    def _keep(values: dict[int, Tensor | None], step: Step, out: Any) -> None:
        outs = [out] if isinstance(out, Tensor) else tree_leaves(out)
        for slot, dtype, value in zip(step.results, step.dtypes, outs, strict=False):
            if slot is not None and value is not None:
                values[slot] = value if value.dtype is dtype else value.to(dtype)
