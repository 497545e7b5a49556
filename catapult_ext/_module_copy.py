"""Deep copies of modules and of what they reach, for passes that leave the original as it is.

``copy.deepcopy`` refuses modules that keep a tensor with a graph (a feature map, an old weight
norm), locks and handles, and shares what functions close over.  The copies made here hold tensors
without graphs, rebuild functions whose closure, defaults or globals hold state, share what cannot
be copied, and leave out wrappers (``torch.compile``, DDP, DataParallel, opacus) and hooks of the
backward pass.
"""

from __future__ import annotations

import copyreg
import enum
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext._function_copy import CONSTANTS, copied_function, copied_method

# of a module: hooks that only the backward pass or saving and loading call
_BACKWARD_HOOKS = {"_backward_hooks", "_backward_pre_hooks"}
_OTHER_HOOKS = {
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
}
_FORWARD_HOOKS = {
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_non_persistent_buffers_set",
}
_HOOKS_CALLED = {"_forward_hooks", "_forward_pre_hooks", *_BACKWARD_HOOKS}
_ALL_HOOKS = _BACKWARD_HOOKS | _OTHER_HOOKS | _FORWARD_HOOKS


def plain_tensor(value: Tensor) -> Tensor:
    """A copy without graph; a leaf that requires grad stays one."""
    out = value.detach().clone()
    if value.is_leaf and value.requires_grad:
        out.requires_grad_()
    return out


class Kind:
    """Class and attributes of a tensor, which a model may rely on (int8 weights, marks)."""

    def __init__(self, original: Tensor) -> None:
        self._kind, self._attributes = type(original), dict(vars(original))
        self._subclass = self._kind not in (Tensor, nn.Parameter)
        self._parameter = isinstance(original, nn.Parameter)
        self.special = self._subclass or self._parameter or bool(self._attributes)

    def of(self, value: Tensor) -> Tensor:
        """``value``, or a differentiable view of it, with this class and these attributes."""
        if self._subclass and type(value) is Tensor:
            value = value.as_subclass(self._kind)
        if self._attributes:
            vars(value).update(self._attributes)
        if self._parameter and not isinstance(value, nn.Parameter):
            vars(value)["_is_param"] = True  # what isinstance asks for, and assignment to a module
        return value


def _is_grad_sample(value: Any) -> bool:
    """Whether it is opacus's wrapper, whose hooks collect the gradients of single samples."""
    return any(
        kind.__name__ == "GradSampleModule" and kind.__module__.startswith("opacus.")
        for kind in type(value).__mro__
    )


def _kept_hooks(hooks: OrderedDict[int, Any]) -> OrderedDict[int, Any]:
    """Without those of opacus, which belong to the training of the original."""
    kept = OrderedDict()
    for key, hook in hooks.items():
        owner = getattr(getattr(hook, "func", hook), "__self__", None)
        if not _is_grad_sample(owner):
            kept[key] = hook
    return kept


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``, DDP, DataParallel or opacus's GradSampleModule."""
    while True:
        if type(module).__name__ == "OptimizedModule":  # importing its class takes seconds
            module = module.get_submodule("_orig_mod")
        elif isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            module = module.module
        elif _is_grad_sample(module):
            module = module.get_submodule("_module")
        else:
            return module


class _Spent:
    """Stands for a Python generator, which cannot be copied; the first use raises."""

    def __iter__(self) -> _Spent:
        return self

    def __next__(self) -> Any:
        raise TypeError(
            "catapult_ext: the model draws from a Python generator that it keeps, which cannot be "
            "copied, so that the user's own would advance: keep a list or an iterator class instead"
        )

    send = throw = close = __next__


class CopiesItself(nn.Module):
    """Stands in a template for a module with a ``__deepcopy__`` of its own.

    Args:
        module: a copy of it.
        places: path, group and name of each tensor, and what stands for the tensor.
    """

    def __init__(self, module: nn.Module, places: list[tuple[str, str, str, Any]]) -> None:
        super().__init__()
        self.__dict__.update(module=module, places=places)


