"""Reference of toy_gd_reduced: the closed map of (w, S, q), batched."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from catapult_ext.reference.toy_gd import Record, divergence_cut, kernel_top, run


def toy_gd_reduced(
    w: Tensor,
    S: Tensor,
    q: Tensor,
    x: Tensor,
    y: Tensor,
    eta: Tensor,
    width: float,
    steps: int,
    *,
    record_every: int = 1,
    curvature_every: int = 0,
) -> Record:
    """Closed recursion of :func:`catapult_ext.ops.toy_gd_reduced` in plain tensor operations."""
    samples = x.shape[0]
    e = eta / math.sqrt(width)

    def observe() -> tuple[Tensor, Tensor, Tensor]:
        residual = w @ x.mT / math.sqrt(width) - y
        norm = S.diagonal(dim1=1, dim2=2).sum(1) + q
        return residual, residual.square().sum(1) / (2 * samples), norm

    def step(residual: Tensor, alive: Tensor) -> None:
        z = residual @ x / samples
        Sz = (S @ z[:, :, None]).squeeze(-1)
        wz, zSz = (w * z).sum(1), (z * Sz).sum(1)
        wz_outer = w[:, :, None] * z[:, None, :]
        e1, e3 = e[:, None], e[:, None, None]
        new_w = w - e1 * (Sz + q[:, None] * z) + e1**2 * wz[:, None] * z
        new_S = S - e3 * (wz_outer + wz_outer.mT)
        new_S += e3**2 * q[:, None, None] * z[:, :, None] * z[:, None, :]
        new_q = q - 2 * e * wz + e**2 * zSz
        w.copy_(torch.where(alive[:, None], new_w, w))
        S.copy_(torch.where(alive[:, None, None], new_S, S))
        q.copy_(torch.where(alive, new_q, q))

    def curvature() -> Tensor:
        return kernel_top(S, q, x, width)

    limit = divergence_cut(x, y, observe()[2], width)
    return run(observe, step, curvature, limit, steps, record_every, curvature_every)
