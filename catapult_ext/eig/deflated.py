"""Several pairs of an operator: one Krylov space finds them, a fresh random vector proves them.

Let V span any space, D the compression of A to what is orthogonal to V, T = V'A V and
A V - V T = F C' with orthonormal F.  Where D <= mu, A is at most

    M(mu) = [[T, C, 0], [C', mu I, 0], [0, 0, mu I]],

so that its eigenvalues, in order, bound those of A (Weyl), as the Ritz values do from the other
side (Cauchy).  And mu has a probability: a random unit vector g, drawn after V and orthogonal to
it, holds of D's top eigenvector chi_1 / sqrt(n) or more, so that Lanczos from g on D, with transfer
function H (:class:`~catapult_ext.eig.certify.Overlap`), excludes eigenvalues of D beyond any mu
above its Ritz values with |H(mu)| below that quantile.  V may depend on anything but g, and one
vector does for any k.

Where V holds the wanted pairs and what follows them, mu falls into the gap behind them within a
few products.  A block of k columns, whose index check has to tell wanted from hidden vectors by one
start, takes one and a half times to twice as many.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from catapult_ext.eig.certify import Overlap, wanted
from catapult_ext.eig.device_krylov import krylov
from catapult_ext.eig.krylov import Cycle, Krylov
from catapult_ext.eig.memory import basis_rows
from catapult_ext.eig.operand import Operand
from catapult_ext.eig.pairs import Options, Pairs
from catapult_ext.eig.ritz_errors import (
    Ritz,
    formula_errors,
    guards_of,
    rounding_floor,
    spectral_norm,
)
from catapult_ext.eig.sums import inner, on_host

_MARGIN = 0.25  # of what tol allows: mu is no sharper than the gap that Ritz values show
_HALVINGS = 12  # of the interval in which mu is looked for
SHARE = 0.5  # of the probability of a wrong claim; the rest is left to who takes over


def deflated(a: Operand, o: Options) -> tuple[Pairs | None, int]:
    """The k >= 2 largest pairs of an operator with an index check, and the products spent.

    None where it is no use: copies or a cluster of wanted eigenvalues, which one vector does not
    see, or pairs that are not found within 12 k + 16 products.
    """
    # a basis of blocks, which may have to take over, is refused where there is no room for it
    rows, at_once, keep = basis_rows(a, o.k, min(a.n, o.k), o.guards or 0, o.where)
    if not keep or rows < 5 * o.k + 10 or o.limit < 2 * rows:
        return None, 0
    search = _Search(krylov(a, rows, o.seed, o.where, at_once, keep), o)
    space = search.space
    space.begin(space.random(1))
    while space.m + 2 < min(space.capacity, 12 * o.k + 16):
        space.extend()
        whole = not len(space.next)  # an invariant space
        if not search.deflates:
            if o.k < space.m < a.n and (whole or search.settled()):
                search.deflate()
            elif whole:
                break
            continue
        search.clean()
        ritz = search.ritz()
        pairs = search.proved(ritz)
        if pairs is not None or whole or search.useless(ritz):
            return pairs, space.matvecs
    return None, space.matvecs


class _Search:
    """A basis: rows deflated, then rows of the Krylov space of the second vector."""

    def __init__(self, space: Krylov, o: Options) -> None:
        self.space, self.o = space, o
        self.first = 0  # rows deflated
        self.left = space.v[:0]  # what their Krylov space would have multiplied next
        self.column = space.t.new_zeros(0, 0)  # their residual along it

    @property
    def deflates(self) -> bool:
        return self.first > 0

    def deflate(self) -> None:
        """Start from a second random vector, orthogonal to all rows."""
        space = self.space
        self.first, self.left = space.m, space.next.clone()
        self.column = space.t.new_zeros(space.m, len(self.left))
        self.column[space.last] = space.coupling.T
        space.begin(space.random(1))

    def clean(self) -> None:
        """Take the newest row out of what was left."""
        q = self.space.v[self.space.m - 1 : self.space.m]
        self.left = self.left - (self.left @ q.T) @ q

    def ritz(self) -> Ritz:
        """Ritz values, vectors and rows of A V - V T in an orthonormal basis F."""
        space = self.space
        if not self.deflates:
            return space.ritz()
        theta, s = torch.linalg.eigh(space.t[: space.m, : space.m])
        own = space.t.new_zeros(space.m, len(space.next))
        own[space.last] = space.coupling.T
        before = own.new_zeros(space.m, len(self.left))
        before[: self.first] = self.column
        f = torch.cat([self.left, space.next])
        values, vectors = torch.linalg.eigh(on_host(inner(f, f))[0])
        return theta, s, s.T @ torch.cat([before, own], 1) @ (vectors * values.clamp_min(0).sqrt())

    def settled(self) -> bool:
        """Errors well within tol by the formula, whatever may be hidden."""
        theta, _, residual = self.ritz()
        chosen = [i for i, _ in wanted(theta, "LA", self.o.k)]
        sizes, block_norm = residual.norm(dim=1), spectral_norm(residual[chosen])
        found = formula_errors(self.space, self.o, theta, sizes, chosen, block_norm)
        return bool((found.errors <= _MARGIN * (found.allowed - found.floor)).all())

    def proved(self, ritz: Ritz) -> Pairs | None:
        """The pairs, once they are within tol."""
        space, o = self.space, self.o
        theta, s, _ = ritz
        floor = rounding_floor(space, theta)
        chosen = [i for i, _ in wanted(theta, "LA", o.k)]
        allowed = (o.tol * theta[chosen].abs()).clamp_min(2 * floor)
        errors = self._beyond(ritz, self._mu()) + floor
        if not bool((errors <= allowed).all()):
            return None
        values, x, gram = space.pairs(s[:, chosen])
        guards, following = guards_of(space, ritz, o, theta[chosen], None)
        # values of the vectors as stored, beside the Ritz values that M(mu) bounds
        errors = errors + (values.cpu() - theta[chosen]).abs()
        return Pairs(
            values=values,
            x=x,
            rest=gram.diagonal().clamp_min(0).sqrt()[:, None],
            errors=errors,
            converged=bool((errors <= allowed * (1 + 1e-12)).all()),
            matvecs=space.matvecs,
            scale=space.scale or 1.0,
            index=o.claim("random"),
            guards=guards,
            following=following,
        )

    def useless(self, ritz: Ritz) -> bool:
        """Whether the second vector's largest Ritz value alone forbids errors within tol."""
        theta = ritz[0]
        allowed = self.o.tol * theta[-self.o.k :].flip(0).abs()
        errors = self._beyond(ritz, self._own()[0][-1].item())
        return bool((errors > allowed.clamp_min(rounding_floor(self.space, theta))).any())

    def _own(self) -> Ritz:
        """Ritz values, vectors and residual rows of D in the second Krylov space."""
        space, own = self.space, slice(self.first, self.space.m)
        theta, s = torch.linalg.eigh(space.t[own, own])
        return theta, s, s[-1:].T @ space.coupling.T

    def _mu(self) -> float:
        """No eigenvalue of D is larger, but with the probability that this search may be wrong."""
        theta, s, residual = self._own()
        cycle = Cycle(theta, s[:1], residual)
        p = 1 - SHARE * self.o.wrong
        overlap = Overlap([cycle], "LA", self.space.a.n, (1, 1.0), 1, p)
        return _nearest(overlap, theta[-1].item(), self.space.norm)

    def _beyond(self, ritz: Ritz, mu: float) -> Tensor:
        """How far the wanted eigenvalues may lie above their Ritz values, (k,), by M(mu)."""
        theta, _, residual = ritz
        (m, left), k = residual.shape, self.o.k
        values = theta[-k:].flip(0)
        if not math.isfinite(mu):
            return torch.full_like(values, math.inf)
        bound = torch.diag(torch.cat([theta, theta.new_full((left,), mu)]))
        bound[:m, m:], bound[m:, :m] = residual, residual.T
        others = theta.new_full((k,), mu)  # of the rest of the space
        largest = torch.cat([torch.linalg.eigvalsh(bound), others]).sort(descending=True).values
        return (largest[:k] - values).clamp_min(0)


def _nearest(overlap: Overlap, largest: float, size: float) -> float:
    """The value nearest to the ``largest`` Ritz value beyond which nothing hides, inf if none."""
    size = max(size, abs(largest), 1e-290)
    low, high = 0.0, size * 1e-6
    while not overlap.excluded(0, 1, largest + high):
        low, high = high, high * 8
        if high > 1e12 * size:
            return math.inf
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if overlap.excluded(0, 1, largest + middle) else (middle, high)
    return largest + high
