"""Reference of toy_scalar: the two-number map of the one-sample model, step by step."""

from __future__ import annotations

import torch
from torch import Tensor

Run = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def toy_scalar(
    h: Tensor,
    k: Tensor,
    steps: int,
    *,
    b: Tensor | None = None,
    beta: Tensor | None = None,
    record_every: int = 0,
    early_exit: bool = True,
) -> Run:
    """Exact recursion of :func:`catapult_ext.ops.toy_scalar`, one tensor operation at a time."""
    b = torch.zeros_like(h) if b is None else b
    beta = torch.zeros_like(h) if beta is None else beta
    a = h * k - b
    mh, mk = torch.zeros_like(h), torch.zeros_like(h)
    reach = (h * h + k * k) / 2 + b.abs()
    cut = (1000 * reach * reach).clamp(max=torch.finfo(h.dtype).max)
    diverged = torch.where(a * a <= cut, -1, 0)
    peak = torch.where(diverged < 0, a * a, torch.nan)
    peak_step = torch.zeros_like(diverged)
    records: tuple[list[Tensor], list[Tensor]] = ([], [])
    for t in range(steps + 1):
        if t > 0:
            new_mh, new_mk = beta * mh - a * k, beta * mk - a * h
            new_h, new_k = h + new_mh, k + new_mk
            new_a = new_h * new_k - b
            u = new_a * new_a
            diverged = torch.where((diverged < 0) & ~(u <= cut), t, diverged)
            alive = diverged < 0
            h, k = torch.where(alive, new_h, h), torch.where(alive, new_k, k)
            mh, mk = torch.where(alive, new_mh, mh), torch.where(alive, new_mk, mk)
            a = torch.where(alive, new_a, a)
            rises = alive & (u > peak)
            peak = torch.where(rises, u, peak)
            peak_step = torch.where(rises, t, peak_step)
        if record_every and t % record_every == 0:
            records[0].append(a)
            records[1].append(h * h + k * k)
    stacked = [torch.stack(r, 1) if r else h.new_empty(len(h), 0) for r in records]
    return h, k, peak, peak_step, diverged, stacked[0], stacked[1]
