"""Reference of lanczos_dense: LAPACK's full spectrum."""

from __future__ import annotations

import torch
from torch import Tensor


def lanczos_dense(
    a: Tensor,
    k: int = 1,
    *,
    tol: float = 1e-5,
    maxiter: int | None = None,
    v0: Tensor | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs of :func:`catapult_ext.ops.lanczos_dense` by ``eigh``, exact whatever the options."""
    lower = torch.tril(a)
    full = lower + torch.tril(a, -1).mT
    finite = torch.isfinite(lower).flatten(1).all(1)
    values, vectors = torch.linalg.eigh(torch.where(finite[:, None, None], full, 0))
    values, vectors = values.flip(1)[:, :k], vectors.flip(2)[:, :, :k].mT
    nan = torch.full((), torch.nan, dtype=a.dtype, device=a.device)
    values = torch.where(finite[:, None], values, nan)
    vectors = torch.where(finite[:, None, None], vectors, nan)
    errors = torch.finfo(a.dtype).eps * a.shape[1] * values.abs()
    steps = torch.full((a.shape[0],), a.shape[1], dtype=torch.int64, device=a.device)
    return values.contiguous(), vectors.contiguous(), errors, steps