def _share(one: nn.Module, other: nn.Module) -> bool:
    """Whether a tensor set in ``other`` may be set in ``one`` too: no copy, or a shallow one."""
    both = []
    for module in (one, other):
        parts = list(module.modules())
        groups = [vars(m).get(name) for m in parts for name in ("_parameters", "_buffers")]
        both.append({id(held) for held in (*parts, *groups) if held is not None})
    return not both[0].isdisjoint(both[1])


def _set_places(module: nn.Module, places: list[tuple[str, str, str, Any]]) -> nn.Module:
    parts = dict(module.named_modules(remove_duplicate=False))
    for path, group, name, tensor in places:
        getattr(parts[path], group)[name] = tensor
    return module


class Copier:
    """One consistent deep copy: call it with values that share state.

    Args:
        memo: by ``id`` of an original, what stands for it; grows while copying.
        tensor: makes the copy of a tensor that ``memo`` does not know.
        backward_hooks: keep the modules' hooks of the backward pass.
    """

    def __init__(
        self,
        memo: dict[int, Any] | None = None,
        tensor: Callable[[Tensor], Tensor] = plain_tensor,
        backward_hooks: bool = False,
    ) -> None:
        self.memo: dict[int, Any] = {} if memo is None else memo
        self._tensor = tensor
        self._dropped = _OTHER_HOOKS if backward_hooks else _OTHER_HOOKS | _BACKWARD_HOOKS
        self._kept: list[Any] = []  # originals stay alive, so that no id is used twice
        self.held: list[nn.Module] = []  # copies to keep alive, which copies refer to weakly

    def __call__(self, value: Any) -> Any:
        """The copy of ``value``; the same one for the same original."""
        kind = type(value)
        if kind in CONSTANTS or (kind is tuple and CONSTANTS.issuperset(map(type, value))):
            return value
        key = id(value)
        if key in self.memo:
            return self.memo[key]
        out = self._made(value, kind)
        self.memo.setdefault(key, out)
        self._kept.append(value)
        return self.memo[key]

    def _made(self, value: Any, kind: type) -> Any:
        handler = _HANDLERS.get(kind)
        if handler is not None:
            return handler(self, value)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, nn.Module):
            return self.module(value)
        if _shared(value):
            return value
        return self._object(value)

    # containers -----------------------------------------------------------------------------

    def _dict(self, value: dict[Any, Any]) -> dict[Any, Any]:
        out: dict[Any, Any] = {}
        self.memo[id(value)] = out
        for key, item in value.items():  # in every module: names to tensors and modules
            out[key if type(key) is str else self(key)] = self(item)
        return out

    def _ordered(self, value: OrderedDict[Any, Any]) -> OrderedDict[Any, Any]:
        out: OrderedDict[Any, Any] = OrderedDict()
        self.memo[id(value)] = out
        for key, item in value.items():
            out[self(key)] = self(item)
        return out

    def _list(self, value: list[Any]) -> list[Any]:
        out: list[Any] = []
        self.memo[id(value)] = out
        out.extend(map(self, value))
        return out

    def _deque(self, value: deque[Any]) -> deque[Any]:
        out: deque[Any] = deque(maxlen=value.maxlen)
        self.memo[id(value)] = out
        out.extend(map(self, value))
        return out

    def _tuple(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        out = tuple(map(self, value))
        same = all(a is b for a, b in zip(out, value, strict=True))
        return self.memo.get(id(value), value if same else out)

    def _set(self, value: set[Any]) -> set[Any]:
        return set(map(self, value))

    def _weak(self, value: weakref.ref[Any]) -> weakref.ref[Any]:
        target = value()
        copied = self._referred(target)
        return value if copied is target else weakref.ref(copied)

    def _proxy(self, value: Any) -> Any:
        try:
            target = value.__init__.__self__
        except ReferenceError:  # its target is gone
            return value
        copied = self._referred(target)
        return value if copied is target else weakref.proxy(copied)

    def _referred(self, target: Any) -> Any:
        """The copy of a module or of what is known here; anything else is not copied."""
        if not isinstance(target, nn.Module):
            return self.memo.get(id(target), target)
        self.held.append(self(target))
        return self.held[-1]

    # modules and other objects --------------------------------------------------------------

    def module(self, value: nn.Module) -> nn.Module:
        """A module of the same class with copied attributes; wrappers are left out."""
        inner = unwrapped(value)
        if inner is not value:
            return self(inner)
        kind = type(value)
        protocol = _protocols.get(kind) or _protocols.setdefault(kind, _Protocol(kind))
        if protocol.copies_itself:
            try:
                made = value.__deepcopy__({})  # type: ignore[operator]
            except RuntimeError:  # it keeps a tensor with a graph
                made = value
            if isinstance(made, nn.Module) and not _share(value, made):
                return self._by_itself(value, made)
        out = object.__new__(kind)
        self.memo[id(value)] = out
        state: Any = value.__getstate__() if protocol.getstate else value.__dict__
        if protocol.setstate:
            out.__setstate__(self(state))
            return out
        attributes: dict[str, Any] = out.__dict__
        for name, item in state.items():
            if type(item) in CONSTANTS:
                attributes[name] = item
            elif name in _ALL_HOOKS and (not item or name in self._dropped):
                attributes[name] = type(item)()
            elif name in _HOOKS_CALLED:
                attributes[name] = self(_kept_hooks(item))
            else:
                attributes[name] = self(item)
        attributes["_compiled_call_impl"] = None
        for name in protocol.slots:
            if hasattr(value, name):
                setattr(out, name, self(getattr(value, name)))
        return out

    def _by_itself(self, value: nn.Module, out: nn.Module) -> nn.Module:
        """The copy ``out`` that a module made of itself, with its tensors set one by one."""
        places = [
            (path, group, name, self(tensor))
            for path, part in value.named_modules(remove_duplicate=False)
            for group in ("_parameters", "_buffers")
            for name, tensor in getattr(part, group).items()
            if tensor is not None
        ]
        if all(isinstance(place[-1], Tensor) for place in places):
            return _set_places(out, places)
        return CopiesItself(out, places)

    def _again(self, value: CopiesItself) -> nn.Module:
        """The module for which ``value`` stands in a template."""
        held = vars(value)  # not registered: its tensors are not those of a module
        places = [(*at, self(tensor)) for *at, tensor in held["places"]]
        return _set_places(held["module"].__deepcopy__({}), places)

    def _object(self, value: Any) -> Any:
        """Any other object by its own protocol; one that cannot be copied is shared."""
        kind = type(value)
        try:
            if hasattr(value, "__deepcopy__"):
                return value.__deepcopy__(self.memo)
            reducer = copyreg.dispatch_table.get(kind)
            made = reducer(value) if reducer else value.__reduce_ex__(4)
            return value if isinstance(made, str) else self._rebuilt(value, *made)
        except Exception:  # locks, handles, files: nothing that a pass could hold its own copy of
            self.memo[id(value)] = value
            return value

    def _rebuilt(
        self,
        value: Any,
        make: Any,
        given: Any,
        state: Any = None,
        items: Any = None,
        pairs: Any = None,
        setter: Any = None,
    ) -> Any:
        out = make(*map(self, given))
        self.memo[id(value)] = out
        if state is not None:
            state = self(state)
            if setter is not None:
                setter(out, state)
            elif hasattr(out, "__setstate__"):
                out.__setstate__(state)
            else:
                slots = None
                if isinstance(state, tuple) and len(state) == 2:
                    state, slots = state
                if state:  # one with slots alone has no dictionary
                    vars(out).update(state)
                for name, item in (slots or {}).items():
                    object.__setattr__(out, name, item)
        for item in items or ():
            out.append(self(item))
        for key, item in pairs or ():
            out[self(key)] = self(item)
        return out


_HANDLERS: dict[type, Callable[[Copier, Any], Any]] = {
    dict: Copier._dict,
    OrderedDict: Copier._ordered,
    list: Copier._list,
    deque: Copier._deque,
    tuple: Copier._tuple,
    set: Copier._set,
    types.FunctionType: copied_function,
    types.MethodType: copied_method,
    weakref.ref: Copier._weak,
    weakref.ProxyType: Copier._proxy,
    weakref.CallableProxyType: Copier._proxy,
    weakref.WeakSet: lambda copier, value: weakref.WeakSet(map(copier._referred, value)),
    weakref.WeakValueDictionary: lambda copier, value: weakref.WeakValueDictionary(
        {copier(k): copier._referred(item) for k, item in value.items()}
    ),
    weakref.WeakKeyDictionary: lambda copier, value: weakref.WeakKeyDictionary(
        {copier._referred(k): copier(item) for k, item in value.items()}
    ),
    types.GeneratorType: lambda copier, value: _Spent(),
    torch.Generator: lambda copier, value: value.clone_state(),
    Tensor: lambda copier, value: copier._tensor(value),
    CopiesItself: Copier._again,
    nn.Parameter: lambda copier, value: copier._tensor(value),
}


class _Protocol:
    """How modules of one class are copied."""

    def __init__(self, kind: type) -> None:
        own = [base.__dict__ for base in kind.__mro__ if base not in (nn.Module, object)]
        home = getattr(getattr(kind, "__deepcopy__", None), "__module__", "")
        # of parametrised and of traced modules: it copies attributes alone
        plain = home in ("torch.nn.utils.parametrize", "torch.fx.graph_module")
        self.copies_itself = not plain and any("__deepcopy__" in names for names in own)
        # torch's own drop what is not to be saved, or refuse
        others = [names for names in own if not names["__module__"].startswith("torch.")]
        self.getstate = any("__getstate__" in names for names in others)
        self.setstate = any("__setstate__" in names for names in others)
        self.slots = copyreg._slotnames(kind)  # type: ignore[attr-defined]


_protocols: weakref.WeakKeyDictionary[type, _Protocol] = weakref.WeakKeyDictionary()


def _shared(value: Any) -> bool:
    """Objects that no pass changes, or that belong to the training loop."""
    from torch.utils.data import DataLoader, Dataset

    parts = (type, enum.Enum, torch.optim.Optimizer, DataLoader, Dataset, torch.fx.Graph)
    return isinstance(value, parts) or getattr(type(value), "shared_by_copies", False)


_origins: weakref.WeakKeyDictionary[nn.Module, weakref.ref[nn.Module]] = weakref.WeakKeyDictionary()
_outside: weakref.WeakKeyDictionary[nn.Module, list[nn.Module]] = weakref.WeakKeyDictionary()


def origins(model: nn.Module) -> list[nn.Module]:
    """Modules that still exist and from which ``model`` descends by :func:`own_copy`."""
    found = []
    while (ref := _origins.get(model)) is not None and (origin := ref()) is not None:
        found.append(origin)
        model = origin
    return found


@contextmanager
def without_cached_weights() -> Iterator[None]:
    """Outside of ``parametrize.cached()``: weights cached there belong to the caller's passes."""
    import torch.nn.utils.parametrize as parametrize

    before = parametrize._cache_enabled, parametrize._cache
    parametrize._cache_enabled, parametrize._cache = 0, {}
    try:
        yield
    finally:
        parametrize._cache_enabled, parametrize._cache = before


def own_copy(model: Any, *others: Any) -> Any:
    """A copy that training the original does not change, with parameters and ties of its own.

    Args:
        model: a module, or any value that reaches modules.
        others: values copied with it, such as a loss that refers to the model.

    Returns:
        The copy of ``model``, or a tuple with those of ``others``.

    Cost:
        The values of all parameters, buffers and tensors in attributes.
    """

    def tensor(value: Tensor) -> Tensor:
        out = value.detach().clone()
        if isinstance(value, nn.Parameter):
            kind = type(value) if type(out) is Tensor else None
            if kind is not None:
                out = Tensor._make_subclass(kind, out, value.requires_grad)
        if value.is_leaf and value.requires_grad:
            out.requires_grad_()
        vars(out).update(vars(value))
        return out

    copier = Copier(tensor=tensor)
    first = copier(model)
    if isinstance(model, nn.Module):
        _origins[first] = weakref.ref(model)
        inside = set(first.modules())
        _outside[first] = [m for m in copier.held if m not in inside]
    return (first, *map(copier, others)) if others else first
