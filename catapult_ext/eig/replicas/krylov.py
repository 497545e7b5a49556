"""Block Krylov bases of R operators that grow in step: one product and one launch for all.

The basis of each replica is that of :mod:`catapult_ext.eig.krylov`, from the same random start for
the same seed.  Numbers stay on the device between looks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from catapult_ext import ops
from catapult_ext.eig.krylov import NOTHING
from catapult_ext.eig.replicas.batch import Batch
from catapult_ext.eig.replicas.certify import Noise, Ritz
from catapult_ext.eig.sums import on_host

_SUMMED = 1 << 15  # entries that are added up in the vectors' own dtype
_PIECE = 1 << 21  # entries of the bases that are combined at a time
_SEEN_FOR_SYMMETRY = 8  # rows of a basis whose products are compared with their mirror images


@dataclass(frozen=True, eq=False)
class Look:
    """State of R replicas on the host after a step."""

    t: Tensor  # (R, m, m)
    coupling: Tensor  # (R, b, b); of an invariant space what it may have taken for nothing
    finite: Tensor  # (R,)
    whole: Tensor  # (R,) the space is invariant
    doubtful: Tensor  # (R,) not symmetric, too small, or a block that has lost directions
    noise: Noise

    def of(self, index: Tensor) -> Look:
        """The entries of some replicas."""
        return Look(
            self.t[index],
            self.coupling[index],
            self.finite[index],
            self.whole[index],
            self.doubtful[index],
            self.noise.of(index),
        )


class ReplicaKrylov:
    """The growing bases: V and A V (R, rows, n), T (R, rows, rows) in float64 on the device."""

    def __init__(self, a: Batch, capacity: int, width: int) -> None:
        r = a.replicas
        self.a, self.capacity, self.width = a, capacity, width
        self.v = torch.empty(r, capacity + 1, a.n, dtype=a.dtype, device=a.device)
        self.w = self.v.new_empty(r, capacity, a.n)
        self.t = torch.zeros(r, capacity, capacity, dtype=torch.float64, device=a.device)
        self._alpha, self._beta = self.v.new_zeros(2, r, capacity + 1)
        self.scale, self.norm, self.skew = torch.ones(
            3, r, 1, 1, dtype=torch.float64, device=a.device
        )
        self.norm, self.skew = 0 * self.norm, 0 * self.skew
        self.small = self.norm.flatten() > 1
        self.coupling = self.t[:, :width, :width]
        self.m = 0
        self.products = 0  # columns of each replica
        self.start = slice(0, width)
        self.cycles: list[Ritz] = []

    def begin(self, start: Tensor) -> None:
        """Orthonormal rows for a start (R or 1, b, n)."""
        q = torch.linalg.qr(start.double().mT)[0].mT
        self.v[:, : self.width] = q.to(self.v)

    def extend(self) -> None:
        """Multiply the next blocks, project, and orthogonalise what is left: one Krylov step."""
        m, b = self.m, self.width
        rows = slice(m, m + b)
        q = self.v[:, rows]
        found = self.a.product(q.mT).mT
        if self.products == 0:
            self._sized(found)
        self.products += b
        w = self.w[:, rows]
        torch.div(found, self.scale.to(found), out=w) if found.dtype == w.dtype else w.copy_(found)
        mirrored = _inner(self.w[:, :m], q) if 0 < m <= _SEEN_FOR_SYMMETRY else None
        self.coupling = self._orthogonalised(w, m + b)
        own = self.t[:, rows, rows]
        skew = (own - own.mT).abs().amax((1, 2), keepdim=True)
        if mirrored is not None:
            off = (self.t[:, :m, rows] - mirrored).abs().amax((1, 2), keepdim=True)
            skew = torch.maximum(skew, off)
        self.t[:, rows, rows] = (own + own.mT) / 2
        self.t[:, rows, :m] = self.t[:, :m, rows].mT
        self.skew = torch.maximum(self.skew, skew)
        squares = self.t[:, : m + b, rows].square().sum(1) + self.coupling.square().sum(1)
        self.norm = torch.maximum(self.norm, squares.amax(1).sqrt()[:, None, None])
        self.m = m + b

    def _orthogonalised(self, w: Tensor, rows: int) -> Tensor:
        """The rows of V from ``rows`` on, new columns of T; returns the coupling (R, b, b)."""
        r, b = w.shape[:2]
        coupling = self.t.new_zeros(r, b, b)
        for i in range(b):
            column = self.v.new_empty(r, rows + i)
            at = rows - b + i
            ops.lanczos_step(
                self.v,
                self._alpha,
                self._beta,
                w[:, i],
                at,
                rows=rows + i,
                coefficients=column,
                breakdown=NOTHING * self.a.eps,
            )
            self.t[:, :rows, at] = column[:, :rows].double()
            coupling[:, :i, i] = column[:, rows:].double()
            coupling[:, i, i] = self._beta[:, at].double()
        return coupling

    def _sized(self, found: Tensor) -> None:
        """The first product sets the scale, a power of two, of each replica."""
        largest = found.abs().amax((1, 2), keepdim=True).double()
        known = torch.isfinite(largest) & (largest > 0)
        kind = torch.finfo(self.a.dtype)
        self.small = (known & (largest < kind.tiny / kind.eps)).flatten()
        exponent = torch.where(known, largest, 1.0).log2().round()
        self.scale = torch.exp2(exponent)

    def look(self) -> Look:
        """Bring the numbers to the host."""
        m, b = self.m, self.width
        small = self.small.double()
        t, coupling, norm, skew, small = on_host(
            self.t[:, :m, :m], self.coupling, self.norm, self.skew, small
        )
        finite = torch.isfinite(t).all((1, 2)) & torch.isfinite(coupling).all((1, 2))
        lengths = coupling.diagonal(dim1=1, dim2=2)
        whole = (lengths == 0).all(1) if b > 1 else (lengths == 0).all(1) | (m >= self.a.n)
        if m < self.a.n:  # what was taken for nothing may be as long as this
            ignored = NOTHING * self.a.eps * norm * torch.eye(b, dtype=norm.dtype, device="cpu")
            coupling = torch.where(whole[:, None, None], ignored, coupling)
        lost = (lengths == 0).any(1) & (b > 1)
        crooked = (skew > self.a.eps**0.5 * norm).flatten()
        doubtful = lost | (small > 0)
        if not self.a.symmetric:
            doubtful = doubtful | crooked
        noise = Noise(norm.flatten(), skew.flatten(), self.a.eps, self.a.grain, self.a.n)
        return Look(t, coupling, finite, whole & ~lost, doubtful & finite, noise)

    def keep(self, index: Tensor) -> None:
        """Go on with the replicas ``index`` (on the CPU) alone."""
        there = index.to(self.a.device)
        rows = self.m + self.width
        old = self.v, self.w
        self.a = self.a.select(index)
        self.v = self.v.new_empty(len(index), self.capacity + 1, self.a.n)
        self.w = self.v.new_empty(len(index), self.capacity, self.a.n)
        self.v[:, :rows] = old[0][there, :rows]
        self.w[:, : self.m] = old[1][there, : self.m]
        self.t, self.coupling = self.t[there], self.coupling[there]
        self._alpha, self._beta = self._alpha[there], self._beta[there]
        self.scale, self.norm, self.skew = self.scale[there], self.norm[there], self.skew[there]
        self.small = self.small[there]
        self.cycles = [c.of(index) for c in self.cycles]

    @property
    def full(self) -> bool:
        """Whether the next step has no room."""
        return self.m + 2 * self.width > self.capacity

    def restart(self, ritz: Ritz, s: Tensor, index: Tensor) -> None:
        """Thick restart of each replica on its Ritz vectors ``index`` (R, kept)."""
        self.cycles.append(ritz)
        kept = index.shape[1]
        some = s.gather(2, index[:, None].expand(-1, self.m, -1)).mT.to(self.v)
        following = self.v[:, self.m : self.m + self.width].clone()
        for rows in (self.v, self.w):
            for piece in self._pieces(self.m):
                rows[:, :kept, piece] = some @ rows[:, : self.m, piece]
        self.v[:, kept : kept + self.width] = following
        theta = ritz.theta.gather(1, index).to(self.t)
        self.t.zero_()
        self.t[:, :kept, :kept] = torch.diag_embed(theta)
        self.m = kept
        self.start = slice(kept, kept + self.width)
        self._alpha.zero_()
        self._beta.zero_()

    def pairs(self, s: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rayleigh quotients, unit vectors and Gram of residuals of the replicas ``index``.

        ``s`` (R', m, k): coefficients on the host.  Computed in float64, in pieces; the vectors
        (R', k, n) have the operator's dtype, the rest comes to the host.
        """
        there, weights = index.to(self.a.device), s.mT.to(self.a.device)
        x, ax = weights.new_empty(2, *weights.shape[:2], self.a.n)
        for piece in self._pieces(self.m):
            for to, rows in ((x, self.v), (ax, self.w)):
                to[:, :, piece] = weights @ rows[there, : self.m, piece].double()
        norms = torch.linalg.vector_norm(x, dim=2, keepdim=True)
        x /= norms
        ax /= norms
        values = (x * ax).sum(2)
        rest = ax - values[:, :, None] * x
        values, gram = on_host(values, rest @ rest.mT)
        return values, x.to(self.v), gram

    def _pieces(self, rows: int) -> list[slice]:
        step = max(1, _PIECE // (rows * len(self.v)))
        return [slice(at, min(at + step, self.a.n)) for at in range(0, self.a.n, step)]


def _inner(rows: Tensor, others: Tensor) -> Tensor:
    """Products (R, m, b) of rows (R, m, n) and others (R, b, n), float64 on their device."""
    total = torch.zeros(
        len(rows), rows.shape[1], others.shape[1], dtype=torch.float64, device=rows.device
    )
    for left, right in zip(rows.split(_SUMMED, 2), others.split(_SUMMED, 2), strict=True):
        total += (left @ right.mT).double()
    return total
