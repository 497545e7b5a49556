"""The memory format in which a frozen model of images runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from catapult_ext.linops.model.policy import frozen_context

if TYPE_CHECKING:
    from catapult_ext.linops.model.snapshot import Snapshot


def prefer_channels_last(snapshot: Snapshot) -> None:
    """Images and filters with channels last, in which CPU convolutions are up to twice as fast.

    Kept only where one sample shows that the model takes it and gives the same outputs.
    """
    before = (snapshot.params, snapshot.constants, snapshot.x)
    try:
        with (
            frozen_context(),
            snapshot.policy.applied(snapshot.where, snapshot.device),
            torch.no_grad(),
        ):
            plain = snapshot.part(slice(0, 1)).call(snapshot.params)
            snapshot.params = {k: _last(p).requires_grad_() for k, p in snapshot.params.items()}
            snapshot.constants = {k: _last(c) for k, c in snapshot.constants.items()}
            snapshot.x = tree_map(lambda a: _last(a) if isinstance(a, Tensor) else a, snapshot.x)
            other = snapshot.part(slice(0, 1)).call(snapshot.params)
        good = bool(((plain - other).abs() <= 1e-4 * plain.abs().max()).all())
    except Exception:  # whatever stands against it is said by the real forward pass
        good = False
    if not good:
        snapshot.params, snapshot.constants, snapshot.x = before


def _last(value: Tensor) -> Tensor:
    """A 4-D tensor with channels last, any other as it is; without graph."""
    if value.dim() != 4:
        return value.detach()
    return value.detach().contiguous(memory_format=torch.channels_last)
