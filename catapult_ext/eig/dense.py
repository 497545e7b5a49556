"""Explicit matrices: a few pairs by ``ops.lanczos_dense``, proved by counting eigenvalues.

The op's own errors suppose that no eigenvalue hides in a gap.  Here nothing is supposed: a Ritz
value of rank i is at most the i-th eigenvalue (Cauchy), and the inertia of A - (theta + e) I says
whether that is at most theta + e.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from catapult_ext import ops
from catapult_ext.eig.certify import Inertia, inexact
from catapult_ext.eig.operand import Operand
from catapult_ext.eig.pairs import Options, Pairs
from catapult_ext.eig.sums import on_host

_SHARE = 0.25  # of tol, asked of the op, so that its error and rounding together keep to tol


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
