"""eigsh of R operators at once: the driver of batched block Lanczos.

All replicas take the same steps, each with its own basis; those that are done, and those with
non-finite values, leave.  What lockstep cannot settle (a block that loses directions, products that
look asymmetric) is solved again alone, by the solver for one operator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext import ops
from catapult_ext.eig.memory import basis_rows
from catapult_ext.eig.pairs import Options
from catapult_ext.eig.replicas.batch import Batch
from catapult_ext.eig.replicas.certify import (
    Errors,
    Overlaps,
    Ritz,
    checked,
    errors,
    ranked,
    settled,
)
from catapult_ext.eig.replicas.krylov import Look, ReplicaKrylov
from catapult_ext.eig.replicas.pairs import Found
from catapult_ext.eig.solve import solve
from catapult_ext.eig.sums import row_norms

_BYTES = 1 << 30  # of the bases of replicas that step together
_WORTH_MOVING = 0.75  # share of replicas still wanted at which the others are dropped


def solve_alone(a: Batch, r: int, start: Tensor | None, o: Options, found: Found) -> None:
    """Replica ``r`` by the solver for one operator; NaN where its products are not finite."""
    try:
        found.put_pairs(r, solve(a.one(r)[1], start, o))
    except v.NotFinite:
        pass
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error} (replica {r})") from error


def solve_replicas(a: Batch, start: Tensor | None, o: Options) -> Found:
    """The wanted pairs of operators known by their products; ``start`` (R, j, n) unit rows."""
    width = min(a.n, max(o.k, 0 if start is None else start.shape[1]))
    found = _nothing(a, o)
    rows, _, _ = basis_rows(a.one(0)[1], o.k, width, o.guards or 0, o.where)
    each = 2 * rows * a.n * torch.finfo(a.dtype).bits // 8
    together = max(1, _BYTES // each)
    for first in range(0, a.replicas, together):
        some = torch.arange(first, min(first + together, a.replicas), device="cpu")
        part = a if len(some) == a.replicas else a.select(some)
        given = None if start is None else start[some.to(start.device)]
        found.put(some, _Lockstep(part, given, o, rows, width).run())
    return found


class _Lockstep:
    """The solve of replicas that step together."""

    def __init__(self, a: Batch, warm: Tensor | None, o: Options, rows: int, width: int) -> None:
        self.a, self.o, self.warm = a, o, warm
        self.found = _nothing(a, o)
        self.numbers = torch.arange(a.replicas, device="cpu")  # of the replicas in the space
        self.here = self.numbers  # positions in the space of the replicas that are not finished
        self.space = ReplicaKrylov(a, rows, width)
        self.next_look = o.k
        share = 1.0 if warm is None else 0.5**0.5
        self.chance = (width, share)
        random = torch.Generator().manual_seed(o.seed)
        block = torch.randn(width, a.n, dtype=a.dtype, generator=random, device="cpu")
        block = block.to(a.device)[None]
        if warm is not None:
            # each start vector keeps a random part, on which the index check lives
            block = (block * (share / row_norms(block)[:, :, None]).to(block)).repeat(
                a.replicas, 1, 1
            )
            block[:, : warm.shape[1]] += (1 - share**2) ** 0.5 * warm[:, :width]
        self.space.begin(block)

    def run(self) -> Found:
        """Step until no replica is left."""
        while len(self.here):
            space = self.space
            space.extend()
            spent = space.products >= self.o.limit
            due = space.m >= self.next_look or spent or space.full or space.m >= space.a.n
            if due and space.m >= self.o.k:
                self._look(spent)
        return self.found

    def _look(self, spent: bool) -> None:
        space, o = self.space, self.o
        look = space.look().of(self.here)
        self.found.matvecs[self.numbers[self.here]] = space.products  # NaN rows stay as they are
        look = self._go_on_with(look.finite, look)
        look = self._go_on_without(look.doubtful, look)
        if not len(self.here):
            return
        cycles = [*(c.of(self.here) for c in space.cycles), self._ritz(look)]
        done = settled(cycles, look.noise, o, self.chance)
        if o.confidence is not None and space.m < space.a.n and not spent:
            # an invariant space may hide an eigenvalue: the solver for one starts beside it
            hiding = look.whole & ~done
            look, done = self._go_on_without(hiding, look), done[~hiding]
        done |= look.whole | spent
        if bool(done.any()):
            some = done.nonzero().flatten()
            done[some] = self._finish(some, look, spent)
            look = self._go_on_with(~done, look)
        if not len(self.here):
            return
        count = len(self.numbers)
        if len(self.here) <= _WORTH_MOVING * count or (space.full and len(self.here) < count):
            space.keep(self.here)
            self.numbers = self.numbers[self.here]
            self.here = torch.arange(len(self.here), device="cpu")
        if space.full:
            self._restart(look)
        self.next_look = space.m + max(1, space.m // 8)

    def _go_on_with(self, good: Tensor, look: Look) -> Look:
        """Look no more at the other replicas."""
        kept = good.nonzero().flatten()
        self.here = self.here[kept]
        return look if len(kept) == len(good) else look.of(kept)

    def _go_on_without(self, bad: Tensor, look: Look) -> Look:
        """Solve the replicas ``bad`` alone."""
        for r in self.numbers[self.here[bad]].tolist():
            start = None if self.warm is None else self.warm[r].T
            solve_alone(self.a, r, start, self.o, self.found)
        return self._go_on_with(~bad, look)

    def _ritz(self, look: Look) -> Ritz:
        """Ritz data of a look; of one start vector, from the tridiagonal form alone."""
        space = self.space
        if space.width > 1 or space.cycles:
            return self._solved(look, slice(None))[0]
        beta = look.t.diagonal(1, 1, 2)
        theta, first, last = ops.tridiag_eigh(look.t.diagonal(dim1=1, dim2=2), beta)
        return Ritz(theta, first[:, None], (last * look.coupling[:, 0])[:, :, None])

    def _solved(self, look: Look, some: Tensor | slice) -> tuple[Ritz, Tensor]:
        """Ritz data and vectors (R', m, m) of T."""
        space = self.space
        theta, s = torch.linalg.eigh(look.t[some])
        last = slice(space.m - space.width, space.m)
        return Ritz(theta, s[:, space.start], s[:, last].mT @ look.coupling[some].mT), s

    def _finish(self, some: Tensor, look: Look, spent: bool) -> Tensor:
        """Store the pairs of replicas whose errors hold, or that end anyway; which ones."""
        space, o = self.space, self.o
        ritz, s = self._solved(look, some)
        at, noise = self.here[some], look.noise.of(some)
        index, sides = ranked(ritz.theta, o.which, o.k)
        chosen = s.gather(2, index[:, None].expand(-1, space.m, -1))
        values, x, gram = space.pairs(chosen, at)
        norms = gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        theta = ritz.theta.scatter(1, index, values)
        r = ritz.residual.norm(dim=2).scatter(1, index, norms)
        block_norm = torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0).sqrt()
        formula: Errors = errors(
            Ritz(theta, ritz.start, ritz.residual), r, index, block_norm, noise, o.tol
        )
        overlap = None
        if o.confidence is not None:
            cycles = [*(c.of(at) for c in space.cycles), ritz]
            overlap = Overlaps(cycles, o, self.a.n, self.chance, o.confidence)
        bound = checked(formula, values, sides, overlap)
        converged = (bound <= formula.allowed * (1 + 1e-12)).all(1)
        ends = converged | look.whole[some] | spent
        scale = space.scale.flatten().cpu()[at, None]
        check = "residual" if o.confidence is None else o.claim("random")
        stored = Found(
            values=values * scale,
            x=x,
            residuals=norms * scale,
            errors=bound * scale,
            converged=converged,
            matvecs=torch.zeros_like(some),
            index=[check] * len(some),
        )
        if o.guards is not None:
            stored.guards, stored.following = self._guards(at, ritz, s, scale)
        self.found.put(self.numbers[at[ends]], _part(stored, ends))
        return ends

    def _guards(self, at: Tensor, ritz: Ritz, s: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Guards (R', g, n), and where the values after the wanted and each guard may lie."""
        space, k, g = self.space, self.o.k, self.o.guards or 0
        index = ranked(ritz.theta, self.o.which, k + g + 1)[0][:, k:]
        reach = torch.full((len(at), g + 1), torch.inf, dtype=torch.float64, device="cpu")
        lengths = ritz.residual.norm(dim=2).gather(1, index)
        reach[:, : index.shape[1]] = ritz.theta.gather(1, index) + lengths
        guards = torch.zeros(len(at), g, space.a.n, dtype=space.a.dtype, device=space.a.device)
        kept = index[:, :g]
        if kept.shape[1]:
            chosen = s.gather(2, kept[:, None].expand(-1, space.m, -1))
            guards[:, : kept.shape[1]] = space.pairs(chosen, at)[1]
        return guards, reach * scale

    def _restart(self, look: Look) -> None:
        space, o = self.space, self.o
        ritz, s = self._solved(look, slice(None))
        room = space.capacity - 2 * space.width
        count = min(room, o.k + max(2, (room - o.k) // 2))
        space.restart(ritz, s, ranked(ritz.theta, o.which, count)[0])


def _nothing(a: Batch, o: Options) -> Found:
    """NaN for all replicas, with room for guards where they are asked for."""
    found = Found.nothing(a.replicas, a.n, o.k, a.dtype, a.device)
    if o.guards is not None:
        found.guards = found.x.new_zeros(a.replicas, o.guards, a.n)
        found.following = torch.full_like(found.values[:, :1], torch.inf).repeat(1, o.guards + 1)
    return found


def _part(found: Found, mask: Tensor) -> Found:
    """Some replicas of ``found``."""
    kept = mask.nonzero().flatten()
    return Found(
        found.values[kept],
        found.x[kept.to(found.x.device)],
        found.residuals[kept],
        found.errors[kept],
        found.converged[kept],
        found.matvecs[kept],
        [found.index[i] for i in kept.tolist()],
        found.guards[kept.to(found.x.device)] if len(found.guards) else found.guards,
        found.following[kept] if len(found.following) else found.following,
    )
