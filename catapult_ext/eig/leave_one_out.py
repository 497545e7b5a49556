"""Trace and diagonal by XTrace and XDiag: a low-rank part exactly, the rest by random vectors.

Half of the products find a subspace Q that holds most of A, the others give A on it.  Each random
vector is used twice, for the subspace and, with the subspace of the others, for what that leaves;
the estimates of all vectors are averaged, and their scatter is the error (Epperly, Tropp, Webber
2024, "XTrace: making the most of every sample in stochastic trace estimation").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._progress import Progress, counted
from catapult_ext.eig.certify import rounding
from catapult_ext.eig.operand import Operand, as_operand
from catapult_ext.eig.random import Estimate, student
from catapult_ext.eig.sums import inner, on_host

_AT_ONCE = 8  # vectors multiplied together


@no_autocast()
def xtrace(A: Any, products: int = 32, *, seed: int = 0, progress: Progress = None) -> Estimate:
    """Estimate the trace of a symmetric operator; far better than Hutchinson's where A decays.

    Args:
        A: see :func:`catapult_ext.eigsh`.
        products: number of products with A, in columns; even and >= 4.
        seed: seed of the random vectors, which are uniform on a sphere.
        progress: True for a bar, or a function of (products done, products); see
            :mod:`catapult_ext._progress`.

    Returns:
        :class:`Estimate`, unbiased; its ``error`` is half a 68 % interval by Student's t, from the
        scatter of the m = ``products/2`` leave-one-out estimates.  These share vectors, so the
        variance of their mean is up to twice that of independent estimates (a statistic of pairs
        of vectors; Hoeffding 1948), and the factor of two is included.  If the rank is about m, all
        estimates may agree on a wrong value.  The scatter is therefore taken no smaller than that
        of the direction which each estimate leaves out.  Rounding of the products is added.  An
        operator with n <= ``products`` gives its exact diagonal by n products, with the error 0.

    Raises:
        TypeError, ValueError: as :func:`catapult_ext.eigsh`; an odd number of products, or fewer
            than 4; non-finite products.

    Cost:
        ``products`` products, O(n m^2) operations and 4 n m numbers.

    Source:
        Epperly, Tropp, Webber (2024), algorithm XTrace with normalised residuals.

    Examples:
        >>> A = torch.diag(torch.arange(1.0, 51) ** -2)
        >>> trace, error = cx.xtrace(A, products=20)
        >>> bool((trace - A.trace()).abs() < 0.1)
        True
    """
    where = "xtrace"
    a = as_operand(A, where)
    m = _half(products, seed, where)
    if a.n <= products:
        with counted(progress, where, a.n, "products") as counter:
            exact = _exact(a.counted(counter), where)
        return Estimate(exact.sum().to(a.dtype), exact.new_zeros(()).to(a.dtype), m, a.n)
    draw = torch.Generator().manual_seed(seed)
    omega = torch.randn(m, a.n, generator=draw, dtype=torch.float64, device="cpu")
    omega *= math.sqrt(a.n) / omega.norm(dim=1, keepdim=True)
    with counted(progress, where, products, "products") as counter:
        part = _Subspace.of(a.counted(counter), omega.to(a.dtype).to(a.device), where)
    s, r = part.left_out, part.r
    h, w = part.h, part.w
    c = w - s * (s * w).sum(0)  # coordinates of each vector in the subspace of the others
    kept = h.diagonal().sum() - (s * (h @ s)).sum(0)
    rest = (w * r).sum(0) - 2 * (c * r).sum(0) + (c * (h @ c)).sum(0)
    share = (a.n - m + 1) / (a.n - c.square().sum(0))
    each = kept + rest * share
    # a sphere's vector sees the deviation of what is left from its mean; s is one direction of it
    left = (s * (h @ s)).sum(0) - rest * share / (a.n - m + 1)
    spread = torch.maximum(each.var(unbiased=True), 2 * left.square().mean()).sqrt()
    error = student(m - 1) * spread * math.sqrt(2 / m)
    terms = part.lengths.sum() + (w.norm(dim=0) * r.norm(dim=0) * share).mean()
    error += rounding(a.n, torch.finfo(a.dtype).eps) * terms
    return Estimate(each.mean().to(a.dtype), error.to(a.dtype), m, 2 * m)


@no_autocast()
def xdiag(A: Any, products: int = 32, *, seed: int = 0, progress: Progress = None) -> Estimate:
    """Estimate the diagonal (n,) of a symmetric operator as :func:`xtrace` does, by random signs.

    Arguments, errors raised and cost are those of :func:`xtrace`.  With probability 2^(1-m) two
    entries of a row have equal signs in all vectors, and may then cancel unseen.  ``error``
    therefore includes this probability times the sum of squares of the row outside the
    subspace, or the mean of these sums over all rows if that is larger.

    Examples:
        >>> A = torch.diag(torch.arange(1.0, 51) ** -2)
        >>> diagonal, error = cx.xdiag(A, products=20)
        >>> diagonal.shape, error.shape
        (torch.Size([50]), torch.Size([50]))
    """
    where = "xdiag"
    a = as_operand(A, where)
    m = _half(products, seed, where)
    if a.n <= products:
        with counted(progress, where, a.n, "products") as counter:
            exact = _exact(a.counted(counter), where).to(a.dtype)
        return Estimate(exact, torch.zeros_like(exact), m, a.n)
    draw = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (m, a.n), generator=draw, device="cpu") * 2 - 1
    omega = signs.to(a.dtype).to(a.device)
    with counted(progress, where, products, "products") as counter:
        part = _Subspace.of(a.counted(counter), omega, where)
    known = (part.q * part.z).sum(1).double()
    steps = (part.left_out * part.r).sum(0).tolist()
    mean = torch.zeros_like(known)
    squares, energy = torch.zeros_like(known), torch.zeros_like(known)
    sizes = part.r.norm(dim=0).tolist()
    terms = (part.q.abs() @ part.lengths.to(part.q)).double()
    for i, step in enumerate(steps):
        s = part.left_out[:, i].to(part.q)
        out, through = part.q @ s, part.z @ s
        one = known + (out * (omega[i] * step - through)).double()
        late = one - mean
        mean += late / (i + 1)
        squares += late * (one - mean)
        energy += (out.double() * step).square() / m
        terms += out.abs().double() * (sizes[i] + through.double().norm()) / m
    energy = energy.clamp_min(energy.mean())
    error = student(m - 1) * (2 * squares / (m - 1) / m + energy * 2.0 ** (1 - m)).sqrt()
    error += rounding(a.n, torch.finfo(a.dtype).eps) * terms
    return Estimate(mean.to(a.dtype), error.to(a.dtype), m, 2 * m)


def _half(products: int, seed: int, where: str) -> int:
    v.integers(where, products=products, seed=seed)
    ok = products >= 4 and products % 2 == 0
    v.require(ok, where, "products must be an even number >= 4", products)
    return int(products) // 2


def _product(a: Operand, vectors: Tensor, where: str) -> Tensor:
    """A V for V (n, m), a few columns at a time."""
    out = torch.cat([a.product(some) for some in vectors.split(_AT_ONCE, 1)], 1)
    v.finite(bool(torch.isfinite(out).all()), where, "products with A")
    return out


def _exact(a: Operand, where: str) -> Tensor:
    """The diagonal (n,) by n products, float64."""
    unit = torch.eye(a.n, dtype=a.dtype, device=a.device)
    return _product(a, unit, where).diagonal().double()


@dataclass(frozen=True, eq=False)
class _Subspace:
    """Q R = A Omega and A Q, with the small matrices in float64 on the CPU.

    ``left_out``: column i is the unit vector s with Q (I - s s') Q' the projection on the span of
    all columns of A Omega but the i-th.
    """

    q: Tensor  # (n, m)
    z: Tensor  # (n, m), A Q
    r: Tensor  # (m, m)
    h: Tensor  # (m, m), Q' A Q
    w: Tensor  # (m, m), Q' Omega
    left_out: Tensor  # (m, m)
    lengths: Tensor  # (m,), norms of the columns of z, float64 on the CPU

    @classmethod
    def of(cls, a: Operand, omega: Tensor, where: str) -> _Subspace:
        """For random vectors (m, n), by 2 m products."""
        y = _product(a, omega.T, where)
        scale = y.abs().max()  # far from 1 the squares of a decomposition leave the dtype's range
        q, r = torch.linalg.qr(y / scale if scale > 0 else y)
        z = _product(a, q, where)
        h, w, r = on_host(inner(q.T, z.T), inner(q.T, omega), r.double() * scale.double())
        h = (h + h.T) / 2
        u, sizes, vh = torch.linalg.svd(r)
        least = torch.finfo(a.dtype).eps * sizes.max()
        # R^-T; a direction that rounding made is as good as any other to be left out
        inverse = u * (least / sizes.clamp_min(least) if least > 0 else torch.ones_like(sizes)) @ vh
        (lengths,) = on_host(z.double().norm(dim=0))
        return cls(q, z, r, h, w, inverse / inverse.norm(dim=0), lengths)
