"""eigsh: extreme eigenvalues of a symmetric operator, with errors and what backs them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext.eig.certify import Inertia, Overlap, bounds, rounding, wanted
from catapult_ext.eig.krylov import Cycle, Krylov, row_norms
from catapult_ext.eig.operand import Operand, as_operand, coarse_operand
from catapult_ext.eig.pairs import Pairs
from catapult_ext.eig.refine import refine

_INERTIA_LIMIT = 2048
_BASIS_BYTES = 1 << 30  # V and A V together
_BASIS_ROWS = 60
_COARSE_TOL = 0.02
WHICH = ("LA", "SA", "LM", "BE")


@dataclass(frozen=True, eq=False)
class EigshResult:
    """Eigenpairs with their errors.

    Attributes:
        eigenvalues: (k,) descending (``which="LM"``: by magnitude), dtype of the operator.
        eigenvectors: (n, k), unit columns.
        residuals: (k,) |A x - lambda x|, from products already made (solved as its dual: a bound).
        errors: (k,) bounds of |lambda_i - eigenvalues_i|; what they rest on is ``index_check``.
        matvecs: products with A (or its dual), in columns.
        converged: all errors within max(tol |lambda|, 2 c_n eps |A|).
        index_check: ``"inertia"`` (eigenvalues counted by LDL', exact) or ``"random(p)"`` (the
            start vectors exclude hidden eigenvalues with probability p over the seed; an estimate
            for k > 1); ``"residual"`` (no check: an eigenvalue lies within ``residuals`` of each
            value; larger ones may be missed, and errors, which trust the gaps seen, be too small);
            ``"coarse(p)"`` (mixed precision: the same as random, but only beyond the coarse
            solve's 2 %; nearer ones are left to the block that is refined).
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    residuals: Tensor
    errors: Tensor
    matvecs: int
    converged: bool
    index_check: str


@no_autocast()
def eigsh(
    A: Any,
    k: int = 1,
    *,
    which: str = "LA",
    tol: float = 1e-3,
    maxiter: int | None = None,
    v0: Tensor | None = None,
    seed: int = 0,
    precision: str = "full",
    confidence: float | None = 0.99,
) -> EigshResult:
    """Find k extreme eigenpairs of a symmetric operator by block Lanczos with thick restart.

    Args:
        A: dense tensor or array, sparse tensor, an operator of this package, a SciPy
            LinearOperator, or any object with ``shape`` and ``@``; float32 or float64.  If it
            offers ``dual()`` (GGN), the smaller operator is solved and its eigenvectors are mapped
            back.
        k: number of pairs; blocks have k columns, so multiplicities up to k are seen.
        which: ``"LA"`` largest, ``"SA"`` smallest, ``"LM"`` largest magnitude, ``"BE"`` both ends.
        tol: relative eigenvalue error asked for.
        maxiter: stop after this many columns multiplied by A (default ``1000 + 20 k``), with
            ``converged=False`` and errors that still hold; at least one block is multiplied.
        v0: start vector (n,) or block (n, j <= n) of a previous solve; random vectors are added.
        seed: of the random start; same seed, machine and threads, same bits.
        precision: ``"full"``, or ``"mixed"`` (``which="LA"``; a dense tensor, NTK, GGN, Hessian): a
            solve with bfloat16 products to 2 %, then Rayleigh-Ritz, values and errors from products
            in full precision, a full solve from there should they miss ``tol``.  Faster only where
            the machine multiplies bfloat16 faster.
        confidence: p of ``index_check="random(p)"``; None makes no index check, as other packages
            do, for about half the products (``"residual"``).

    Returns:
        :class:`EigshResult`; ``errors`` hold ``min(|R|_2, r_i^2/gap_i) + c_n eps |A|``, raised
        until the index check passes.  Explicit matrices with n <= 2048 are checked by inertia, and
        solved densely should Lanczos have missed a value.

    Raises:
        TypeError: A without shape or @, another dtype.
        ValueError: not square, not symmetric, non-finite products, k < 1 or k > n, bad options.
    """
    where = "eigsh"
    a = as_operand(A, where)
    v.integers("eigsh", seed=seed)
    _check_options(a.n, k, which, tol, maxiter, precision, confidence)
    k = int(k)
    limit = 1000 + 20 * k if maxiter is None else maxiter
    options = _Options(k, which, tol, limit, seed, confidence, where)
    solve = _mixed if precision == "mixed" else _full
    dual = A.dual() if which in ("LA", "LM") and hasattr(A, "dual") else None
    if dual is not None and k <= dual.operator.shape[0]:
        start = v0
        if isinstance(v0, Tensor) and v0.shape[0] == a.n:
            start = dual.restrict(_start_rows(v0, a, where).T)
            start = start[:, start.abs().amax(0) > 0]  # what lies in the null space is no start
            start = start if start.shape[1] else None
        small = solve(dual.operator, as_operand(dual.operator, where), start, options)
        # the null space of the large operator is not in the image of the small one
        floor = 10 * rounding(a.n, torch.finfo(a.dtype).eps) * small.values.abs().max()
        if small.values.abs().min() > floor:
            return _package(_lifted(small, dual, a), options, a)
    return _package(solve(A, a, v0, options), options, a)


@dataclass(frozen=True)
class _Options:
    k: int
    which: str
    tol: float
    limit: int
    seed: int
    confidence: float | None
    where: str
    guards: int = 0


def _check_options(
    n: int, k: int, which: str, tol: float, maxiter: int | None, precision: str, p: float | None
) -> None:
    where = "eigsh"
    v.integers(where, k=k)
    v.numbers(where, tol=tol)
    v.numbers(where, confidence=p, optional=True)
    v.require(1 <= k <= n, where, f"k must be in [1, n = {n}]", k)
    v.require(which in WHICH, where, f"which must be one of {WHICH}", repr(which))
    v.require(0 <= tol < 1, where, "tol must be in [0, 1)", tol)
    v.integers(where, maxiter=maxiter, optional=True)
    v.require(
        maxiter is None or maxiter >= 1, where, "maxiter must be None or an int >= 1", maxiter
    )
    known = precision in ("full", "mixed")
    v.require(known, where, "precision must be 'full' or 'mixed'", repr(precision))
    top = precision == "full" or which == "LA"
    v.require(top, where, "precision='mixed' needs which='LA'", repr(which))
    v.require(p is None or 0 < p < 1, where, "confidence must be None or in (0, 1)", p)


def _start_rows(v0: Tensor | None, a: Operand, where: str) -> Tensor:
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
    v.require(bool(torch.isfinite(v0).all()), where, "v0 must be finite", "NaN or inf")
    rows = v0.detach().reshape(a.n, -1).T.to(dtype=a.dtype, device=a.device)
    norms = rows.double().norm(dim=1, keepdim=True)
    v.require(bool((norms > 0).all()), where, "v0 must have no zero column", "one")
    return rows / norms.to(rows)


def _solve(a: Operand, v0: Tensor | None, o: _Options) -> Pairs:
    warm = _start_rows(v0, a, o.where)
    random = min(a.n, max(o.k, len(warm)))
    space = Krylov(a, _capacity(a, o.k, random), o.seed, o.where)
    start, share = space.random(random), 1.0
    exact = a.explicit is not None and a.n <= _INERTIA_LIMIT
    if len(warm):
        # each start vector keeps a random part: half where the index check lives on it
        share = 0.01 if exact else 0.5**0.5
        start = start * (share / start.double().norm(dim=1, keepdim=True)).to(start)
        start[: len(warm)] += (1 - share**2) ** 0.5 * warm[:random]
    chance = (random, share)
    space.begin(start)
    while True:
        space.extend()
        ritz = space.ritz()
        whole = len(space.next) == 0  # an invariant space
        if whole and space.m < o.k:
            space.begin(space.random(o.k - space.m))
            continue
        spent = space.matvecs >= o.limit and space.m >= o.k
        if space.m >= o.k and (whole or spent or _settled(space, ritz, o, chance, exact)):
            pairs = _finish(space, ritz, o, chance, exact)
            if pairs.converged or whole or spent:
                return pairs
        if exact and space.matvecs >= a.n and o.limit > a.n:
            return _dense(space, o)  # LAPACK costs no more by now
        if space.m + 2 * len(space.next) > space.capacity:
            _restart(space, ritz, o)


def _full(A: Any, a: Operand, v0: Tensor | None, o: _Options) -> Pairs:
    return _solve(a, v0, o)


def _mixed(A: Any, a: Operand, v0: Tensor | None, o: _Options) -> Pairs:
    """Coarse solve, then full precision from its block."""
    low = coarse_operand(A, o.where)
    guards = min(1 + o.k // 4, a.n - o.k)
    found = _solve(low, v0, replace(o, tol=max(o.tol, _COARSE_TOL), guards=guards))
    size = found.values.abs().max().item()
    gap = (found.values[-1].item() - found.ceiling) / size if size > 0 else 0.0
    block = torch.cat([found.x, found.guards]).to(dtype=a.dtype, device=a.device)
    index = "residual" if o.confidence is None else f"coarse({o.confidence:g})"
    pairs = refine(a, block, o.k, gap, o.tol, index, o.where)
    spent = found.matvecs + (0 if pairs is None else pairs.matvecs)
    if pairs is None or not pairs.converged:
        pairs = _solve(a, block[: o.k].T, o)
        spent += pairs.matvecs
    return replace(pairs, matvecs=spent)


def _capacity(a: Operand, k: int, width: int) -> int:
    """Rows of the basis: enough to work with, within the byte budget."""
    least = 2 * k + 3 * width + 2
    row = 2 * a.n * torch.finfo(a.dtype).bits // 8
    return min(a.n + width, max(least, min(max(_BASIS_ROWS, 6 * width), _BASIS_BYTES // row)))


def _floor(space: Krylov, theta: Tensor) -> float:
    """c_n eps |A| in scaled units."""
    size = max(space.norm, theta.abs().max().item())
    return rounding(space.a.n, space.eps) * size


def _overlap(
    space: Krylov, ritz: tuple[Tensor, Tensor, Tensor], o: _Options, chance: tuple[int, float]
) -> Overlap:
    theta, s, residual = ritz
    cycles = [*space.cycles, Cycle(theta, s[space.start], residual)]
    assert o.confidence is not None
    return Overlap(cycles, o.which, space.a.n, chance, o.k, o.confidence)


def _settled(
    space: Krylov,
    ritz: tuple[Tensor, Tensor, Tensor],
    o: _Options,
    chance: tuple[int, float],
    exact: bool,
) -> bool:
    """Errors within tol by the formula, and (unless inertia will tell) nothing hidden."""
    theta, _, residual = ritz
    pairs = wanted(theta, o.which, o.k)
    chosen = [i for i, _ in pairs]
    block_norm = _spectral_norm(residual[chosen])
    floor = _floor(space, theta)
    errors = bounds(theta, residual.norm(dim=1), chosen, block_norm)
    allowed = (o.tol * theta[chosen].abs()).clamp_min(2 * floor)
    if not bool((errors + floor <= allowed).all()):
        return False
    if exact or o.confidence is None:
        return True
    overlap = _overlap(space, ritz, o, chance)
    return all(
        overlap.excluded(rank, side, _beyond(theta[i].item(), side, allowed[rank].item()))
        for rank, (i, side) in enumerate(pairs)
    )


def _spectral_norm(residual: Tensor) -> float:
    return torch.linalg.matrix_norm(residual, 2).item() if residual.numel() else 0.0


def _beyond(theta: float, side: int, error: float) -> float:
    """A Ritz value moved outwards by ``error``."""
    if side == 0:
        return abs(theta) + error
    return theta + side * error


def _restart(space: Krylov, ritz: tuple[Tensor, Tensor, Tensor], o: _Options) -> None:
    theta, s, residual = ritz
    width = len(space.next)
    room = space.capacity - 2 * width
    count = min(room, o.k + max(2, (room - o.k) // 2))
    keep = torch.tensor([i for i, _ in wanted(theta, o.which, count)])
    space.restart(s, theta, residual, keep)


def _finish(
    space: Krylov,
    ritz: tuple[Tensor, Tensor, Tensor],
    o: _Options,
    chance: tuple[int, float],
    exact: bool,
) -> Pairs:
    """Rayleigh quotients, residuals and errors in float64, and the index check."""
    theta, s, residual = ritz
    pairs = wanted(theta, o.which, o.k)
    chosen = [i for i, _ in pairs]
    x, ax = space.vectors(s[:, chosen])
    values = (x * ax).sum(1)
    rest = ax - values[:, None] * x
    theta, r = theta.clone(), residual.norm(dim=1)
    theta[chosen], r[chosen] = values.cpu(), rest.norm(dim=1).cpu()
    block_norm = torch.linalg.eigvalsh(rest @ rest.T)[-1].clamp_min(0).sqrt().item()
    errors = bounds(theta, r, chosen, block_norm)
    floor = _floor(space, theta)
    allowed = (o.tol * theta[chosen].abs()).clamp_min(2 * floor)
    check: Inertia | Overlap | None = None
    if exact:
        assert space.a.explicit is not None
        check = Inertia(space.a.explicit, space.scale, o.which, o.k)
    elif o.confidence is not None:
        check = _overlap(space, ritz, o, chance)
    ceiling = 4 * max(space.norm, theta.abs().max().item())
    for rank, (i, side) in enumerate(pairs):
        error, limit = errors[rank].item(), allowed[rank].item() - floor
        while (
            check
            and error < ceiling
            and not check.excluded(rank, side, _beyond(theta[i].item(), side, error + floor))
        ):
            if exact and error >= limit and space.matvecs < o.limit:
                return _dense(space, o)
            error = limit if error < limit < 4 * error else max(4 * error, floor)
        errors[rank] = error
    errors = errors + floor
    return Pairs(
        values,
        x,
        rest,
        errors,
        bool((errors <= allowed * (1 + 1e-12)).all()),
        space.matvecs,
        space.scale or 1.0,
        "inertia" if exact else "residual" if check is None else f"random({o.confidence:g})",
        *_beside(space, ritz, o),
    )


def _beside(
    space: Krylov, ritz: tuple[Tensor, Tensor, Tensor], o: _Options
) -> tuple[Tensor, float]:
    """Guards, and the Ritz value that follows them; no products."""
    theta, s, _ = ritz
    following = [i for i, _ in wanted(theta, o.which, o.k + o.guards + 1)][o.k :]
    kept = following[: o.guards]
    guards = space.vectors(s[:, kept])[0] if kept else space.v.new_empty(0, space.a.n).double()
    last = following[o.guards :]
    return guards, theta[last[0]].item() if last else float("-inf")


def _dense(space: Krylov, o: _Options) -> Pairs:
    """The explicit matrix solved by LAPACK in float64: when Lanczos missed a value."""
    assert space.a.explicit is not None
    scale = space.scale or 1.0
    matrix = space.a.explicit.double() / scale
    theta, vectors = torch.linalg.eigh(matrix)
    chosen = [i for i, _ in wanted(theta.cpu(), o.which, o.k)]
    x = vectors[:, chosen].T
    rest = x @ matrix - theta[chosen, None] * x
    errors = torch.full((o.k,), _floor(space, theta.cpu()), dtype=torch.float64)
    following = [i for i, _ in wanted(theta.cpu(), o.which, o.k + o.guards + 1)][o.k :]
    guards = vectors[:, following[: o.guards]].T
    ceiling = theta[following[o.guards]].item() if len(following) > o.guards else float("-inf")
    return Pairs(
        *(theta[chosen], x, rest, errors, True, space.matvecs, scale, "inertia", guards, ceiling)
    )


def _lifted(small: Pairs, dual: Any, a: Operand) -> Pairs:
    """Pairs of the dual operator K = G'G in the large space: x = G u / |G u|.

    Of the residuals only bounds are kept, in rows of one entry: |G r| <= |K|^(1/2) |r|.
    """
    large = dual.lift(small.x.T.to(dtype=a.dtype, device=a.device)).T
    x = large / row_norms(large)[:, None].to(large)
    top = (small.values + small.errors.to(small.values)).max()
    rest = (top / small.values.abs()).sqrt()[:, None] * small.rest.norm(dim=1, keepdim=True)
    return replace(small, x=x, rest=rest)


def _package(p: Pairs, o: _Options, a: Operand) -> EigshResult:
    key = p.values.abs() if o.which == "LM" else p.values
    order = key.argsort(descending=True, stable=True)
    like = torch.empty(0, dtype=a.dtype, device=a.device)
    return EigshResult(
        (p.values[order] * p.scale).to(like),
        p.x[order].T.to(like).contiguous(),
        (p.rest.norm(dim=1)[order] * p.scale).to(like),
        (p.errors[order.cpu()] * p.scale).to(like),
        p.matvecs,
        p.converged,
        p.index,
    )
