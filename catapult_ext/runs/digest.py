"""Digests of tensors: what identifies data, weights and the runs on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import hashlib


def update_digest(digest: hashlib._Hash, name: str, value: Tensor) -> None:
    """Feed name, dtype, shape and bytes of a tensor into a hash."""
    value = value.detach().cpu().contiguous()
    digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}".encode())
    digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
