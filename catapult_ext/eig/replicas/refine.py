"""Rayleigh-Ritz from good blocks of R replicas; the bounds of :mod:`catapult_ext.eig.refine`.

Replicas within ``tol`` stop; the others are enlarged along what their errors come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from catapult_ext.eig.certify import rounding
from catapult_ext.eig.replicas.batch import Batch
from catapult_ext.eig.replicas.pairs import Found
from catapult_ext.eig.sums import on_host

_ROUNDS = 4  # expansions of the space before a solve from scratch is the better use of products
_PACE = 0.25  # the factor that the first expansion is expected to put on errors


def refine_replicas(
    a: Batch,
    block: Tensor,
    k: int,
    gaps: Tensor,
    tol: float,
    ends: Callable[[Tensor, Tensor], Tensor],
) -> Found:
    """Rayleigh-Ritz on rows ``block`` (R, j, n) with ``gaps`` (R, j - k + 1) of the last check.

    A replica that misses ``tol``, or has values that are not finite, is not converged.  One that
    would miss ``tol`` at the pace of its errors ends early, and so does one that is to be checked
    whatever its errors: ``ends`` tells which, from the numbers and the values (R', k) of replicas.
    """
    found = Found.nothing(a.replicas, a.n, k, a.dtype, a.device)
    found.guards = block[:, k:].clone()
    finite = torch.isfinite(block).all(2).all(1).cpu()
    here = finite.nonzero().flatten()
    if not len(here):
        return found
    space = _Space(a.select(here) if len(here) < a.replicas else a, len(here))
    space.append(block[here.to(block.device)])
    before = None  # how far errors were from tol
    for rounds in range(_ROUNDS + 1):
        part, directions, excess = _judged(space, k, block.shape[1], gaps[here], tol)
        found.put(here, part)
        pace = _PACE if before is None else excess / before
        hopeful = excess * pace ** (_ROUNDS - rounds) <= 1  # False of NaN
        left = (~part.converged & hopeful & ~ends(here, part.values)).nonzero().flatten()
        room = space.rows.shape[1] + k <= a.n
        if not len(left) or rounds == _ROUNDS or not room:
            return found
        here, before = here[left], excess[left]
        space.keep(left)
        space.append(directions[left.to(directions.device)])
    return found


class _Space:
    """Orthonormal rows V and scaled products (R, m, n), and their projection (R, m, m)."""

    def __init__(self, a: Batch, replicas: int) -> None:
        self.a = a
        self.rows = torch.empty(replicas, 0, a.n, dtype=a.dtype, device=a.device)
        self.products = self.rows.clone()
        self.scale = torch.zeros(replicas, 1, 1, dtype=torch.float64, device=a.device)

    def append(self, block: Tensor) -> None:
        """Multiply the part of ``block`` (R, b, n) outside the rows."""
        wide, rows = block.double(), self.rows.double()
        wide = wide / torch.linalg.vector_norm(wide, dim=2, keepdim=True).clamp_min(1e-300)
        for _ in range(2):
            wide = wide - (wide @ rows.mT) @ rows
            wide = torch.linalg.qr(wide.mT)[0].mT
        q = wide.to(self.a.dtype)
        w = self.a.product(q.mT).mT.double()
        if not self.products.shape[1]:
            largest = w.abs().amax((1, 2), keepdim=True)
            known = torch.isfinite(largest) & (largest > 0)
            self.scale = torch.exp2(torch.where(known, largest, 1.0).log2().round())
        self.rows = torch.cat([self.rows, q], dim=1)
        self.products = torch.cat([self.products, (w / self.scale).to(q)], dim=1)

    def keep(self, index: Tensor) -> None:
        """Go on with some replicas alone."""
        if len(index) == len(self.rows):
            return
        there = index.to(self.a.device)
        self.a = self.a.select(index)
        self.rows, self.products = self.rows[there], self.products[there]
        self.scale = self.scale[there]


def _judged(
    space: _Space, k: int, j: int, gaps: Tensor, tol: float
) -> tuple[Found, Tensor, Tensor]:
    """The k top Ritz pairs with their errors, directions that would lower these, errors by tol."""
    v, w = space.rows.double(), space.products.double()
    t = w @ v.mT
    finite = torch.isfinite(t).all(2).all(1)
    t = torch.where(finite[:, None, None], t, 0.0)
    skew = (t - t.mT).abs().amax((1, 2))
    norm = torch.linalg.vector_norm(w, dim=2).amax(1)
    theta, s = torch.linalg.eigh((t + t.mT) / 2)
    theta, s = theta.flip(1), s.flip(2)[:, :, :j].mT
    x, ax = s @ v, s @ w
    lengths = torch.linalg.vector_norm(x, dim=2, keepdim=True)
    x, ax = x / lengths, ax / lengths
    values = (x * ax).sum(2)
    rest = ax - values[:, :, None] * x
    theta, values, gram, skew, norm, scale = on_host(
        theta, values, rest @ rest.mT, skew, norm, space.scale.flatten()
    )
    finite = finite.cpu()
    gram = torch.where(finite[:, None, None], gram, 0.0)
    theta = torch.cat([values.where(finite[:, None], 0.0), theta[:, j:]], dim=1)
    size = torch.maximum(norm, theta[:, 0].abs())
    floor = torch.maximum(max(rounding(space.a.n, space.a.eps), 2 * space.a.grain) * size, 4 * skew)
    errors, mix = _bounds(theta, gram, k, gaps)
    errors = (errors + floor[:, None]).where(finite[:, None], math.nan)
    allowed = torch.maximum(tol * theta[:, :k].abs(), 2 * floor[:, None])
    part = Found(
        values=values[:, :k] * scale[:, None],
        x=x[:, :k].to(space.rows),
        residuals=gram.diagonal(dim1=1, dim2=2)[:, :k].clamp_min(0).sqrt() * scale[:, None],
        errors=errors * scale[:, None],
        converged=(errors <= allowed).all(1),
        matvecs=torch.full((len(theta),), _added(space, j, k), dtype=torch.int64, device="cpu"),
        index=["inherited"] * len(theta),
        guards=x[:, k:].to(space.rows),
    )
    return part, mix.to(rest) @ rest, (errors / allowed).amax(1)


def _added(space: _Space, j: int, k: int) -> int:
    """Products since the last judgement: those of the block, or of one direction a value."""
    return j if space.rows.shape[1] == j else k


def _bounds(theta: Tensor, gram: Tensor, k: int, gaps: Tensor) -> tuple[Tensor, Tensor]:
    """Errors (R, k) without rounding, and weights (R, k, j) of the residuals that they come from.

    For each number of rows from k on, the complement of their Ritz vectors is bounded as in
    :func:`catapult_ext.eig.refine._complement`; the least bound is taken.
    """
    r, j = gram.shape[:2]
    size = theta[:, :k].abs().amax(1)
    block_norm = torch.linalg.eigvalsh(gram[:, :k, :k])[:, -1].clamp_min(0).sqrt()
    errors = block_norm[:, None].repeat(1, k)
    mix = torch.eye(k, j, dtype=gram.dtype, device="cpu").repeat(r, 1, 1)
    best = torch.full((r,), math.inf, dtype=gram.dtype, device="cpu")
    for rows in range(k, min(j, k + gaps.shape[1] - 1) + 1):
        c = theta[:, k - 1] - gaps[:, rows - k] / 2 * size  # half the distance: it may have shrunk
        lowest = theta[:, rows - 1]
        few = lowest > c  # and at most ``rows`` eigenvalues exceed c
        if theta.shape[1] > rows:
            few &= theta[:, rows] <= c
        own = gram[:, :rows, :rows]
        spread = torch.linalg.eigvalsh(own)[:, -1].clamp_min(0)
        ceiling = torch.where(few, c + spread / (lowest - c), math.inf)
        better = ceiling < best
        best = torch.where(better, ceiling, best)
        for i in range(k):
            room = theta[:, i] - ceiling
            use = better & (room > 0)
            safe = torch.where(use, room, 1.0)[:, None, None]
            upper, vectors = torch.linalg.eigh(torch.diag_embed(theta[:, :rows]) + own / safe)
            bound = (upper[:, -1 - i] - theta[:, i]).clamp_min(0)
            bound = torch.where(use, torch.minimum(bound, block_norm), block_norm)
            errors[:, i] = torch.where(better, bound, errors[:, i])
            weights = torch.zeros_like(mix[:, i])
            weights[:, :rows] = vectors[:, :, -1 - i]
            mix[:, i] = torch.where(use[:, None], weights, mix[:, i])
    return errors, mix
