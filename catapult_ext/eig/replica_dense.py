"""R explicit matrices at once: pairs by ``ops.lanczos_dense``, and a proof for each of them.

A Ritz value of rank i is at most the i-th eigenvalue (Cauchy).  From above, by what works first:

1. Frobenius norms.  For orthonormal rows X with X A X' = diag(theta) and residuals R, the
   compression C of A to the complement of X has |C|_F^2 = |A|_F^2 - |theta|^2 - 2 |R|_F^2.  With
   c = |C|_F, inertia (Haynsworth) gives lambda_i <= theta_i + |R|^2 / (theta_i - c) where
   theta_i > c.  That costs a pass over the matrix, and serves kernels whose top values stand out.
2. Cholesky.  If s I - P A P has a factor, P the projector to the complement of the first i Ritz
   vectors, then at most i eigenvalues exceed s (Courant and Fischer).

What neither proves is solved alone, with counted eigenvalues.
"""

from __future__ import annotations

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext import ops
from catapult_ext.eig.batch import Batch
from catapult_ext.eig.certify import rounding, wanted
from catapult_ext.eig.pairs import Options
from catapult_ext.eig.replica_lanczos import solve_alone
from catapult_ext.eig.replica_pairs import Found
from catapult_ext.eig.solve import INERTIA_LIMIT, direct_from
from catapult_ext.eig.sums import on_host
from catapult_ext.ops.routes import serves

_SHARE = 0.25  # of tol, asked of the op, so that its error and rounding together keep to tol
_SUM = {torch.float32: 1e-4, torch.float64: 1e-11}  # relative errors of sums of n^2 squares
_SAFE = {torch.float32: 1e-12, torch.float64: 1e-120}  # entries whose squares are normal numbers
_ENTRIES = 1 << 17  # of matrices that are factorised together, so that they stay in cache


def solve_matrices(a: Batch, start: Tensor | None, o: Options) -> Found:
    """The wanted pairs of explicit matrices (R, n, n)."""
    found = Found.nothing(a.replicas, a.n, o.k, a.dtype, a.device)
    frobenius, finite, tiny = _sizes(a)
    matrices = _symmetric(a.source, finite, a.where)
    if matrices is not a.source:
        a = a.of(matrices)
    some = finite.nonzero().flatten()
    if len(some) and start is None and o.limit > a.n and a.n <= INERTIA_LIMIT:
        if o.k >= direct_from(a.n, a.device):
            _by_lapack(a, some, o, found)
            some = some[:0]
        elif o.which in ("LA", "SA") and serves("lanczos_dense", a.device, a.n):
            fit = some[~tiny[some]]
            proved = _by_lanczos(a, fit, frobenius, o, found) if len(fit) else fit > 0
            some = torch.cat([some[tiny[some]], fit[~proved]])
    for r in some.tolist():
        solve_alone(a, r, None if start is None else start[r].T, o, found)
    return found


