"""Proof, on the first pass of a model, that its outputs depend on the tensors it was given.

A pass runs on a copy of the model, so that whatever refers to the user's own parameters (a global
variable, a cell of a class, a tensor kept with its graph) is past its reach, and derivatives by
such parameters would be missing in silence.  The graph of the outputs shows every leaf that they
depend on.  What it does not show, a backward pass that runs modules again, is in Python functions
and hooks: where there are any, the gradient by the user's own parameters is compared as well.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from catapult_ext import _validate as v
from catapult_ext._module_copy import origins
from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.model.graphs import Reached, listed, reached
from catapult_ext.linops.model.habits import Habits, other_generators
from catapult_ext.linops.model.inputs import fresh_inputs
from catapult_ext.linops.model.pass_context import policed
from catapult_ext.linops.model.pass_tree import Template

_proven: weakref.WeakKeyDictionary[nn.Module, dict[int, Habits]] = weakref.WeakKeyDictionary()
_facts: weakref.WeakKeyDictionary[nn.Module, dict[int, set[Any]]] = weakref.WeakKeyDictionary()


class Proof:
    """Made of the user's model when it is frozen; :meth:`check` runs once per kind of pass.

    Args:
        model: the user's module, held weakly.
        forward: the user's ``forward=``.
        names: names and originals of its parameters and buffers by ``id``.
    """

    def __init__(
        self, model: nn.Module, forward: Any, names: Mapping[int, tuple[str, Tensor]]
    ) -> None:
        self._model, self._forward = weakref.ref(model), forward
        self._originals = {name: weakref.ref(tensor) for name, tensor in names.values()}
        self._done = False
        self.facts: set[Any] = set()  # what engines have proven of this kind of pass

    def check(self, snapshot: FixedModel, outputs: Tensor, derived: bool, habits: Habits) -> None:
        """Compare what ``outputs`` reach with the parameters of ``snapshot``.

        Args:
            snapshot: the model of the pass.
            outputs: outputs of the pass, with graph.
            derived: attributes of the user's model hold tensors with graphs.
            habits: what the pass showed, remembered for later ones of this kind.

        Raises:
            ValueError: outputs that depend on none of its parameters, or on parameters of the
                user's module past the call; names them.
        """
        model = self._model()
        if self._done or model is None:
            return
        # attributes and closures, which the key does not see, decide what a pass refers to
        found = reached(outputs)
        self._check_leaves(snapshot, found, derived)
        key = self._key(model, snapshot)
        self.facts = _facts.setdefault(model, {}).setdefault(key, set())
        fact = ("gradients", *found.functions)
        if self._needs_gradients(model, found) and (derived or fact not in self.facts):
            self._compare_gradients(model, snapshot, outputs)
            self.facts.add(fact)
        _proven.setdefault(model, {}).setdefault(key, habits)
        self._done = True

    def recalled(self, snapshot: FixedModel) -> Habits | None:
        """Observations of earlier passes of the same kind."""
        model = self._model()
        return None if model is None else _proven.get(model, {}).get(self._key(model, snapshot))

    def _key(self, model: nn.Module, snapshot: FixedModel) -> int:
        shapes = [(t.shape, t.dtype) for t in tree_leaves(snapshot.x) if isinstance(t, Tensor)]
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        modules = [
            (id(m), m.training, *(tuple(map(id, getattr(m, h).values())) for h in hooks))
            for m in model.modules()
        ]
        parameters = [(id(ref()), name in snapshot.params) for name, ref in self._originals.items()]
        code = getattr(self._forward, "__code__", id(self._forward))
        return hash((tuple(shapes), tuple(modules), tuple(parameters), code))

    def restore(self, snapshot: FixedModel, names: Sequence[str]) -> None:
        """Give parameters ``names`` of ``snapshot`` the values of the user's own again."""
        held = {**snapshot.constants, **snapshot.params}
        with torch.no_grad():
            for name in names:
                original = self._originals[name]()
                if original is not None:
                    parts = original.is_complex() and not held[name].is_complex()
                    held[name].copy_(torch.view_as_real(original) if parts else original)

    def own_names(self, tensors: Sequence[Tensor]) -> list[str]:
        """Names of those among ``tensors`` that are parameters of the user's module itself."""
        ids = {id(t) for t in tensors}
        own = [(name, ref()) for name, ref in self._originals.items()]
        model = self._model()
        for origin in [] if model is None else origins(model):
            own += origin.named_parameters()
        return [name for name, t in own if t is not None and id(t) in ids]

    def _check_leaves(self, snapshot: FixedModel, found: Reached, derived: bool) -> None:
        past = self.own_names(found.leaves)
        way = "give the model itself to forward=, and reach parameters through its modules"
        if derived:
            way += (
                "; a tensor that an attribute keeps with its graph from an earlier pass counts too "
                f"({', '.join(self._attributes()[:4])}): reset it, or detach() it"
            )
        v.require(
            not past,
            snapshot.where,
            f"parameters must be used through the model that is called ({way})",
            f"{listed(past)} of another reference (a global variable, a class, a closure)",
        )
        mine = {id(p) for p in snapshot.params.values()}
        v.require(
            any(id(t) in mine for t in found.leaves),
            snapshot.where,
            "model outputs must depend on a trainable parameter of the model",
            f"outputs that depend on {len(found.leaves)} other tensors (does forward= run another "
            "model?)",
        )

    def _attributes(self) -> list[str]:
        """Paths of attributes of the user's modules that hold tensors with graphs."""
        model = self._model()
        return [
            f"{path}.{name}".removeprefix(".")
            for path, module in ([] if model is None else model.named_modules())
            for name, value in vars(module).items()
            if any(isinstance(t, Tensor) and t.grad_fn is not None for t in tree_leaves(value))
        ]

    @staticmethod
    def _needs_gradients(model: nn.Module, found: Reached) -> bool:
        hooks = any(m._backward_hooks or m._backward_pre_hooks for m in model.modules())
        return bool(found.functions) or hooks

    def _compare_gradients(self, model: nn.Module, snapshot: FixedModel, outputs: Tensor) -> None:
        """J'u of the pass against that of a copy that holds the user's own parameters."""
        seeded = torch.Generator().manual_seed(0)
        u = torch.randn(outputs.shape, generator=seeded, dtype=torch.float64, device="cpu")
        u = u.to(outputs)
        leaves = list(snapshot.params.values())
        with self._set_aside() as originals:
            mine = torch.autograd.grad(outputs, leaves, u, retain_graph=True, allow_unused=True)
            moved = [n for n, p in snapshot.params.items() if p.grad is not None]
            for p in leaves:
                p.grad = None
            moved += [n for n, p in originals.items() if p.grad is not None]
            self._refuse_moved(snapshot, moved)
            chosen = [originals.get(name) for name in snapshot.names]
            if any(p is None or p.dtype != snapshot.dtype for p in chosen):
                return  # a half-precision model: its own pass is another one
            theirs = self._gradients(model, snapshot, originals, u)
            moved = [n for n, p in originals.items() if p.grad is not None]
        self._refuse_moved(snapshot, moved)
        wrong = _different(snapshot, mine, theirs)
        v.require(
            not wrong,
            snapshot.where,
            "gradients of the model must be those of its parameters alone (does an autograd "
            "Function or a hook of the backward pass refer to the model by a global variable, or "
            "change gradients?)",
            f"other gradients by {listed(wrong)} from the model itself",
        )

    @contextmanager
    def _set_aside(self) -> Iterator[dict[str, Tensor]]:
        """The user's parameters by name, without ``.grad`` and hooks inside."""
        own = {n: t for n, ref in self._originals.items() if (t := ref()) is not None}
        own = {n: t for n, t in own.items() if t.requires_grad}
        before = [(p, p.grad, p._backward_hooks) for p in own.values()]
        try:
            for p in own.values():
                p.grad = p._backward_hooks = None
            yield own
        finally:
            for p, grad, hooks in before:
                p.grad = grad
                if hooks is not None:
                    p._backward_hooks = hooks

    def _gradients(
        self, model: nn.Module, snapshot: FixedModel, originals: dict[str, Tensor], u: Tensor
    ) -> tuple[Tensor | None, ...]:
        names = {id(t): (n, t) for n, ref in self._originals.items() if (t := ref()) is not None}
        template = Template(model, self._forward, None, names, backward_hooks=True)

        def tensor(name: str) -> Tensor:
            if name not in originals:
                return snapshot.constants[name].clone()
            # the pass must not write the user's own
            own = originals[name]
            return own.clone() if snapshot.writes_parameters else own

        with policed(snapshot.policy, snapshot.where, snapshot.device), other_generators():
            returned = template.tree(tensor).run(fresh_inputs(snapshot.x, torch.Tensor.clone))
            out = snapshot.outputs_in(returned)
            chosen = [originals[name] for name in snapshot.names]
            return torch.autograd.grad(out, chosen, u.reshape(out.shape).to(out), allow_unused=True)

    @staticmethod
    def _refuse_moved(snapshot: FixedModel, names: list[str]) -> None:
        v.require(
            not names,
            snapshot.where,
            "a backward pass must return gradients by the parameters, not add to their .grad "
            "(reversible layers, reentrant checkpoints of their own): use the layers without",
            f".grad of {listed(names)}",
        )


def _different(
    snapshot: FixedModel, mine: tuple[Tensor | None, ...], theirs: tuple[Tensor | None, ...]
) -> list[str]:
    """Names of parameters whose gradients differ by more than rounding explains."""
    pairs = [
        (torch.zeros_like(p) if a is None else a, torch.zeros_like(p) if b is None else b)
        for a, b, p in zip(mine, theirs, snapshot.params.values(), strict=True)
    ]
    eps = torch.finfo(snapshot.dtype).eps
    whole = max(float(b.norm()) for _, b in pairs)
    return [
        name
        for name, (a, b) in zip(snapshot.names, pairs, strict=True)
        if not float((a - b).norm()) <= 1e-2 * eps**0.25 * float(b.norm()) + 1e3 * eps * whole
    ]
