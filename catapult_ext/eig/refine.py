"""Rayleigh-Ritz from a good block: few products, one-sided quadratic error bounds.

The wanted vectors and a few guards are multiplied, then residuals where errors exceed tol.  Let
M = diag(theta) hold j Ritz values, R their residuals, and let at most j eigenvalues exceed some
c < theta_j.  Counting by the Schur complement of A - c, the compression of A to the complement of
the Ritz vectors is at most nu = c + |R|^2 / (theta_j - c), and counting once more

    theta_i <= lambda_i <= lambda_i(M + R R' / (theta_i - nu))   for theta_i > nu:

quadratic in the residuals, and blind to a guard that lies close below.  The c is what the caller
supposes of the eigenvalues that follow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from catapult_ext.eig.certify import inexact
from catapult_ext.eig.device_krylov import krylov
from catapult_ext.eig.krylov import Krylov
from catapult_ext.eig.operand import Operand
from catapult_ext.eig.pairs import Pairs
from catapult_ext.eig.sums import on_host

_ROUNDS = 6  # expansions of the space before a solve from scratch is the better use of products
_PACE = 0.25  # the factor that the first expansion is expected to put on errors


@dataclass(frozen=True, eq=False)
class Refined:
    """Refined pairs, with the state from which the next update starts.

    Attributes:
        pairs: pairs with errors; not converged if a solve from scratch is the better use of
            products.
        block: rows (j, n): the wanted vectors after one step towards A x, which costs no product,
            and the guards.
    """

    pairs: Pairs
    block: Tensor


def refine(
    a: Operand, block: Tensor, k: int, gaps: list[float], tol: float, index: str, where: str
) -> Pairs | None:
    """Rayleigh-Ritz on rows ``block`` (j, n), enlarged along what the errors come from.

    ``gaps``: distances from the k-th value of the eigenvalues that follow it and each guard, over
    the largest |value| (:attr:`Pairs.gaps`); half of each is relied on.  None if the block does
    not span k dimensions.
    """
    found = refine_for_tracker(a, block, k, gaps, tol, where)
    return None if found is None else replace(found.pairs, index=index)


def refine_for_tracker(
    a: Operand, block: Tensor, k: int, gaps: list[float], tol: float, where: str
) -> Refined | None:
    """:func:`refine` with the block from which the next one starts."""
    j = len(block)
    space = krylov(a, min(a.n, j + _ROUNDS * k), 0, where)
    space.append(block)
    if space.m < k:
        return None
    found, before = _judged(space, k, j, gaps, tol), None
    for rounds in range(_ROUNDS):
        pace = _PACE if before is None else found.excess / before
        if found.pairs.converged or not found.excess * pace ** (_ROUNDS - rounds) <= 1:
            break
        before, m = found.excess, space.m
        space.append(found.directions)
        if space.m == m:
            break
        found = _judged(space, k, j, gaps, tol)
    pairs = found.pairs
    return Refined(pairs, torch.cat([_stepped(pairs, found.lowest), pairs.guards]))


def _stepped(pairs: Pairs, lowest: float) -> Tensor:
    """Unit vectors along x + r / (theta - nu): A is near nu where r lies, 0 or the lowest value."""
    room = pairs.values - min(lowest, 0.0)
    length = pairs.rest.norm(dim=1)
    step = 1 / torch.maximum(room, length).clamp_min(1e-300)  # no longer than x itself
    x = pairs.x + step[:, None] * pairs.rest
    return x / x.norm(dim=1, keepdim=True)


@dataclass(frozen=True, eq=False)
class _Judged:
    """The k top Ritz pairs with their errors.

    Attributes:
        pairs: the pairs, with further Ritz vectors as guards.
        directions: rows that would lower the errors beyond tol.
        excess: the largest error over what is allowed.
        lowest: the smallest Ritz value.
    """

    pairs: Pairs
    directions: Tensor
    excess: float
    lowest: float


def _judged(space: Krylov, k: int, j: int, gaps: list[float], tol: float) -> _Judged:
    """The pairs from Ritz vectors of the whole space, j of which bound the errors."""
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
    excess = 0.0
    for i in range(k):
        room = theta[i].item() - ceiling
        if room > 0:
            upper, mix = torch.linalg.eigh(torch.diag(theta[:rows]) + gram[:rows, :rows] / room)
            bound = upper[-1 - i].item() - theta[i].item()
            errors[i] = min(block_norm, max(bound, 0.0))
            direction = mix[:, -1 - i]
        else:
            direction = torch.eye(rows, dtype=torch.float64, device="cpu")[i]
        allowed = max(tol * abs(theta[i].item()), 2 * floor)
        if errors[i] + floor > allowed:
            wanted.append(direction)
            excess = max(excess, (errors[i].item() + floor) / max(allowed, 1e-300))
    pairs = Pairs(
        values=values[:k],
        x=x[:k],
        rest=rest[:k],
        errors=errors + floor,
        converged=not wanted,
        matvecs=space.matvecs,
        scale=space.scale or 1.0,
        index="inherited",
        guards=x[k:],
        following=[],
    )
    directions = torch.stack(wanted).to(rest) @ rest[:rows] if wanted else rest[:0]
    return _Judged(pairs, directions, excess, theta[-1].item())


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
