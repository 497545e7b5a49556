"""Block Lanczos with thick restart: the driver that :func:`eigsh` and :class:`TopTracker` share.

:func:`solve` extends a Krylov basis until the errors of the wanted Ritz pairs are within ``tol``
and the index check finds nothing hidden; :func:`package` turns its pairs into a result.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext.eig.certify import Inertia, Overlap, rounding, wanted
from catapult_ext.eig.deflated import SHARE, deflated
from catapult_ext.eig.dense import INERTIA_LIMIT, by_lanczos_dense, dense_pairs
from catapult_ext.eig.device_krylov import krylov
from catapult_ext.eig.krylov import Cycle, Krylov
from catapult_ext.eig.memory import basis_rows
from catapult_ext.eig.operand import Operand
from catapult_ext.eig.pairs import EigshResult, Options, Pairs
from catapult_ext.eig.ritz_errors import Ritz, formula_errors, guards_of, spectral_norm
from catapult_ext.eig.sums import on_host, row_norms
from catapult_ext.ops.routes import serves


def start_rows(v0: Tensor | None, a: Operand, where: str) -> Tensor:
    """A start block as rows (j, n); none without v0."""
    if v0 is None:
        return torch.empty(0, a.n, dtype=a.dtype, device=a.device)
    if not isinstance(v0, Tensor):
        v.fail(where, "v0 must be a torch.Tensor", type(v0).__name__, TypeError)
    v.dense(where, "v0", v0)
    if v0.is_complex():
        v.fail(where, "v0 must be real", v0.dtype, TypeError)
    fits = v0.dim() in (1, 2) and v0.shape[0] == a.n and v0.numel() > 0
    v.require(fits, where, f"v0 must be ({a.n},) or ({a.n}, j)", tuple(v0.shape))
    v.finite(bool(torch.isfinite(v0).all()), where, "v0")
    rows = v0.detach().reshape(a.n, -1).T
    largest = rows.abs().amax(dim=1, keepdim=True)
    v.require(bool((largest > 0).all()), where, "v0 must have no zero column", "one")
    # in v0's own dtype: in that of A the entries may be infinite or 0, as their squares may be
    rows = (rows / largest).to(dtype=a.dtype, device=a.device)
    return rows / rows.double().norm(dim=1, keepdim=True).to(rows)


def solve(a: Operand, v0: Tensor | None, o: Options) -> Pairs:
    """The wanted pairs of ``a``, from start vectors ``v0`` (n,) or (n, j) if there are any.

    1. Start from a block with a random part, on which the index check relies.
    2. Extend the basis by a block of products and take Ritz pairs.
    3. Once they are settled, form residuals and errors in float64 and make the index check.
    4. Restart on the best Ritz vectors whenever the basis is full.
    """
    warm = start_rows(v0, a, o.where)
    exact = a.explicit is not None and a.n <= INERTIA_LIMIT
    if exact and o.limit > a.n and (o.k >= direct_from(a.n, a.device) or _denormal(a)):
        return _direct(a, o)
    spent = 0
    if exact and not len(warm) and by_lanczos_dense(o, a.n, a.device):
        pairs, spent = dense_pairs(a, o)
        if pairs is not None:
            return pairs
    if o.k > 1 and o.which == "LA" and not exact and not len(warm) and o.confidence is not None:
        pairs, spent = deflated(a, o)
        if pairs is not None:
            return pairs
        if spent:  # what it may claim wrongly is counted here too
            o = replace(o, share=1 - SHARE, limit=o.limit - spent)
    pairs = _iterated(a, warm, o)
    return replace(pairs, matvecs=pairs.matvecs + spent) if spent else pairs


# Random starts beside an invariant space.  Of two eigenvalues that differ by a few rounding units
# it holds a mixture, and leaves no more than that of the other one; another start shows both.
_FRESH = 2


def _iterated(a: Operand, warm: Tensor, o: Options) -> Pairs:
    """By block Lanczos, from rows ``warm`` if there are any."""
    exact = a.explicit is not None and a.n <= INERTIA_LIMIT
    random = min(a.n, max(o.k, len(warm)))
    rows, at_once, keep = basis_rows(a, o.k, random, o.guards or 0, o.where)
    space = krylov(a, rows, o.seed, o.where, at_once, keep)
    start, share = space.random(random), 1.0
    if len(warm):
        # each start vector keeps a random part: half where the index check lives on it
        share = 0.01 if exact else 0.5**0.5
        start = start * (share / start.double().norm(dim=1, keepdim=True)).to(start)
        start[: len(warm)] += (1 - share**2) ** 0.5 * warm[:random]
    chance, fresh = (random, share), 0
    space.begin(start)
    while True:
        space.extend()
        ritz = space.ritz()
        whole = len(space.next) == 0  # an invariant space
        if whole and space.m < o.k:
            space.begin(space.random(o.k - space.m))
            continue
        spent = space.matvecs >= o.limit and space.m >= o.k
        if whole and not exact and o.confidence is not None:
            counted = (*ritz[:2], space.remainder(ritz[1]))
            if _settled(space, counted, o, chance, exact):
                ritz = counted
            elif not spent and fresh < _FRESH and space.room >= 2 * random:
                fresh += 1
                space.begin(space.random(random))
                continue
        if space.m >= o.k and (whole or spent or _settled(space, ritz, o, chance, exact)):
            pairs = _finish(space, ritz, o, chance, exact)
            if pairs.converged or whole or spent:
                return pairs
        if exact and space.matvecs >= a.n and o.limit > a.n:
            return _dense(space, o)  # LAPACK costs no more by now
        if space.m + 2 * len(space.next) > space.capacity:
            _restart(space, ritz, o)


def _denormal(a: Operand) -> bool:
    """Whether products with an explicit matrix lose bits to underflow; LAPACK gets it scaled."""
    assert a.explicit is not None
    largest = a.explicit.abs().max().item()
    return 0 < largest < torch.finfo(a.dtype).tiny / torch.finfo(a.dtype).eps


def direct_from(n: int, device: torch.device) -> int:
    """The k from which LAPACK is faster than Lanczos with one LDL' for each wanted value.

    Measured: n = 300 from k = 2, n = 1000 from k = 8; up to n = 48 it is the fastest for any k.
    """
    tiny = device.type == "cpu" and not serves("lanczos_dense", device, n)
    return 1 if tiny else min(n, max(4, n // 125))


def _overlap(space: Krylov, ritz: Ritz, o: Options, chance: tuple[int, float]) -> Overlap:
    theta, s, residual = ritz
    cycles = [*space.cycles, Cycle(theta, s[space.start], residual)]
    return Overlap(cycles, o.which, space.a.n, chance, o.k, 1 - o.wrong)


def _settled(
    space: Krylov,
    ritz: Ritz,
    o: Options,
    chance: tuple[int, float],
    exact: bool,
) -> bool:
    """Errors within tol by the formula, and nothing hidden (inertia is left to `_finish`)."""
    theta, _, residual = ritz
    ranked = wanted(theta, o.which, o.k)
    chosen = [i for i, _ in ranked]
    block_norm = spectral_norm(residual[chosen])
    found = formula_errors(space, o, theta, residual.norm(dim=1), chosen, block_norm)
    if not bool((found.errors + found.floor <= found.allowed).all()):
        return False
    if exact or o.confidence is None:
        return True
    overlap = _overlap(space, ritz, o, chance)
    return all(
        overlap.excluded(rank, side, _beyond(theta[i].item(), side, found.allowed[rank].item()))
        for rank, (i, side) in enumerate(ranked)
    )


def _beyond(theta: float, side: int, error: float) -> float:
    """A Ritz value moved outwards by ``error``."""
    if side == 0:
        return abs(theta) + error
    return theta + side * error


def _restart(space: Krylov, ritz: Ritz, o: Options) -> None:
    theta, s, residual = ritz
    width = len(space.next)
    room = space.capacity - 2 * width
    count = min(room, o.k + max(2, (room - o.k) // 2))
    keep = torch.tensor([i for i, _ in wanted(theta, o.which, count)], device="cpu")
    space.restart(s, theta, residual, keep)


def _finish(
    space: Krylov,
    ritz: Ritz,
    o: Options,
    chance: tuple[int, float],
    exact: bool,
) -> Pairs:
    """Rayleigh quotients, residuals and errors in float64, and the index check."""
    theta, s, residual = ritz
    ranked = wanted(theta, o.which, o.k)
    chosen = [i for i, _ in ranked]
    # Rayleigh quotients and residuals of the wanted pairs, from V and A V
    values, x, gram = space.pairs(s[:, chosen])
    norms = gram.diagonal().clamp_min(0).sqrt()
    theta, r = theta.clone(), residual.norm(dim=1)
    theta[chosen], r[chosen], gram = on_host(values, norms, gram)
    block_norm = torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt().item()
    found = formula_errors(space, o, theta, r, chosen, block_norm)
    errors, floor = found.errors, found.floor
    # the index check, which raises an error until no eigenvalue can hide beyond it
    check: Inertia | Overlap | None = None
    if exact:
        assert space.a.explicit is not None
        check = Inertia(space.a.explicit, space.scale, o.which, o.k)
    elif o.confidence is not None:
        check = _overlap(space, ritz, o, chance)
    # beyond it nothing is; what few products show of |A| may be too small by a factor sqrt(n)
    ceiling = 2 * check.norm if isinstance(check, Inertia) else 1e300
    for rank, (i, side) in enumerate(ranked):
        error, limit = errors[rank].item(), found.allowed[rank].item() - floor
        while (
            check
            and error < ceiling
            and not check.excluded(rank, side, _beyond(theta[i].item(), side, error + floor))
        ):
            if exact and error >= limit and space.matvecs < o.limit:
                return _dense(space, o)
            error = limit if error < limit < 4 * error else max(4 * error, floor, 1e-290)
        errors[rank] = error if error < 1e300 else math.inf
    errors = errors + floor
    counts = check if isinstance(check, Inertia) else None
    guards, following = guards_of(space, ritz, o, theta[chosen], counts)
    return Pairs(
        values=values,
        x=x,
        rest=norms[:, None],
        errors=errors,
        converged=bool((errors <= found.allowed * (1 + 1e-12)).all()),
        matvecs=space.matvecs,
        scale=space.scale or 1.0,
        index="inertia" if exact else "residual" if check is None else o.claim("random"),
        guards=guards,
        following=following,
    )


def _direct(a: Operand, o: Options) -> Pairs:
    """LAPACK at once, without a product."""
    assert a.explicit is not None
    largest = a.explicit.abs().max().item()
    scale = 2.0 ** round(math.log2(largest)) if largest > 0 else 1.0
    return _lapack(a, o, scale, 0.0, 0)


def _dense(space: Krylov, o: Options) -> Pairs:
    """The explicit matrix solved by LAPACK: when Lanczos missed a value, or is no cheaper."""
    return _lapack(space.a, o, space.scale or 1.0, space.norm, space.matvecs)


def _lapack(a: Operand, o: Options, scale: float, norm: float, matvecs: int) -> Pairs:
    """Pairs of the explicit matrix in float64; ``norm`` is the largest |A q| met."""
    assert a.explicit is not None
    matrix = a.explicit.double() / scale
    theta, vectors = torch.linalg.eigh(matrix)
    values = theta.cpu()
    guards = o.guards or 0
    ranked = [i for i, _ in wanted(values, o.which, o.k + guards + 1)]
    if o.which == "BE":
        ranked = [i for i, _ in wanted(values, o.which, o.k)]
    chosen, following = ranked[: o.k], ranked[o.k :]
    x = vectors[:, chosen].T
    rest = x @ matrix - theta[chosen, None] * x
    floor = rounding(a.n, a.eps) * max(norm, values.abs().max().item())
    beyond = [values[i].item() for i in following] + [-math.inf] * (guards + 1 - len(following))
    return Pairs(
        values=theta[chosen],
        x=x,
        rest=rest,
        errors=torch.full((o.k,), floor, dtype=torch.float64, device="cpu"),
        converged=True,
        matvecs=matvecs,
        scale=scale,
        index="inertia",
        guards=vectors[:, following[:guards]].T,
        following=beyond,
    )


def lifted(small: Pairs, dual: Any, a: Operand) -> Pairs:
    """Pairs of the dual operator K = G'G in the large space: x = G u / |G u|.

    Of the residuals only bounds are kept, in rows of one entry: |G r| <= |K|^(1/2) |r|.
    """
    large = dual.lift(small.x.T.to(dtype=a.dtype, device=a.device)).T
    x = large / row_norms(large)[:, None].to(large)
    top = (small.values + small.errors.to(small.values)).max()
    rest = (top / small.values.abs()).sqrt()[:, None] * small.rest.norm(dim=1, keepdim=True)
    return replace(small, x=x, rest=rest)


def package(p: Pairs, o: Options, a: Operand) -> EigshResult:
    """The result in the units and dtype of operator ``a``, sorted by eigenvalue."""
    key = p.values.abs() if o.which == "LM" else p.values
    order = key.argsort(descending=True, stable=True)
    like = torch.empty(0, dtype=a.dtype, device=a.device)
    return EigshResult(
        eigenvalues=(p.values[order] * p.scale).to(like),
        eigenvectors=p.x[order].T.to(like).contiguous(),
        residuals=(p.rest.norm(dim=1)[order] * p.scale).to(like),
        errors=(p.errors[order.cpu()] * p.scale).to(like),
        matvecs=p.matvecs,
        converged=p.converged,
        index_check=p.index,
    )
