"""Inputs of a model at fixed values: checked copies, and those that each pass receives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._batches import map_tensors
from catapult_ext._module_copy import Copier

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
# matrices next to the data, such as a graph's adjacency
_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
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

    def copied(t: Tensor) -> Tensor:
        if t.is_nested:
            v.dense(where, "inputs", t)
        v.require(t.device == device, where, f"inputs must be on the model's {device}", t.device)
        if t.layout not in _SPARSE:
            v.dense(where, "inputs", t)
        v.constant(where, {"inputs": t})
        v.require(t.numel() > 0, where, "inputs must not be empty", tuple(t.shape))
        v.finite(finite(t if t.layout == torch.strided else t.detach().values()), where, "inputs")
        return wide(t.detach().clone())

    return map_tensors(value, copied, _own)


def fresh_inputs(value: Any, tensor: Callable[[Tensor], Tensor]) -> Any:
    """Containers and objects of a pass's own, which it may change, around ``tensor`` of each."""
    return map_tensors(value, tensor, _own)


def _own(value: Any) -> Any:
    return value if isinstance(value, _PLAIN) else Copier()(value)
