"""Optimizers of the command line: a name of ``torch.optim`` with its settings, or your function."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import torch
from torch import nn

from catapult_ext import _validate as v
from catapult_ext._by_path import fault, is_path_of_object, named_function

_OPTION = "--optimizer"


def load_optimizer(
    spec: str | None, model: nn.Module, where: str = "max-lr"
) -> torch.optim.Optimizer | None:
    """The optimizer of ``model`` that ``spec`` describes; None for None.

    Args:
        spec: a class of ``torch.optim``, in any case, with its settings as in Python: ``adamw`` or
            ``SGD(lr=0.1, momentum=0.9)``; or ``package.module:function`` of the model.
        model: whose parameters it trains.
        where: the command named in errors.

    Raises:
        ValueError: an unknown name, settings that are no Python numbers, or a function that fails.
        TypeError: a function that returns no optimizer.

    Examples:
        >>> from catapult_ext.experiments.named_optimizer import load_optimizer
        >>> made = load_optimizer("SGD(lr=0.1, momentum=0.9)", nn.Linear(2, 1))
        >>> type(made).__name__, made.defaults["momentum"]
        ('SGD', 0.9)
    """
    if spec is None:
        return None
    given: Any = model
    settings: dict[str, Any] = {}
    if "(" not in spec and is_path_of_object(spec):
        make = named_function(where, _OPTION, spec)
    else:
        name, settings = _parsed(spec, where)
        make, given = _class_of(name, where), list(model.parameters())
    try:
        made = make(given, **settings)
    except Exception as error:
        wanted = f"{_OPTION} {spec} must return without an error"
        raise ValueError(f"catapult_ext.{where}: {wanted}, got {fault(error)}") from error
    if not isinstance(made, torch.optim.Optimizer):
        kind = type(made).__name__
        v.fail(where, f"{_OPTION} {spec} must return a torch.optim.Optimizer", kind, TypeError)
    return made


def _parsed(spec: str, where: str) -> tuple[str, dict[str, Any]]:
    """Name and settings of ``name`` or ``name(key=value, ...)``."""
    wanted = f"{_OPTION} must be a name with settings, such as 'SGD(lr=0.1, momentum=0.9)'"
    try:
        call: Any = ast.parse(spec.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            return call.id, {}
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise ValueError("no call")
        settings = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
    except (ValueError, SyntaxError):
        v.fail(where, wanted, repr(spec))
    return call.func.id, settings


def _class_of(name: str, where: str) -> Any:
    """The class of ``torch.optim`` with this name, in any case."""
    known = {
        key.lower(): kind
        for key, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)
        if kind is not torch.optim.Optimizer
    }
    near = v.nearest(name.lower(), known)
    wanted = f"{_OPTION} must be a class of torch.optim or package.module:function"
    v.require(name.lower() in known, where, wanted, f"{name!r}{near}")
    return known[name.lower()]
