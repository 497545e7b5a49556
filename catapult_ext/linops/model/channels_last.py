"""The memory format in which a model of images runs at fixed parameters.

CPU convolutions are up to twice as fast with channels last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.model.memory_meter import LIMITS

Result = TypeVar("Result")


class OtherLayout(RuntimeError):
    """The model gives other outputs with channels last than in the plain layout."""


@torch.inference_mode(False)
def set_channels_last(snapshot: FixedModel) -> None:
    """Lays out images and filters with channels last; the first pass says whether that serves."""
    snapshot.params = {k: _last(p).requires_grad_() for k, p in snapshot.params.items()}
    snapshot.constants = {k: _last(c) for k, c in snapshot.constants.items()}
    snapshot.x = tree_map(lambda a: _last(a) if isinstance(a, Tensor) else a, snapshot.x)
    snapshot.channels_last = True


@torch.inference_mode(False)
def set_plain_layout(snapshot: FixedModel) -> bool:
    """Takes channels last back; returns whether the snapshot had it."""
    if not snapshot.channels_last:
        return False
    snapshot.channels_last = False
    snapshot.params = {
        k: p.detach().contiguous().requires_grad_() for k, p in snapshot.params.items()
    }
    snapshot.constants = {k: _plain(c) for k, c in snapshot.constants.items()}
    snapshot.x = tree_map(lambda a: _plain(a) if isinstance(a, Tensor) else a, snapshot.x)
    return True


def in_any_layout(snapshot: FixedModel, run: Callable[[], Result]) -> Result:
    """The result of ``run``, which may fail once with channels last, and then runs without."""
    try:
        return run()
    except LIMITS:
        raise
    except Exception:
        if not set_plain_layout(snapshot):
            raise
    return run()


def same_in_either_layout(one: Tensor, other: Tensor) -> bool:
    """Whether outputs of the two layouts agree: 1e-4 of the largest."""
    fits = one.shape == other.shape
    return fits and bool(((one - other).abs() <= 1e-4 * one.abs().max()).all())


def _last(value: Tensor) -> Tensor:
    """A 4-D tensor with channels last, any other as it is; without graph."""
    if value.dim() != 4 or value.layout != torch.strided:
        return value.detach()
    return value.detach().contiguous(memory_format=torch.channels_last)


def _plain(value: Tensor) -> Tensor:
    return value.contiguous() if value.layout == torch.strided else value
