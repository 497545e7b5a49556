"""Reference of toy_gd: explicit batched gradient descent on (U, v)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Record = tuple[Tensor, Tensor, Tensor, Tensor]


def toy_gd(
    U: Tensor,
    v: Tensor,
    x: Tensor,
    y: Tensor,
    eta: Tensor,
    steps: int,
    *,
    record_every: int = 1,
    curvature_every: int = 0,
) -> Record:
    """See :func:`catapult_ext.ops.toy_gd`."""
    samples, width = x.shape[0], U.shape[1]
    rate = (eta / math.sqrt(width))[:, None]

    def observe() -> tuple[Tensor, Tensor, Tensor]:
        hidden = U.mT @ v[:, :, None]  # (R, D, 1)
        residual = (x @ hidden).squeeze(-1) / math.sqrt(width) - y  # (R, N)
        norm = U.square().sum((1, 2)) + v.square().sum(1)
        return residual, residual.square().sum(1) / (2 * samples), norm

    def step(residual: Tensor, alive: Tensor) -> None:
        zeta = residual @ x / samples  # (R, D)
        new_U = U - (rate * v)[:, :, None] * zeta[:, None, :]
        new_v = v - rate * (U @ zeta[:, :, None]).squeeze(-1)
        U.copy_(torch.where(alive[:, None, None], new_U, U))
        v.copy_(torch.where(alive[:, None], new_v, v))

    def curvature() -> Tensor:
        return kernel_top(U.mT @ U, v.square().sum(1), x, width)

    return run(observe, step, curvature, x, y, width, steps, record_every, curvature_every)


def run(
    observe: Callable[[], tuple[Tensor, Tensor, Tensor]],
    step: Callable[[Tensor, Tensor], None],
    curvature: Callable[[], Tensor],
    x: Tensor,
    y: Tensor,
    width: float,
    steps: int,
    record_every: int,
    curvature_every: int,
) -> Record:
    """The loop over steps, with the divergence rule and the held records."""
    _, loss, norm = observe()
    diverged = torch.full(loss.shape, -1, dtype=torch.int64, device=loss.device)
    limit = divergence_cut(x, y, norm, width)
    held = [torch.full_like(loss, torch.nan) for _ in range(3)]  # loss, norm, curvature
    records: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for t in range(steps + 1):
        residual, loss, norm = observe()
        bad = ~((loss <= limit) & norm.isfinite()) & (diverged < 0)
        diverged[bad] = t
        alive = diverged < 0
        held[0] = torch.where(alive, loss, held[0])
        held[1] = torch.where(alive, norm.sqrt(), held[1])
        if t % record_every == 0:
            records[0].append(held[0])
            records[1].append(held[1])
        if curvature_every and t % curvature_every == 0:
            held[2] = torch.where(alive, curvature(), held[2])
            records[2].append(held[2])
        if t < steps:
            step(residual, alive)
    stacked = [torch.stack(r, 1) if r else loss.new_empty(len(loss), 0) for r in records]
    return stacked[0], stacked[1], diverged, stacked[2]


def divergence_cut(x: Tensor, y: Tensor, norm: Tensor, width: float) -> Tensor:
    """1000 times a bound on the loss that the initial |U|^2 + |v|^2, ``norm`` (R,), allows."""
    reach = x.norm() * norm / (2 * math.sqrt(width)) + y.norm()
    bound = reach.square() / (2 * x.shape[0])
    return (1e3 * bound).clamp(max=torch.finfo(norm.dtype).max)


def kernel_top(S: Tensor, q: Tensor, x: Tensor, width: float) -> Tensor:
    """Top eigenvalue of X (S + q I) X' / (N W) for S (R, D, D), q (R,)."""
    inner = S + q[:, None, None] * torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
    kernel = x @ inner @ x.mT / (x.shape[0] * width)
    finite = kernel.isfinite().all(-1).all(-1)
    safe = torch.where(finite[:, None, None], kernel, torch.zeros_like(kernel))
    return torch.where(finite, torch.linalg.eigvalsh(safe)[:, -1], torch.nan)
