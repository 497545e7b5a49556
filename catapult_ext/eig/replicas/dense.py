"""R explicit matrices at once: pairs by ``ops.lanczos_dense``, and a proof for each of them.

The top pairs of matrices on the CPU take one native call.  Otherwise: a Ritz value of rank i is
at most the i-th eigenvalue (Cauchy).  From above, by what works first:

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
from catapult_ext.eig.certify import rounding, wanted
from catapult_ext.eig.dense import INERTIA_LIMIT, proved_tops
from catapult_ext.eig.pairs import Options
from catapult_ext.eig.replicas.batch import Batch
from catapult_ext.eig.replicas.cholesky import by_cholesky
from catapult_ext.eig.replicas.lanczos import solve_alone
from catapult_ext.eig.replicas.pairs import NOT_FINITE, Found
from catapult_ext.eig.solve import direct_from
from catapult_ext.eig.sums import on_host
from catapult_ext.ops.lanczos_dense import CertifiedTop
from catapult_ext.ops.routes import serves

# Of tol, asked of the op, so that its error and rounding together keep to tol; where a hidden
# eigenvalue is met, a few more steps mostly find it.
_SHARES = (0.25, 1e-3)
_ALIKE = 4.0  # eps |A|_F: products with A and A' differ by so much at most if A is symmetric
_SUM = {torch.float32: 1e-4, torch.float64: 1e-11}  # relative errors of sums of n^2 squares
_SAFE = {torch.float32: 1e-12, torch.float64: 1e-120}  # entries whose squares are normal numbers
_ENTRIES = 1 << 20  # of matrices that are converted together
_CACHED = 1 << 18  # of matrices that stay in cache


def solve_matrices(a: Batch, start: Tensor | None, o: Options) -> Found:
    """The wanted pairs of explicit matrices (R, n, n)."""
    left = torch.ones(a.replicas, dtype=torch.bool, device="cpu")
    tops = None if start is not None else proved_tops(a.source, o)
    if tops is None:
        found = Found.nothing(a.replicas, a.n, o.k, a.dtype, a.device)
    else:
        found = _found(tops)
        left = ~found.converged
        if not bool(left.any()):
            return found
    frobenius, apart = _seen(a.source)
    finite, tiny = _sizes(a, frobenius)
    matrices = _symmetric(a.source, apart, frobenius, finite, a.where)
    if matrices is not a.source:
        a = a.of(matrices)
    some = (finite & left).nonzero().flatten()
    if len(some) and start is None and o.limit > a.n and a.n <= INERTIA_LIMIT:
        if o.k >= direct_from(a.n, a.device):
            _by_lapack(a, some, o, found)
            some = some[:0]
        elif o.which in ("LA", "SA") and serves("lanczos_dense", a.device, a.n):
            fit = some[~tiny[some]]
            for share in _SHARES:
                if len(fit):
                    fit = fit[~_by_lanczos(a, fit, frobenius, o, found, share)]
            some = torch.cat([some[tiny[some]], fit])
    for r in some.tolist():
        solve_alone(a, r, None if start is None else start[r].T, o, found)
    return found


def _found(tops: CertifiedTop) -> Found:
    """Pairs that one native call proved; NaN for the others."""
    values, residuals, errors = tops.numbers.split(1, dim=1)
    proved = ~torch.isnan(errors[:, 0])
    return Found(
        values=values,
        x=tops.vectors[:, None],
        residuals=residuals,
        errors=errors,
        converged=proved,
        matvecs=tops.products,
        index=["inertia" if good else NOT_FINITE for good in proved.tolist()],
    )


def _seen(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Frobenius norms (R,), and |(A - A') z| (R,) of a Gaussian vector z, float64 on the CPU.

    On the CPU a few matrices at a time, while they are in cache.
    """
    n = matrices.shape[1]
    random = torch.Generator().manual_seed(0)
    z = torch.randn(1, n, generator=random, dtype=matrices.dtype, device="cpu").to(matrices.device)
    step = max(1, _CACHED // (n * n)) if matrices.device.type == "cpu" else len(matrices)
    found = []
    for some in matrices.split(step):
        norms = torch.linalg.vector_norm(some, dim=(1, 2))
        apart = (some @ z.T)[:, :, 0] - (z @ some)[:, 0]
        found.append(torch.stack([norms.double(), torch.linalg.vector_norm(apart.double(), dim=1)]))
    norms, apart = torch.cat(found, dim=1).cpu()
    return norms, apart


def _sizes(a: Batch, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Which matrices are finite, and which too small for products.

    Sets the norms of those whose squares over- or underflow, and zero for one that is not finite.
    """
    finite, tiny = torch.isfinite(norms), torch.zeros(len(norms), dtype=torch.bool, device="cpu")
    safe = _SAFE[a.dtype]
    doubtful = (~((norms > a.n * safe) & (norms < 1 / safe))).nonzero().flatten()
    if len(doubtful):
        some = a.source[doubtful.to(a.device)]
        largest = some.abs().amax((1, 2)).double()
        scaled = some.double() / torch.where(largest > 0, largest, 1.0)[:, None, None]
        norms[doubtful] = (torch.linalg.vector_norm(scaled, dim=(1, 2)) * largest).cpu()
        largest = largest.cpu()
        finite[doubtful] = torch.isfinite(largest)
        tiny[doubtful] = (largest < torch.finfo(a.dtype).tiny / a.eps) & (largest > 0)
        norms[~finite] = 0.0
    return finite, tiny


def _symmetric(
    matrices: Tensor, apart: Tensor, norms: Tensor, finite: Tensor, where: str
) -> Tensor:
    """The matrices, those made symmetric that are so to rounding only.

    |(A - A') z| is about |A - A'|_F.  Where it is no more than the rounding of the products, so is
    what the lower triangle alone says otherwise.

    Raises:
        ValueError: a finite one that is not symmetric, by number.
    """
    unsure = finite & ~(apart <= _ALIKE * torch.finfo(matrices.dtype).eps * norms)
    if not bool(unsure.any()):
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


def _by_lanczos(
    a: Batch, some: Tensor, frobenius: Tensor, o: Options, found: Found, share: float
) -> Tensor:
    """Pairs of the matrices ``some`` that could be proved (R',); the others are left."""
    whole = len(some) == a.replicas
    matrices = a.source if whole else a.source[some.to(a.device)]
    sign = 1 if o.which == "LA" else -1
    op = ops.lanczos_dense(
        matrices if sign > 0 else -matrices,
        o.k,
        tol=share * o.tol,
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
    floor = rounding(a.n, a.eps) * norm  # the values met may be small where |A| is not
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
        errors[left], proved[left] = by_cholesky(
            matrices, left, -sign / size, theta[left], x, guess, allowed[left]
        )
    done = proved.nonzero().flatten()
    back = size[done, None]
    found.matvecs[some] += steps.long() + o.k
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
