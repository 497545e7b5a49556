"""Explicit matrices: the top pair by one native call, or a few pairs proved by counting.

The op's own errors suppose that no eigenvalue hides in a gap.  Here nothing is supposed: a Ritz
value of rank i is at most the i-th eigenvalue (Cauchy), and the inertia of A - (theta + e) I says
whether that is at most theta + e.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext import ops
from catapult_ext.eig.certify import Inertia, inexact
from catapult_ext.eig.operand import Operand
from catapult_ext.eig.pairs import EigshResult, Options, Pairs
from catapult_ext.eig.sums import on_host
from catapult_ext.ops.lanczos_dense import CertifiedTop, certified_top, certifies
from catapult_ext.ops.routes import serves

INERTIA_LIMIT = 2048  # rows up to which an explicit matrix is factorised to count eigenvalues
_UNLIMITED = 500  # products that no solve of a matrix by ops.lanczos_dense is stopped at

_SHARE = 0.25  # of tol, asked of the op, so that its error and rounding together keep to tol


def by_lanczos_dense(o: Options, n: int, device: torch.device) -> bool:
    """Whether ``ops.lanczos_dense`` serves a solve from random vectors."""
    served = n <= INERTIA_LIMIT and serves("lanczos_dense", device, n)
    return served and o.limit > min(n, _UNLIMITED)


def is_matrix(a: Any) -> bool:
    """Whether ``a`` is a tensor (n, n) whose memory native code may read."""
    return (
        type(a) in (Tensor, torch.nn.Parameter)
        and a.layout == torch.strided
        and a.dtype in v.FLOAT_DTYPES
        and a.device.type != "meta"
        and a.dim() == 2
        and a.shape[0] == a.shape[1] > 0
        and not torch._C._functorch.is_functorch_wrapped_tensor(a)
    )


def proved_tops(matrices: Tensor, o: Options) -> CertifiedTop | None:
    """The wanted pair of each of (R, n, n) by one native call; None where it does not apply.

    NaN for matrices that need another solver: see :func:`ops.lanczos_dense.certified_top`.
    """
    n, device = matrices.shape[1], matrices.device
    one = o.k == 1 and o.which != "LM" and o.guards is None
    if not (one and certifies(matrices) and by_lanczos_dense(o, n, device)):
        return None
    smallest = o.which == "SA"
    found = certified_top(
        -matrices if smallest else matrices, tol=o.tol, maxiter=o.limit, seed=o.seed % 2**31
    )
    if smallest:
        found.numbers[:, 0].neg_()
    return found


def top_pairs(matrix: Tensor, o: Options) -> Pairs | None:
    """The wanted pair of one matrix (n, n) for the solvers, or None; residuals are norms only."""
    found = proved_tops(matrix[None], o)
    if found is None or math.isnan(found.numbers[0, 2].item()):
        return None
    value, residual, error = found.numbers[0].split(1)
    x = found.vectors.double()
    return Pairs(
        values=value,
        x=x,
        rest=residual[:, None],
        errors=error,
        converged=True,
        matvecs=int(found.products),
        scale=1.0,
        index="inertia",
        guards=x[:0],
        following=[],
    )


def proved_top(a: Tensor, o: Options) -> EigshResult | None:
    """The result of ``eigsh`` for one matrix (n, n); None where others must solve or refuse it."""
    v.constant(o.where, {"A": a})
    found = proved_tops(a.detach()[None], o)
    if found is None or math.isnan(found.numbers[0, 2].item()):
        return None
    value, residual, error = found.numbers[0].to(a.dtype).split(1)
    return EigshResult(
        eigenvalues=value,
        eigenvectors=found.vectors.T,
        residuals=residual,
        errors=error,
        matvecs=int(found.products),
        converged=True,
        index_check="inertia",
    )


def dense_pairs(a: Operand, o: Options) -> tuple[Pairs | None, int]:
    """The wanted pairs of an explicit matrix, and the products made; none where unproved.

    Of ``which`` "LA" and "SA"; the smallest are the largest of -A.
    """
    assert a.explicit is not None
    largest = a.explicit.abs().max().item()
    if largest == 0 or o.which not in ("LA", "SA") or o.guards is not None:
        return None, 0
    scale, sign = 2.0 ** round(math.log2(largest)), 1 if o.which == "LA" else -1
    matrix = a.explicit / scale
    found = ops.lanczos_dense(
        (sign * matrix).unsqueeze(0), o.k, tol=_SHARE * o.tol, maxiter=o.limit, seed=o.seed % 2**31
    )
    exact = matrix.double()
    x = found.eigenvectors[0].double()
    ax = x @ exact
    norms = torch.linalg.vector_norm(exact, dim=1).amax()
    gram, t, errors, steps, norm = on_host(x @ x.T, ax @ x.T, found.errors, found.steps, norms)
    spent = int(steps) + o.k
    ritz = _rayleigh_ritz(gram, sign * t)
    if ritz is None:
        return None, spent
    theta, mix = ritz
    x, ax = mix.to(x) @ x, mix.to(x) @ ax
    values = sign * theta
    rest = ax - values[:, None].to(x) * x
    floor = inexact(a.n, a.eps, max(norm.item(), theta.abs().max().item()), 0.0)
    allowed = (o.tol * theta.abs()).clamp_min(2 * floor)
    proved = _proved(
        Inertia(a.explicit, scale, o.which, o.k), values, sign, errors[0], allowed, floor
    )
    if proved is None:
        return None, spent
    pairs = Pairs(
        values=values.to(x),
        x=x,
        rest=rest,
        errors=proved,
        converged=True,
        matvecs=spent,
        scale=scale,
        index="inertia",
        guards=x[:0],
        following=[],
    )
    return pairs, spent


def _rayleigh_ritz(gram: Tensor, t: Tensor) -> tuple[Tensor, Tensor] | None:
    """Ritz values (k,) descending and coefficients (k, k) of orthonormal Ritz vectors, by rows.

    ``gram`` and ``t`` hold the products X X' and X A X' of vectors that are nearly orthonormal;
    None where they are not.
    """
    if len(gram) == 1:
        return (t[0] / gram[0], gram.rsqrt()) if 0.25 < gram.item() < 4 else None
    factor, status = torch.linalg.cholesky_ex(gram)
    if not bool(torch.isfinite(gram).all()) or int(status) or factor.diagonal().min() < 0.5:
        return None
    inverse = torch.linalg.inv(factor)
    t = inverse @ ((t + t.T) / 2) @ inverse.T
    theta, s = torch.linalg.eigh((t + t.T) / 2)
    return theta.flip(0), s.flip(1).T @ inverse


def _proved(
    count: Inertia, values: Tensor, sign: int, errors: Tensor, allowed: Tensor, floor: float
) -> Tensor | None:
    """Errors (k,) that counting confirms, ``floor`` included; None beyond what is allowed."""
    out = torch.empty_like(allowed)
    for i, value in enumerate(values.tolist()):
        limit = allowed[i].item()
        error = min(max(errors[i].item(), 0.0) + floor, limit)
        while not count.excluded(i, sign, value + sign * error):
            if error >= limit:
                return None
            error = min(4 * error, limit)
        out[i] = error
    return out
