"""The errors and the index check of :mod:`catapult_ext.eig.certify` for R replicas at once.

Everything is float64 on the CPU; the first dimension counts replicas.  A number that is not finite
in one replica stays there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from catapult_ext.eig.certify import _chi_quantile, rounding, wanted
from catapult_ext.eig.pairs import Options


@dataclass(frozen=True, eq=False)
class Ritz:
    """Ritz data of one cycle: values (R, m) ascending, start (R, b0, m), residual (R, m, b)."""

    theta: Tensor
    start: Tensor
    residual: Tensor

    def of(self, index: Tensor) -> Ritz:
        """Ritz data of some replicas."""
        return Ritz(self.theta[index], self.start[index], self.residual[index])


@dataclass(frozen=True, eq=False)
class Noise:
    """Known properties of each replica's products, (R,) each, in scaled units."""

    norm: Tensor  # largest |A q| met
    skew: Tensor  # largest |<u, A v> - <A u, v>| met
    eps: float
    grain: float
    n: int

    def floor(self, theta: Tensor) -> Tensor:
        """The share (R,) of inexact products in errors; see :func:`certify.inexact`."""
        size = torch.maximum(self.norm, theta.abs().amax(1))
        share = max(rounding(self.n, self.eps), 2 * self.grain)
        return torch.maximum(share * size, 4 * self.skew)

    def of(self, index: Tensor) -> Noise:
        """Noise of some replicas."""
        return Noise(self.norm[index], self.skew[index], self.eps, self.grain, self.n)


def ranked(theta: Tensor, which: str, k: int) -> tuple[Tensor, list[int]]:
    """Positions (R, k) of the wanted values by rank in theta (R, m) ascending, and their sides."""
    if which == "LM":
        order = theta.abs().argsort(dim=1, descending=True, stable=True)[:, :k]
        return order, [0] * order.shape[1]
    pairs = wanted(theta[0], which, k)
    index = torch.tensor([i for i, _ in pairs], device="cpu").expand(len(theta), -1)
    return index, [side for _, side in pairs]


def bounds(theta: Tensor, r: Tensor, index: Tensor, block_norm: Tensor) -> Tensor:
    """Min(|R|_2, r_i^2 / gap_i) of the Ritz values at ``index`` (R, k); r (R, m) residual norms."""
    m = theta.shape[1]
    own, length = theta.gather(1, index), r.gather(1, index)
    gap = torch.full_like(own, math.inf)
    for step in (-1, 1):
        at = index + step
        inside = at.clamp(0, m - 1)
        room = (own - theta.gather(1, inside)).abs() - r.gather(1, inside)
        gap = torch.where((at >= 0) & (at < m), torch.minimum(gap, room), gap)
    # a lone Ritz value says nothing about its neighbours
    known = (gap > 0) & (gap < math.inf)
    quadratic = torch.where(known, length.square() / gap, math.inf)
    return torch.minimum(block_norm[:, None], quadratic)


def spectral_norm(rows: Tensor) -> Tensor:
    """Spectral norms (R,) of (R, k, b)."""
    if min(rows.shape[1:]) <= 1:
        return rows.square().sum((1, 2)).sqrt()
    return torch.linalg.matrix_norm(rows, 2)


def beyond(value: Tensor, side: int, error: Tensor) -> Tensor:
    """Ritz values moved outwards by ``error``."""
    return value.abs() + error if side == 0 else value + side * error


