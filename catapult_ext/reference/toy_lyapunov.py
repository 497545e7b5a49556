"""Reference of toy_lyapunov: the same draws, and one normalised step after the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ROTATIONS = (16, 42, 12, 31, 16, 32, 24, 21)
_SIGN = 1 << 63


def _signed(word: int) -> int:
    """The int64 with the bits of ``word`` mod 2^64."""
    word %= 1 << 64
    return word - (1 << 64) if word >= _SIGN else word


def _shifted_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def threefry(x0: Tensor, x1: Tensor, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Threefry-2x64-20 (Salmon et al. 2011) of int64 counters; arithmetic is mod 2^64."""
    keys = (*key, 0x1BD11BDAA9FC1A22 ^ (key[0] % (1 << 64)) ^ (key[1] % (1 << 64)))
    x0, x1 = x0 + _signed(keys[0]), x1 + _signed(keys[1])
    for i in range(20):
        r = _ROTATIONS[i % 8]
        x0 = x0 + x1
        x1 = ((x1 << r) | _shifted_right(x1, 64 - r)) ^ x0
        if i % 4 == 3:
            turn = i // 4 + 1
            x0 = x0 + _signed(keys[turn % 3])
            x1 = x1 + _signed(keys[(turn + 1) % 3] + turn)
    return x0, x1


def draws(noise: str, steps: int, paths: int, seed: int = 0, first_path: int = 0) -> Tensor:
    """(steps, paths) float64: the z of :func:`catapult_ext.ops.toy_lyapunov`."""
    pairs = torch.arange((steps + 1) // 2, device="cpu")[:, None]
    path = first_path + torch.arange(paths, device="cpu")[None, :]
    pairs, path = torch.broadcast_tensors(pairs, path)
    words = threefry(pairs, path, (seed, 0))
    u, v = ((_shifted_right(w, 12).double() + 0.5) * 2.0**-52 for w in words)
    if noise == "uniform":
        z = [math.sqrt(12) * (t - 0.5) for t in (u, v)]
    elif noise == "two-point":
        z = [torch.where(t < 0.5, -1.0, 1.0).double() for t in (u, v)]
    else:
        radius = (-2 * u.log()).sqrt()
        z = [radius * (2 * math.pi * v).cos(), radius * (2 * math.pi * v).sin()]
    return torch.stack(z, 1).flatten(0, 1)[:steps]


def toy_lyapunov(
    mean: Tensor,
    deviation: Tensor,
    beta: Tensor,
    steps: int,
    *,
    paths: int = 64,
    burn_in: int = 0,
    noise: str = "normal",
    seed: int = 0,
    first_path: int = 0,
) -> Tensor:
    """Growth of :func:`catapult_ext.ops.toy_lyapunov`, the length summed up step by step."""
    z = draws(noise, steps, paths, seed, first_path).to(mean.device)
    x = torch.full((len(mean), paths), 2.0**-0.5, dtype=mean.dtype, device=mean.device)
    y, growth = x.clone(), torch.zeros_like(x)
    for t in range(steps):
        x, y = (1 + beta - mean)[:, None] * x - deviation[:, None] * z[t] * x - beta[:, None] * y, x
        length = torch.hypot(x, y)
        if t >= burn_in:
            growth = growth + length.log()
        unit = torch.where(length > 0, length, torch.ones_like(length))
        x, y = x / unit, y / unit
    return growth
