"""Inputs of a model at fixed values: checked copies, and those that each pass receives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._module_copy import Copier

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
HALF = (torch.bfloat16, torch.float16)
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def wide(value: Tensor) -> Tensor:
    """Half precision is frozen in float32: every product and sum accumulates there."""
    return value.float() if value.dtype in HALF else value


def finite(value: Tensor) -> bool:
    """No NaN or inf: a finite sum proves it in one pass, an infinite one may be an overflow."""
    if not value.is_floating_point():
        return True
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


def copied_inputs(value: Any, where: str, device: torch.device) -> Any:
    """Detached copies of all tensors in a nested input, checked finite and on ``device``."""
    if isinstance(value, Tensor):
        v.require(
            value.device == device, where, f"inputs must be on the model's {device}", value.device
        )
        v.dense(where, "inputs", value)
        v.constant(where, {"inputs": value})
        v.require(value.numel() > 0, where, "inputs must not be empty", tuple(value.shape))
        v.finite(finite(value), where, "inputs")
        return wide(value.detach().clone())
    if isinstance(value, Mapping):
        return {k: copied_inputs(a, where, device) for k, a in value.items()}
    if isinstance(value, (tuple, list)):
        return _like(value, [copied_inputs(a, where, device) for a in value])
    return value if isinstance(value, _PLAIN) else Copier()(value)


def fresh_inputs(value: Any, tensor: Callable[[Tensor], Tensor]) -> Any:
    """Containers and objects of a pass's own, which it may change, around ``tensor`` of each."""
    if isinstance(value, Tensor):
        return tensor(value)
    if isinstance(value, Mapping):
        return {k: fresh_inputs(a, tensor) for k, a in value.items()}
    if isinstance(value, (tuple, list)):
        return _like(value, [fresh_inputs(a, tensor) for a in value])
    return value if isinstance(value, _PLAIN) else Copier()(value)


def unpack(data: object, where: str) -> tuple[Any, Any]:
    """Inputs and targets of ``data``.

    Raises:
        TypeError: it is no pair.
    """
    if not isinstance(data, Sequence) or isinstance(data, str) or len(data) != 2:
        shown = f"{type(data).__name__}" + (
            f" of {len(data)}" if isinstance(data, Sequence) else ""
        )
        v.fail(where, "data must be a pair (x, y)", shown, TypeError)
    return data[0], data[1]


def _like(value: Any, items: list[Any]) -> Any:
    """A sequence of the same kind; a named tuple takes its fields one by one."""
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