class Overlaps:
    """:class:`~catapult_ext.eig.certify.Overlap` of R replicas that went through equal cycles."""

    def __init__(
        self, cycles: list[Ritz], o: Options, n: int, chance: tuple[int, float], p: float
    ) -> None:
        self.cycles, self.o = cycles, o
        self.n, self.p = n, p
        self.columns, self.share = chance
        self._ranked = [ranked(c.theta, o.which, o.k)[0] for c in cycles]

    def excluded(self, rank: int, side: int, value: Tensor) -> Tensor:
        """Mask (R,) of replicas with no eigenvalue beyond ``value`` (R,), with probability p."""
        same = self._earlier(rank)
        level = _chi_quantile(max(1, self.columns - len(same)), (1 - self.p) / self.o.k)
        least = self.share * level / math.sqrt(self.n)
        found = self._transfer(value if side else value.abs(), same) < least
        return found if side else found & (self._transfer(-value.abs(), same) < least)

    def _earlier(self, rank: int) -> list[int]:
        top = (self.o.k + 1) // 2 if self.o.which == "BE" else self.o.k
        return list(range(rank)) if rank < top else list(range(top, rank))

    def _transfer(self, value: Tensor, found: list[int]) -> Tensor:
        total = torch.ones_like(value)
        whole = torch.zeros_like(value, dtype=torch.bool)  # nothing is hidden
        for cycle, index in zip(self.cycles, self._ranked, strict=True):
            weights = 1.0 / (value[:, None] - cycle.theta)
            own = index[:, [rank for rank in found if rank < index.shape[1]]]
            weights = weights.scatter(1, own, 0.0)  # its own pole is not a hidden neighbour
            h = (cycle.start * weights[:, None]) @ cycle.residual
            whole |= (cycle.residual == 0).all(2).all(1)
            finite = torch.isfinite(h).all((1, 2))
            norm = spectral_norm(torch.where(finite[:, None, None], h, 0.0))
            total = total * torch.where(finite, norm, math.inf)
        return total.nan_to_num(math.inf, math.inf).where(~whole, 0.0)  # 0 times inf says nothing


@dataclass(frozen=True, eq=False)
class Errors:
    """Errors of the wanted values (R, k), errors that tol allows (R, k), and rounding (R,)."""

    errors: Tensor
    allowed: Tensor
    floor: Tensor


def errors(
    ritz: Ritz, r: Tensor, index: Tensor, block_norm: Tensor, noise: Noise, tol: float
) -> Errors:
    """From Ritz values, residual norms (R, m) and the norms (R,) of the chosen residuals."""
    floor = noise.floor(ritz.theta)
    found = bounds(ritz.theta, r, index, block_norm)
    allowed = torch.maximum(tol * ritz.theta.gather(1, index).abs(), 2 * floor[:, None])
    return Errors(found, allowed, floor)


def settled(cycles: list[Ritz], noise: Noise, o: Options, chance: tuple[int, float]) -> Tensor:
    """Replicas (R,) whose errors are within tol by the formula, with nothing hidden."""
    ritz = cycles[-1]
    index, sides = ranked(ritz.theta, o.which, o.k)
    rows = ritz.residual.gather(1, index[:, :, None].expand(-1, -1, ritz.residual.shape[2]))
    found = errors(ritz, ritz.residual.norm(dim=2), index, spectral_norm(rows), noise, o.tol)
    good = (found.errors + found.floor[:, None] <= found.allowed).all(1)
    if o.confidence is None or not bool(good.any()):
        return good
    some = good.nonzero().flatten()
    overlap = Overlaps([c.of(some) for c in cycles], o, noise.n, chance, o.confidence)
    clear = torch.ones_like(some, dtype=torch.bool)
    for rank, side in enumerate(sides):
        value = ritz.theta[some].gather(1, index[some])[:, rank]
        clear &= overlap.excluded(rank, side, beyond(value, side, found.allowed[some, rank]))
    good[some] = clear
    return good


def checked(found: Errors, values: Tensor, sides: list[int], overlap: Overlaps | None) -> Tensor:
    """Errors (R, k), rounding included, raised until no eigenvalue can hide beyond them.

    ``values`` (R, k) are the Ritz values that ``overlap`` knows.
    """
    out, floor = found.errors.clone(), found.floor
    for rank, side in enumerate(sides):
        error, limit = out[:, rank], found.allowed[:, rank] - floor
        while overlap is not None:
            hidden = ~overlap.excluded(rank, side, beyond(values[:, rank], side, error + floor))
            hidden &= error < 1e300
            if not bool(hidden.any()):
                break
            more = torch.maximum(4 * error, floor).clamp_min(1e-290)
            more = torch.where((error < limit) & (limit < 4 * error), limit, more)
            error = torch.where(hidden, more, error)
        out[:, rank] = torch.where(error < 1e300, error, math.inf)
    return out + floor[:, None]
