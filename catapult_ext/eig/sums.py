"""Sums over long vectors in float64, without float64 copies of the vectors."""

from __future__ import annotations

import torch
from torch import Tensor

_SUMMED = 1 << 15  # entries that are added up in the vectors' own dtype


def inner(rows: Tensor, others: Tensor) -> Tensor:
    """Products (m, b) of rows (m, n) and others (b, n), float64 on their device.

    Summed over pieces: a float32 matrix times one column of 8e6 entries, as BLAS libraries add it
    up, is right to three digits only.
    """
    n, many = rows.shape[1], 0
    total = torch.zeros(len(rows), len(others), dtype=torch.float64, device=rows.device)
    if rows.device.type != "cpu" and n > _SUMMED:  # all whole pieces by one call
        many = n // _SUMMED * _SUMMED
        left, right = (t[:, :many].unflatten(1, (-1, _SUMMED)) for t in (rows, others))
        total += (left.transpose(0, 1) @ right.permute(1, 2, 0)).double().sum(0)
    for start in range(many, n, _SUMMED):
        piece = slice(start, start + _SUMMED)
        total += (rows[:, piece] @ others[:, piece].T).double()
    return total


def combine(coefficients: Tensor, rows: Tensor) -> Tensor:
    """Product (k, m) @ (m, n) in float64, in pieces that stay in cache."""
    out = torch.empty(len(coefficients), rows.shape[1], dtype=torch.float64, device=rows.device)
    step = max(1, (1 << 19) // max(1, len(rows)))
    for start in range(0, rows.shape[1], step):
        piece = slice(start, start + step)
        out[:, piece] = coefficients @ rows[:, piece].double()
    return out


def row_norms(rows: Tensor) -> Tensor:
    """Euclidean norms along the last dimension in float64, without a float64 copy of long rows."""
    pieces = [p.double().square().sum(-1) for p in rows.split(1 << 17, dim=-1)]
    return torch.stack(pieces).sum(0).sqrt()


def on_host(*parts: Tensor) -> list[Tensor]:
    """Tensors of one device as float64 on the CPU: the host waits for the device once."""
    sizes = [part.numel() for part in parts]
    together = torch.cat([part.reshape(-1) for part in parts]).cpu().double()
    pieces = together.split(sizes)
    return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]
