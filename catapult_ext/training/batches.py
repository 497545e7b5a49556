"""The batches that training steps use, as endless iterators of pairs ``(x, y)``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Batches = Iterator[tuple[Any, Any]]
Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def whole(x: Any, y: Any) -> Batches:
    """All samples in their order, at every step."""
    return itertools.repeat((x, y))


def epochs(
    x: Tensor, y: Tensor, size: int | None, seed: int, augment: Augmentation | None = None
) -> Batches:
    """Batches without replacement, in a new order every epoch.

    Args:
        x: (N, ...) inputs.
        y: (N, O) targets.
        size: samples of a batch; None, or N and more, for all of them in their order.
        seed: seed of the order and the augmentation.
        augment: maps inputs and a generator to the inputs that are trained on.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64, device=x.device)
    while True:
        chosen, targets = x, y
        if size is not None and size < len(x):
            if len(order) < size:  # the rest of an epoch is dropped
                order = torch.randperm(len(x), generator=generator, device="cpu").to(x.device)
            index, order = order[:size], order[size:]
            chosen, targets = x[index], y[index]
        yield (chosen if augment is None else augment(chosen, generator)), targets


def drawn(x: Tensor, y: Tensor, size: int | None, seed: int) -> Batches:
    """Batches of ``size`` samples, each drawn from all of them; None for all in random order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(x), generator=generator, device="cpu")[:size]
        index = order.to(x.device, non_blocking=True)
        yield x[index], y[index]
