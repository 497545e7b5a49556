"""The plain module inside a DDP or FSDP2 wrapper, as a copy of its own."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext._module_copy import own_copy, unwrapped


def plain_copy(model: nn.Module, loss: Any) -> tuple[nn.Module, Any]:
    """Copies of ``model`` and of a loss of it that training does not change, without wrappers.

    Sharded parameters are gathered, so that every rank of their mesh must call this.  Ties between
    parameters are kept.

    Cost:
        P values, and for FSDP2 one all-gather of them.
    """
    model = unwrapped(model)
    sharded = any(hasattr(p, "full_tensor") for p in model.parameters())
    if sharded:
        return _rebuilt(model, {}), loss
    return own_copy(model, loss)


def _rebuilt(module: nn.Module, memo: dict[int, nn.Module | Tensor]) -> nn.Module:
    """The module without FSDP2's class and hooks: FSDP2 refuses deepcopy."""
    if id(module) in memo:
        return memo[id(module)]  # type: ignore[return-value]
    cls = type(module)
    from torch.distributed.fsdp import FSDPModule

    wrapped = isinstance(module, FSDPModule)
    new: nn.Module = nn.Module.__new__(cls.__bases__[1] if wrapped else cls)
    memo[id(module)] = new
    own = {name: value for name, value in vars(module).items() if "fsdp" not in name.lower()}
    new.__dict__.update(own)
    new._parameters = {n: _whole(p, memo) for n, p in module._parameters.items()}
    new._buffers = {n: None if b is None else b.clone() for n, b in module._buffers.items()}
    new._modules = {n: None if m is None else _rebuilt(m, memo) for n, m in module._modules.items()}
    if wrapped:
        for name in ("_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks"):
            new.__dict__[name] = OrderedDict()
        for name in ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs"):
            new.__dict__[name] = OrderedDict()
    return new


def _whole(parameter: Tensor | None, memo: dict[int, nn.Module | Tensor]) -> nn.Parameter | None:
    if parameter is None:
        return None
    if id(parameter) not in memo:
        with torch.no_grad():
            full = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            memo[id(parameter)] = nn.Parameter(full.detach().clone(), parameter.requires_grad)
    return memo[id(parameter)]  # type: ignore[return-value]
