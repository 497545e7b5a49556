"""The memory format in which a frozen model of images runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from catapult_ext.linops.policy import frozen_context

if TYPE_CHECKING:
    from catapult_ext.linops.snapshot import Snapshot


def prefer_channels_last(held: Snapshot) -> None:
    """Images and filters with channels last, in which CPU convolutions are up to twice as fast.

    Kept only where one sample shows that the model takes it and gives the same outputs.
    """
    before = (held.params, held.constants, held.x)
    try:
        with frozen_context(), held.policy.applied(held.where, held.device), torch.no_grad():
            plain = held.part(slice(0, 1)).call(held.params)
            held.params = {k: _last(p).requires_grad_() for k, p in held.params.items()}
            held.constants = {k: _last(c) for k, c in held.constants.items()}
            held.x = tree_map(lambda a: _last(a) if isinstance(a, Tensor) else a, held.x)
            other = held.part(slice(0, 1)).call(held.params)
        good = bool(((plain - other).abs() <= 1e-4 * plain.abs().max()).all())
    except Exception:  # whatever stands against it is said by the real forward pass
        good = False
    if not good:
        held.params, held.constants, held.x = before


def _last(value: Tensor) -> Tensor:
    """A 4-D tensor with channels last, any other as it is; without graph."""
    if value.dim() != 4:
        return value.detach()
    return value.detach().contiguous(memory_format=torch.channels_last)
