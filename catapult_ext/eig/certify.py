"""Error bounds of Ritz values, and what backs the claim that they are the wanted ones.

Bounds: ``min(|R|_2, r_i^2 / gap_i) + c_n eps |A|``, the last
term raised to the noise of the products where that is larger.  Claims: an eigenvalue hidden beyond
``theta_i + e`` is excluded either by counting (inertia of A - shift) or, with stated probability,
by the start vectors: an eigenvector x that the basis V misses obeys
``V x = (lambda - T)^-1 E C (Q x)``, so its overlap with the random start block is at most
|H(lambda)|, H the transfer function of T from residual to start; but that overlap is
chi-distributed with known quantiles (van Dorsselaer, Hochstenbach, van der Vorst 2001 prove the
single-vector case).
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from catapult_ext.eig.krylov import Cycle


def rounding(n: int, eps: float) -> float:
    """c_n eps, the share of |A| that rounding may put into an eigenvalue."""
    return (10 + n**0.25) * eps


def inexact(n: int, eps: float, size: float, noise: float, grain: float = 0.0) -> float:
    """Largest eigenvalue error from inexact products: c_n eps |A|, or the observed noise.

    ``noise`` is the largest |<u, A v> - <A u, v>| of at least a few pairs; an eigenvalue is off
    by such a number as well, of another pair, for which four times the largest is allowed.  An A
    that is made of numbers rounded to ``grain`` may be off by twice that while it is symmetric.
    """
    return max(rounding(n, eps) * size, 4 * noise, 2 * grain * size)


def wanted(theta: Tensor, which: str, k: int) -> list[tuple[int, int]]:
    """(index, side) of the k wanted values by rank; side +1 from above, -1 from below, 0 both."""
    m = len(theta)
    if which == "LA":
        return [(m - 1 - i, 1) for i in range(min(k, m))]
    if which == "SA":
        return [(i, -1) for i in range(min(k, m))]
    if which == "LM":
        order = theta.abs().argsort(descending=True, stable=True)
        return [(int(i), 0) for i in order[:k]]
    top = min((k + 1) // 2, m)
    bottom = min(k // 2, m - top)
    return [(m - 1 - i, 1) for i in range(top)] + [(i, -1) for i in range(bottom)]


def bounds(theta: Tensor, r: Tensor, chosen: list[int], block_norm: float) -> Tensor:
    """Error bounds min(|R|_2, r_i^2 / gap_i); ``theta`` ascends, ``r`` holds residual norms."""
    values, lengths = theta.tolist(), r.tolist()  # numbers: few of them, and tensors are slow
    out = []
    for i in chosen:
        gaps = [
            abs(values[i] - values[j]) - lengths[j] for j in (i - 1, i + 1) if 0 <= j < len(values)
        ]
        gap = min(gaps, default=0.0)  # a lone Ritz value says nothing about its neighbours
        quadratic = lengths[i] ** 2 / gap if gap > 0 else math.inf
        out.append(min(block_norm, quadratic))
    return torch.tensor(out, dtype=torch.float64, device="cpu")


class Overlap:
    """Largest overlap with the random start that a hidden eigenvector at some value can have."""

    def __init__(
        self,
        cycles: list[Cycle],
        which: str,
        n: int,
        chance: tuple[int, float],
        k: int,
        p: float,
    ) -> None:
        self.cycles, self.which, self.n = cycles, which, n
        self.columns, self.share = chance  # start vectors, and the random part's share of each
        self.k, self.p = k, p
        self._ranked = [[i for i, _ in wanted(c.theta, which, k)] for c in cycles]

    def excluded(self, rank: int, side: int, value: float) -> bool:
        """No hidden eigenvalue beyond ``value`` (on ``side``), with probability p over the seed."""
        sides = (value,) if side else (abs(value), -abs(value))
        same = self._earlier(rank)
        level = _chi_quantile(max(1, self.columns - len(same)), (1 - self.p) / self.k)
        least = self.share * level / math.sqrt(self.n)
        return all(self._transfer(s, same) < least for s in sides)

    def _earlier(self, rank: int) -> list[int]:
        if self.which != "BE":
            return list(range(rank))
        top = (self.k + 1) // 2
        return list(range(rank)) if rank < top else list(range(top, rank))

    def _transfer(self, value: float, found: list[int]) -> float:
        total = 1.0
        for cycle, ranked in zip(self.cycles, self._ranked, strict=True):
            weights = 1.0 / (value - cycle.theta)
            for rank in found:
                if rank < len(ranked):
                    weights[ranked[rank]] = 0.0  # its own pole is not a hidden neighbour
            h = (cycle.start * weights) @ cycle.residual
            if h.numel() == 0:
                return 0.0
            if h.numel() == 1:
                total *= abs(h.item())
                continue
            if not bool(torch.isfinite(h).all()):
                return math.inf
            total *= torch.linalg.matrix_norm(h, 2).item()
        return total if math.isfinite(total) else math.inf


@cache
def _chi_quantile(dof: int, share: float) -> float:
    """Quantile c with P(chi_dof < c) = share."""
    low, high = 0.0, math.sqrt(dof) + 10
    a = torch.tensor(dof / 2.0, dtype=torch.float64, device="cpu")
    for _ in range(60):
        middle = (low + high) / 2
        x = torch.tensor(middle * middle / 2, dtype=torch.float64, device="cpu")
        low, high = (middle, high) if torch.special.gammainc(a, x) < share else (low, middle)
    return low


class Inertia:
    """Exact counts of eigenvalues of an explicit symmetric matrix beyond a shift, in float64."""

    def __init__(self, matrix: Tensor, scale: float, which: str, k: int) -> None:
        # on the CPU: LAPACK's pivots are known, and every count would wait for a device
        self.matrix = (matrix.cpu().double() / (scale or 1.0)).contiguous()
        self.which, self.top = which, (k + 1) // 2
        self.norm = torch.linalg.matrix_norm(self.matrix).item()  # Frobenius: at least |A|

    def excluded(self, rank: int, side: int, value: float) -> bool:
        """At most as many eigenvalues beyond ``value`` on ``side`` as rank allows."""
        allowed = rank - self.top if self.which == "BE" and side < 0 else rank
        if side > 0:
            return self.above(value) <= allowed
        if side < 0:
            return len(self.matrix) - self.above(value) <= allowed
        level = abs(value)
        below = len(self.matrix) - self.above(-level)
        return self.above(level) + below <= allowed

    def limit(self, count: int, lowest: float, first: float, size: float) -> float:
        """A c below ``lowest`` that at most ``count`` eigenvalues exceed; inf where none is found.

        Args:
            count: eigenvalues that may lie above.
            lowest: the Ritz value of rank ``count``.
            first: the c tried first; each of four further ones is half as far from ``lowest``.
            size: the largest Ritz value, for a first c where ``first`` is no use.
        """
        c = first if first < lowest else lowest - size / 2
        for _ in range(5):
            if self.above(c) <= count:
                return c
            c = (lowest + c) / 2
        return math.inf

    def above(self, shift: float) -> int:
        """Number of eigenvalues > shift, from the signs of D in P (A - shift I) P' = L D L'."""
        a = self.matrix.clone()
        a.diagonal().sub_(shift)
        factors, pivots, _ = torch.linalg.ldl_factor_ex(
            a
        )  # a pivot of 0 is an eigenvalue at the shift
        d = factors.diagonal().clone()
        pairs = (pivots < 0).nonzero().flatten()[::2]
        # a 2 x 2 pivot block is indefinite: one eigenvalue of each sign
        d[pairs], d[pairs + 1] = 1.0, -1.0
        return int((d > 0).sum())
