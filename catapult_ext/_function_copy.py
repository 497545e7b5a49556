"""Copies of functions and methods that hold state: in closures, defaults, attributes, globals."""

from __future__ import annotations

import types
from collections import OrderedDict, deque
from typing import Any, Protocol

import torch

CONSTANTS: set[type] = {
    type(None), bool, int, float, complex, str, bytes, range, slice, type, type(...),
    types.BuiltinFunctionType, types.ModuleType, types.CodeType, property,
    torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format,
}  # fmt: skip
_CONTAINERS = (list, dict, set, deque, OrderedDict)


class Copies(Protocol):
    """Maker of the copies: see :class:`~catapult_ext._module_copy.Copier`."""

    memo: dict[int, Any]

    def __call__(self, value: Any) -> Any:
        """The copy of ``value``."""


def copied_method(copier: Copies, value: types.MethodType) -> types.MethodType:
    """The method itself, or one whose owner or function is a copy."""
    owner, function = copier(value.__self__), copier(value.__func__)
    if owner is value.__self__ and function is value.__func__:
        return value
    return types.MethodType(function, owner)


def copied_function(copier: Copies, value: types.FunctionType) -> Any:
    """The function itself, or one whose closure, defaults and globals are copies."""
    compiled = getattr(value, "_torchdynamo_orig_callable", None)
    if compiled is not None:
        return copier(compiled)
    copier.memo[id(value)] = value  # what it calls may call it
    named = _globals(copier, value)
    state = (value.__defaults__, value.__kwdefaults__, value.__dict__ or None)
    if not value.__closure__ and not named and state == (None, None, None):
        return value
    cells = tuple(types.CellType() for _ in value.__closure__ or ())
    scope = {**value.__globals__, **named} if named else value.__globals__
    out = types.FunctionType(value.__code__, scope, value.__name__, None, cells)
    copier.memo[id(value)] = out
    changed = bool(named)
    for cell, old in zip(cells, value.__closure__ or (), strict=True):
        try:
            content = old.cell_contents
        except ValueError:  # not bound yet
            continue
        cell.cell_contents = copier(content)
        changed |= cell.cell_contents is not content
    out.__defaults__, out.__kwdefaults__, attributes = (
        None if s is None else copier(s) for s in state
    )
    changed |= out.__defaults__ is not value.__defaults__
    for mine, theirs in ((out.__kwdefaults__, value.__kwdefaults__), (attributes, state[2])):
        changed |= any(v is not (theirs or {})[k] for k, v in (mine or {}).items())
    if not changed:
        copier.memo[id(value)] = value
        return value
    out.__dict__.update(attributes or {})
    out.__module__, out.__qualname__ = value.__module__, value.__qualname__
    return out


def _globals(copier: Copies, value: types.FunctionType) -> dict[str, Any]:
    """Copies of the global modules and tensors known here, and of a script's containers."""
    if "site-packages" in value.__code__.co_filename:
        return {}
    out = {}
    for name in _names(value.__code__):
        item = value.__globals__.get(name)
        kind = type(item)
        calls = isinstance(item, types.FunctionType) and item.__module__ == value.__module__
        if kind not in CONSTANTS and (id(item) in copier.memo or calls or kind in _CONTAINERS):
            copied = copier(item)
            if copied is not item:
                out[name] = copied
    return out


def _names(code: types.CodeType) -> list[str]:
    """Global names that a function and those defined inside it use."""
    inner = [name for c in code.co_consts if isinstance(c, types.CodeType) for name in _names(c)]
    return [*code.co_names, *inner]
