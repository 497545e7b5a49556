"""Curvature in the dtype of the parameters, whatever a caller's autocast does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def no_autocast() -> Iterator[None]:
    """Autocast off inside, a context or a decorator; coarse products switch it on themselves."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield
