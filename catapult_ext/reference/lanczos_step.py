"""Reference of lanczos_step: classical Gram-Schmidt, twice, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def lanczos_step(
    basis: Tensor,
    alpha: Tensor,
    beta: Tensor,
    w: Tensor,
    step: int,
    *,
    rows: int | None = None,
    coefficients: Tensor | None = None,
    breakdown: float | None = None,
) -> None:
    """In-place step of :func:`catapult_ext.ops.lanczos_step`, in float64."""
    rows = step + 1 if rows is None else rows
    breakdown = 10 * torch.finfo(basis.dtype).eps if breakdown is None else breakdown
    q, rest = basis[:, :rows].double(), w.double()
    projections = torch.zeros_like(q[:, :, 0])
    for _ in range(2):
        part = torch.einsum("rin,rn->ri", q, rest)
        rest = rest - torch.einsum("rin,ri->rn", q, part)
        projections += part
    alpha[:, step] = projections[:, step].to(alpha.dtype)
    if coefficients is not None:
        coefficients.copy_(projections)
    known = torch.cat(
        [w.double().norm(dim=1, keepdim=True), alpha[:, : step + 1].double().abs()], 1
    )
    if step:
        known = torch.cat([known, beta[:, :step].double().abs()], 1)
    length = rest.norm(dim=1)
    dead = length <= breakdown * known.amax(1)
    beta[:, step] = torch.where(dead, torch.zeros_like(length), length).to(beta.dtype)
    unit = rest / torch.where(dead, torch.ones_like(length), length)[:, None]
    basis[:, rows] = torch.where(dead[:, None], torch.zeros_like(unit), unit).to(basis.dtype)