def _sizes(a: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Frobenius norms (R,) in float64, which matrices are finite, and which too small for products.

    Of a matrix that is not finite the norm is zero.
    """
    matrices = a.source
    norms = torch.linalg.vector_norm(matrices, dim=(1, 2)).cpu().double()
    finite, tiny = torch.isfinite(norms), torch.zeros(len(norms), dtype=torch.bool, device="cpu")
    safe = _SAFE[a.dtype]
    doubtful = (~((norms > a.n * safe) & (norms < 1 / safe))).nonzero().flatten()
    if len(doubtful):  # squares that over- or underflow
        some = matrices[doubtful.to(a.device)]
        largest = some.abs().amax((1, 2)).double()
        scaled = some.double() / torch.where(largest > 0, largest, 1.0)[:, None, None]
        norms[doubtful] = (torch.linalg.vector_norm(scaled, dim=(1, 2)) * largest).cpu()
        largest = largest.cpu()
        finite[doubtful] = torch.isfinite(largest)
        tiny[doubtful] = largest < torch.finfo(a.dtype).tiny / a.eps
    return norms.where(finite, 0.0), finite, tiny & (norms > 0)


def _symmetric(matrices: Tensor, finite: Tensor, where: str) -> Tensor:
    """The matrices, those made symmetric that are so to rounding only.

    Raises:
        ValueError: a finite one that is not symmetric, by number.
    """
    if torch.equal(matrices, matrices.mT):
        return matrices
    skew = (matrices - matrices.mT).abs().amax((1, 2)).cpu()
    largest = matrices.abs().amax((1, 2)).cpu()
    wrong = finite & (skew > 100 * torch.finfo(matrices.dtype).eps * largest)
    if bool(wrong.any()):
        r = int(wrong.nonzero()[0])
        v.fail(where, f"A[{r}] must be symmetric", f"max |A - A'| = {skew[r]:.3g}")
    if not bool((skew[finite] > 0).any()):
        return matrices  # what differs is not finite
    return (matrices + matrices.mT) / 2


def _by_lapack(a: Batch, some: Tensor, o: Options, found: Found) -> None:
    """Small matrices, or many pairs: all of LAPACK's."""
    matrices = a.source[some.to(a.device)].double()
    largest = matrices.abs().amax((1, 2), keepdim=True)
    scale = torch.exp2(torch.where(largest > 0, largest, 1.0).log2().round())
    matrices = matrices / scale
    theta, vectors = torch.linalg.eigh(matrices)
    if o.which == "LM":
        index = theta.abs().argsort(dim=1, descending=True, stable=True)[:, : o.k]
    else:
        ranks = [i for i, _ in wanted(theta[0], o.which, o.k)]
        index = torch.tensor(ranks, device=theta.device).expand(len(theta), -1)
    values = theta.gather(1, index)
    x = vectors.gather(2, index[:, None].expand(-1, a.n, -1)).mT
    rest = torch.linalg.vector_norm(x @ matrices - values[:, :, None] * x, dim=2)
    floor = rounding(a.n, a.eps) * theta.abs().amax(1, keepdim=True).expand(-1, o.k)
    values, rest, floor = on_host(*(part * scale[:, :, 0] for part in (values, rest, floor)))
    count = len(some)
    found.put(
        some,
        Found(
            values=values,
            x=x,
            residuals=rest,
            errors=floor,
            converged=torch.ones(count, dtype=torch.bool, device="cpu"),
            matvecs=torch.zeros(count, dtype=torch.int64, device="cpu"),
            index=["inertia"] * count,
        ),
    )


def _by_lanczos(a: Batch, some: Tensor, frobenius: Tensor, o: Options, found: Found) -> Tensor:
    """Pairs of the matrices ``some`` that could be proved (R',); the others are left."""
    whole = len(some) == a.replicas
    matrices = a.source if whole else a.source[some.to(a.device)]
    sign = 1 if o.which == "LA" else -1
    op = ops.lanczos_dense(
        matrices if sign > 0 else -matrices,
        o.k,
        tol=_SHARE * o.tol,
        maxiter=o.limit,
        seed=o.seed % 2**31,
    )
    size = torch.exp2(frobenius[some].clamp_min(1e-300).log2().round()).to(a.device)
    x = op.eigenvectors.double()
    ax = sign * _products(matrices, x) / size[:, None, None]
    theta, x, rest, orthonormal = _rayleigh_ritz(x, ax)
    lengths = torch.linalg.vector_norm(rest, dim=2)
    theta, lengths, guess, steps, size, good = on_host(
        theta, lengths, op.errors / size[:, None], op.steps, size, orthonormal
    )
    norm = frobenius[some] / size
    floor = rounding(a.n, a.eps) * torch.minimum(norm, 2 * theta.abs().amax(1) + lengths.amax(1))
    allowed = torch.maximum(o.tol * theta.abs(), 2 * floor[:, None])
    outside = norm.square() * (1 + _SUM[a.dtype])  # of the complement, by Frobenius norms
    outside -= theta.square().sum(1) + 2 * lengths.square().sum(1)
    room = theta - outside.clamp_min(0).sqrt()[:, None]
    errors = lengths.square().sum(1, keepdim=True) / room + floor[:, None]
    fits = torch.isfinite(theta).all(1) & (good > 0)
    proved = fits & ((room > 0) & (errors <= allowed)).all(1)
    left = (fits & ~proved).nonzero().flatten()
    if len(left):
        guess = torch.minimum(guess[left].clamp_min(0) + floor[left, None], allowed[left])
        errors[left], proved[left] = _by_cholesky(
            matrices, left, sign, size, theta[left], x, guess, allowed[left]
        )
    done = proved.nonzero().flatten()
    back = size[done, None]
    found.matvecs[some] = steps.long() + o.k
    found.put(
        some[done],
        Found(
            values=sign * theta[done] * back,
            x=x[done.to(x.device)],
            residuals=lengths[done] * back,
            errors=errors[done] * back,
            converged=torch.ones(len(done), dtype=torch.bool, device="cpu"),
            matvecs=torch.zeros(len(done), dtype=torch.int64, device="cpu"),
            index=["inertia"] * len(done),
        ),
    )
    return proved


def _products(matrices: Tensor, x: Tensor) -> Tensor:
    """X A (R, k, n) in float64, a few matrices at a time where they are float32."""
    if matrices.dtype == torch.float64:
        return x @ matrices
    step = max(1, _ENTRIES // matrices[0].numel())
    parts = zip(x.split(step), matrices.split(step), strict=True)
    return torch.cat([part @ some.double() for part, some in parts])


def _rayleigh_ritz(x: Tensor, ax: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ritz values (R, k) descending, vectors, residuals; which X (R,) were near orthonormal."""
    gram, t = x @ x.mT, ax @ x.mT
    finite = torch.isfinite(gram).all(2).all(1) & torch.isfinite(t).all(2).all(1)
    unit = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    gram = torch.where(finite[:, None, None], gram, unit)
    near = (gram - unit).abs().amax((1, 2)) < 0.25 / x.shape[1]
    if x.shape[1] == 1:
        theta, mix = t[:, 0] / gram[:, 0], gram.rsqrt()
    else:
        t = torch.where(finite[:, None, None], t, unit)
        factor, status = torch.linalg.cholesky_ex(gram)
        near &= status == 0
        factor = torch.where(near[:, None, None], factor, unit)
        inverse = torch.linalg.solve_triangular(factor, unit.expand_as(factor), upper=False)
        t = inverse @ ((t + t.mT) / 2) @ inverse.mT
        theta, s = torch.linalg.eigh((t + t.mT) / 2)
        theta, mix = theta.flip(1), s.flip(2).mT @ inverse
    x, ax = mix @ x, mix @ ax
    return theta, x, ax - theta[:, :, None] * x, near & finite


def _by_cholesky(
    matrices: Tensor,
    left: Tensor,
    sign: int,
    size: Tensor,
    theta: Tensor,
    x: Tensor,
    guess: Tensor,
    allowed: Tensor,
) -> tuple[Tensor, Tensor]:
    """Errors (R', k) that a factorisation confirms, and for which matrices it does.

    Tried are ``guess`` and then ``allowed``; everything but ``matrices`` is scaled by ``size``.
    """
    errors, proved = guess.clone(), torch.ones(len(left), dtype=torch.bool, device="cpu")
    step = max(1, _ENTRIES // matrices[0].numel())
    shape = (2, min(step, len(left)), *matrices.shape[1:])
    factors = torch.empty(shape, dtype=torch.float64, device=matrices.device)
    for first in range(0, len(left), step):
        part = slice(first, first + step)
        at = left[part].to(matrices.device)
        some, work = factors[:, : len(at)]
        torch.mul(matrices[at], (-sign / size[left[part]]).to(some)[:, None, None], out=some)
        for rank in range(theta.shape[1]):
            if rank:
                _project(some, x[at, rank - 1])
            good = _definite(some, theta[part, rank] + guess[part, rank], work)
            again = (~good & (guess[part, rank] < allowed[part, rank])).nonzero().flatten()
            if len(again):
                shift = (theta[part, rank] + allowed[part, rank])[again]
                good[again] = _definite(some[again.to(at.device)], shift, work[: len(again)])
                errors[first + again, rank] = allowed[first + again, rank]
            proved[part] &= good
    return errors, proved


def _project(matrices: Tensor, x: Tensor) -> None:
    """P A P in place, P = I - x x' for unit rows x (R, n)."""
    ax = (matrices @ x[:, :, None])[:, :, 0]
    ax = ax - (x * ax).sum(1, keepdim=True) / 2 * x
    both = ax[:, :, None] * x[:, None]
    matrices -= both
    matrices -= both.mT


def _definite(negative: Tensor, shift: Tensor, work: Tensor) -> Tensor:
    """Which s I - A (R,) have a Cholesky factor; ``negative`` is -A, ``work`` as large."""
    work.copy_(negative)
    work.diagonal(dim1=1, dim2=2).add_(shift.to(work)[:, None])
    return (torch.linalg.cholesky_ex(work.mT, out=_factor(work)).info == 0).cpu()


def _factor(work: Tensor) -> tuple[Tensor, Tensor]:
    """Where LAPACK may leave factors: in place, by columns."""
    return work.mT, torch.empty(len(work), dtype=torch.int32, device=work.device)
