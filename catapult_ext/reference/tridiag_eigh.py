"""Reference of tridiag_eigh: dense eigh of the assembled matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def tridiag_eigh(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Decomposition of :func:`catapult_ext.ops.tridiag_eigh` by dense ``eigh``."""
    matrix = torch.diag_embed(alpha)
    matrix += torch.diag_embed(beta, offset=1) + torch.diag_embed(beta, offset=-1)
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors[:, 0, :].contiguous(), vectors[:, -1, :].contiguous()
