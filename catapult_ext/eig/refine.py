"""Rayleigh-Ritz from a good block: few products, one-sided quadratic error bounds.

Only the wanted pairs and a few guards are multiplied.  Let M = diag(theta) hold j Ritz values, R
their residuals, and let at most j eigenvalues exceed some c < theta_j.  Counting by the Schur
complement of A - c, the compression of A to the complement of the Ritz vectors is at most
nu = c + |R|^2 / (theta_j - c), and counting once more

    theta_i <= lambda_i <= lambda_i(M + R R' / (theta_i - nu))   for theta_i > nu:

quadratic in the residuals, and blind to a guard that lies close below.  The c is what the caller
supposes of the eigenvalues that follow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from catapult_ext.eig.certify import inexact
from catapult_ext.eig.device_krylov import krylov
from catapult_ext.eig.krylov import Krylov
from catapult_ext.eig.operand import Operand
from catapult_ext.eig.pairs import Pairs
from catapult_ext.eig.sums import on_host

_ROUNDS = 6  # expansions of the space before a solve from scratch is the better use of products


def refine(
    a: Operand, block: Tensor, k: int, gaps: list[float], tol: float, index: str, where: str
) -> Pairs | None:
    """Rayleigh-Ritz on rows ``block`` (j, n), enlarged along what the errors come from.

    ``gaps``: distances from the k-th value of the eigenvalues that follow it and each guard, over
    the largest |value| (:attr:`Pairs.gaps`); half of each is relied on.  None if the block does
    not span k dimensions.
    """
    j = len(block)
    space = krylov(a, min(a.n, j + _ROUNDS * k), 0, where)
    space.append(block)
    if space.m < k:
        return None
    for rounds in range(_ROUNDS + 1):
        pairs, wanted = _judged(space, k, j, gaps, tol, index)
        before = space.m
        if pairs.converged or rounds == _ROUNDS:
            break
        space.append(wanted)
        if space.m == before:
            break
    return pairs


def _judged(
    space: Krylov, k: int, j: int, gaps: list[float], tol: float, index: str
) -> tuple[Pairs, Tensor]:
    """The k top Ritz pairs with their errors, and the directions that would lower these."""
    theta, s = torch.linalg.eigh(space.t[: space.m, : space.m])
    theta, s = theta.flip(0), s.flip(1)
    x, ax = space.vectors(s[:, :j])
    values = (x * ax).sum(1)
    rest = ax - values[:, None] * x
    theta[: len(values)], gram = on_host(values, rest @ rest.T)
    ceiling, rows = _complement(theta, gram, k, gaps)
    block_norm = torch.linalg.eigvalsh(gram[:k, :k])[-1].clamp_min(0).sqrt().item()
    size = max(space.norm, abs(theta[0].item()))
    floor = inexact(space.a.n, space.eps, size, space.noise, space.a.grain)
    errors, wanted = torch.full((k,), block_norm, dtype=torch.float64, device="cpu"), []
    for i in range(k):
        room = theta[i].item() - ceiling
        if room > 0:
            upper, mix = torch.linalg.eigh(torch.diag(theta[:rows]) + gram[:rows, :rows] / room)
            bound = upper[-1 - i].item() - theta[i].item()
            errors[i] = min(block_norm, max(bound, 0.0))
            direction = mix[:, -1 - i]
        else:
            direction = torch.eye(rows, dtype=torch.float64, device="cpu")[i]
        if errors[i] + floor > max(tol * abs(theta[i].item()), 2 * floor):
            wanted.append(direction)
    pairs = Pairs(
        values=values[:k],
        x=x[:k],
        rest=rest[:k],
        errors=errors + floor,
        converged=not wanted,
        matvecs=space.matvecs,
        scale=space.scale or 1.0,
        index=index,
        guards=x[k:],
        following=[],
    )
    return pairs, torch.stack(wanted).to(rest) @ rest[:rows] if wanted else rest[:0]


def _complement(theta: Tensor, gram: Tensor, k: int, gaps: list[float]) -> tuple[float, int]:
    """The least bound of A compressed to the complement of j >= k Ritz vectors, and that j."""
    best, size = (math.inf, k), theta[:k].abs().max().item()
    for j, gap in enumerate(gaps[: len(gram) - k + 1], k):
        c = theta[k - 1].item() - gap / 2 * size  # half the distance, in case it has shrunk
        lowest = theta[j - 1].item()
        if lowest <= c or (len(theta) > j and theta[j].item() > c):
            continue  # more than j eigenvalues exceed c
        spread = torch.linalg.eigvalsh(gram[:j, :j])[-1].clamp_min(0).item()
        best = min(best, (c + spread / (lowest - c), j))
    return best
