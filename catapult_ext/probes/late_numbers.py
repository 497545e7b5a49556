"""Numbers made on a GPU, read once they have arrived, so that no training step waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class LateNumbers:
    """Hands numbers to ``take`` in the order in which they were put, without waiting.

    Args:
        take: called with the numbers of one :meth:`put`, as floats, and what came with them.
    """

    def __init__(self, take: Callable[..., None]) -> None:
        self._take = take
        self._waiting: deque[tuple[Tensor, torch.cuda.Event, tuple[Any, ...]]] = deque()

    def put(self, numbers: list[Tensor], *facts: Any) -> None:
        """Start copying scalars of one GPU to the host."""
        with torch.cuda.device(numbers[0].device):
            there = torch.stack([number.detach().double() for number in numbers])
            here = there.to("cpu", non_blocking=True)  # into memory that is pinned
            event = torch.cuda.Event()
            event.record()
        self._waiting.append((here, event, facts))

    def take_arrived(self) -> None:
        """Deliver the numbers that have arrived, without waiting."""
        while self._waiting and self._waiting[0][1].query():
            self._hand_over()

    def take_all(self) -> None:
        """Deliver all numbers, waiting for copies from the GPU that have not finished."""
        while self._waiting:
            if not self._waiting[0][1].query():
                self._waiting[0][1].synchronize()
            self._hand_over()

    def _hand_over(self) -> None:
        here, _, facts = self._waiting.popleft()
        self._take(here.tolist(), *facts)
