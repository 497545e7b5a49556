"""A fresh module tree for every forward pass, whose leaves are the tensors of a snapshot.

``functional_call`` exchanges the tensors of the user's own module for one pass: whatever else the
pass writes (attributes, caches, hooks, a second registration of a module) stays behind, and what
reaches parameters otherwise (a list, a closure, a backward pass that runs the module again) does
not see the exchange.  A tree of its own has neither problem, and starts from the same state in
every pass.  No parameter is copied: the template holds a :class:`Slot` where a tensor belongs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext._model_call import call_model
from catapult_ext._module_copy import Copier, Kind, plain_tensor


class Slot:
    """The place of a parameter or buffer in a template."""

    def __init__(self, name: str, original: Tensor) -> None:
        self.name, self.shape, self.requires_grad = name, original.shape, original.requires_grad
        kind = Kind(original)
        self.kind = kind if kind.special else None

    def dim(self) -> int:
        """Dimensions of the tensor that belongs here."""
        return len(self.shape)

    def size(self) -> torch.Size:
        """Shape of the tensor that belongs here."""
        return self.shape


class Tree:
    """One instance of a template: a module, and the function values that refer to it.

    Attributes:
        model: the module of this pass.
        forward: the caller's ``forward=`` for it, or None.
        loss: the caller's loss as it was before any call; see :meth:`own_loss`.
        held: modules to keep alive, which others refer to weakly.
    """

    def __init__(self, model: nn.Module, forward: Any, loss: Any, held: list[nn.Module]) -> None:
        self.model, self.forward, self.loss = model, forward, loss
        self.held = held

    def run(self, x: Any) -> Any:
        """Outputs of the model for inputs ``x``."""
        # casts that an earlier pass left there belong to its graph
        torch.clear_autocast_cache()
        return call_model(self.model, x, self.forward)

    def own_loss(self) -> Any:
        """The loss in its first state; it sees this tree's modules as the pass left them."""
        memo: dict[int, Any] = {}
        for module in self.model.modules():
            memo[id(module)] = module
            for tensors in (module._parameters, module._buffers):
                memo.update((id(t), t) for t in tensors.values() if t is not None)
        return Copier(memo)(self.loss)


class Template:
    """The structure of a user's model, without its parameters; trees are made of it.

    Args:
        model: the user's module.
        forward: the user's ``forward=``; modules it closes over are those of the tree.
        loss: the user's loss, or None.
        names: by ``id`` of the user's parameters and buffers, the names under which trees are
            given tensors.
        backward_hooks: keep hooks of the backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Any,
        loss: Any,
        names: Mapping[int, tuple[str, Tensor]],
        backward_hooks: bool = False,
    ) -> None:
        self._backward_hooks = backward_hooks
        self._derived: list[tuple[Tensor, weakref.ref[Tensor]]] = []
        self.slots = {name: Slot(name, tensor) for name, tensor in names.values()}
        memo: dict[int, Any] = {key: self.slots[name] for key, (name, _) in names.items()}
        copier = Copier(memo, self._attribute, backward_hooks)
        self.model: nn.Module = copier(model)
        self.forward, self.loss = copier(forward), copier(loss)
        self._held = copier.held

    def _attribute(self, value: Tensor) -> Tensor:
        """Values of a tensor in an attribute; what its graph reaches is left to the proof."""
        out = plain_tensor(value)
        if value.grad_fn is not None:
            self._derived.append((out, weakref.ref(value)))
        return out

    @property
    def has_derived(self) -> bool:
        """Whether attributes of the user's model hold tensors with graphs."""
        return bool(self._derived)

    def forget_graphs(self) -> None:
        """Trees made from now on see attributes with graphs as constants."""
        self._derived = []

    def tree(self, tensors: Callable[[str], Tensor]) -> Tree:
        """A tree of its own, with ``tensors(name)`` in every slot."""
        memo: dict[int, Any] = {}
        for name, slot in self.slots.items():
            tensor = tensors(name)
            memo[id(slot)] = tensor if slot.kind is None else slot.kind.of(tensor)
        for mine, original in self._derived:
            kept = original()
            if kept is not None:
                memo[id(mine)] = kept.clone()
        copier = Copier(memo, plain_tensor, self._backward_hooks)
        return Tree(copier(self.model), copier(self.forward), copier(self.loss), copier.held)
