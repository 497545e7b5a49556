"""The largest eigenvalues of a batch of explicit symmetric matrices."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from catapult_ext import _native, _validate
from catapult_ext.ops._registry import register

_WHERE = "lanczos_dense"


class LanczosDense(NamedTuple):
    """Result of :func:`lanczos_dense`.

    Examples:
        >>> values, vectors, errors, steps = cx.ops.lanczos_dense(torch.eye(3)[None])
        >>> values.shape, vectors.shape
        (torch.Size([1, 1]), torch.Size([1, 1, 3]))
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    errors: Tensor
    steps: Tensor


def lanczos_dense(
    a: Tensor,
    k: int = 1,
    *,
    tol: float = 1e-5,
    maxiter: int | None = None,
    v0: Tensor | None = None,
    seed: int = 0,
) -> LanczosDense:
    """The k algebraically largest eigenpairs of R symmetric matrices, by Lanczos, in one call.

    Each matrix is iterated with full reorthogonalisation until every error is at most ``tol *
    |eigenvalue|`` (or a few eps of the norm, if that is larger), and then for a few more steps. For
    k > 1, runs from further random vectors, in the complement of the pairs found, look for further
    copies of a repeated eigenvalue, which a single start vector cannot find. The eigenvalues
    returned are Rayleigh quotients of the returned vectors, accumulated in float64.

    ``errors`` bounds the absolute errors: min(||R||, 2 r^2 / gap) plus rounding, with r the
    measured residual of the pair, R the residuals of all k, and the gap taken from the other Ritz
    values less their residuals. Like every bound from few products, it assumes that the gap
    contains no unresolved eigenvalue: two eigenvalues closer than r may be reported as one value
    between them. Nothing checks this, so at a loose ``tol`` errors are estimates: of 200 Wishart
    matrices (k = 1), 41 errors were too small at n = 65 and tol = 0.1, 11 at tol = 0.01, and 3 at n
    = 200 and tol = 1e-3, by up to a factor 200; at the default tol, 1 of 4,000 was too small,
    because of rounding. For a checked bound use :func:`catapult_ext.eigsh`.

    Args:
        a: (R, n, n), float32 or float64. Only the lower triangle is read.
        k: number of eigenpairs, 1 <= k <= n.
        tol: requested relative error of the eigenvalues, >= 0. For k > 1 it applies to the
            residuals, which bound the errors even where eigenvalues repeat.
        maxiter: rough limit on the products with a matrix; default 10 n + 1000. Pairs that have not
            converged then have large ``errors``.
        v0: optional (R, n) start vectors, e.g. the last top eigenvectors; noise of a hundredth of
            their norm is added. A vector that is zero or not finite is replaced by the random
            start.
        seed: seed of the random vectors, which are the same for every matrix of the batch.

    Returns:
        ``(eigenvalues (R, k) descending, eigenvectors (R, k, n) unit rows, errors (R, k), steps
        (R,) int64)``; steps counts products with the matrix, including one per pair for the final
        check. A matrix with a non-finite entry gives NaN and does not affect the others.

    Raises:
        TypeError: tensors of a wrong type or dtype, or of different dtypes.
        ValueError: matrices that are not square or empty, k outside [1, n], maxiter < k, tol < 0,
            different devices, or an input that requires grad.

    Cost:
        n^2 + 4 n j multiply-adds for step j, reading half of the matrix and the basis twice. Each
        thread works on one matrix if there are at least as many matrices as threads; otherwise
        threads share the products from n = 1024 on. The bits do not depend on the number of
        threads.

    Examples:
        >>> found = cx.ops.lanczos_dense(torch.diag(torch.tensor([1.0, 2.0, 5.0]))[None])
        >>> round(float(found.eigenvalues[0, 0]), 3)
        5.0
    """
    tensors = {"a": _validate.tensor(a, _WHERE, "a", ("R", "n", "n"))}
    replicas, n, columns = a.shape
    _validate.require(
        n == columns and n > 0, _WHERE, "a must hold square matrices, n >= 1", tuple(a.shape)
    )
    _validate.integers(_WHERE, k=k, seed=seed)
    _validate.integers(_WHERE, maxiter=maxiter, optional=True)
    _validate.numbers(_WHERE, tol=tol)
    _validate.require(1 <= k <= n, _WHERE, f"k must be in [1, n = {n}]", k)
    _validate.require(tol >= 0, _WHERE, "tol must be at least 0", tol)
    maxiter = 10 * n + 1000 if maxiter is None else maxiter
    _validate.require(maxiter >= k, _WHERE, f"maxiter must be at least k = {k}", maxiter)
    if v0 is not None:
        tensors["v0"] = _validate.tensor(v0, _WHERE, "v0", (replicas, n))
    _validate.same_kind(_WHERE, tensors)
    _validate.no_grad_needed(_WHERE, tensors)
    return LanczosDense(*torch.ops.catapult.lanczos_dense(a, k, tol, maxiter, v0, seed))


class CertifiedTop(NamedTuple):
    """Result of :func:`certified_top`."""

    vectors: Tensor  # (R, n) unit rows
    numbers: Tensor  # (R, 3) float64: eigenvalue, residual norm, error; NaN: not proved
    products: Tensor  # (R,) int64


def certifies(a: Tensor) -> bool:
    """Whether :func:`certified_top` serves the device of ``a``."""
    return a.device.type == "cpu" and not _native.emulating()


def certified_top(a: Tensor, *, tol: float, maxiter: int, seed: int) -> CertifiedTop:
    """The largest eigenpairs of matrices (R, n, n) on the CPU, each with a proven error.

    Each matrix stays in cache for its norms, the steps of :func:`lanczos_dense` and the proof:
    with T the tridiagonal matrix of the steps, beta what couples it to the rest and C the
    compression of A to that rest, |C|_F^2 = |A|_F^2 - |T|_F^2 - 2 beta^2, and s > |C|_F is a bound
    where s I - T - beta^2 / (s - |C|_F) e_m e_m' is positive definite; or a Cholesky factor of
    s I - A.  Errors count rounding, and what A and A' differ by.

    Returns:
        NaN for what it cannot prove within ``max(tol |lambda|, 2 c_n eps |A|)``: a matrix that is
        not finite, not symmetric to rounding, of a size whose squares over- or underflow, or with
        an eigenvalue that Lanczos missed twice.

    Cost:
        One pass for the norms, n^2 multiply-adds a step, and n^3 / 6 for a factor, in float32
        where rounding is far below ``tol``.  One thread works a matrix if there are at least as
        many as threads.
    """
    replicas, n, _ = a.shape
    a = a.contiguous()
    out = CertifiedTop(
        a.new_empty((replicas, n)),
        a.new_empty((replicas, 3), dtype=torch.float64),
        a.new_empty((replicas,), dtype=torch.int64),
    )
    size = _native.call("certified_top_workspace", a.device, a)
    work = a.new_empty(size, dtype=torch.float64)
    _native.call("certified_top", a.device, a, *out, work, tol, maxiter, seed)
    return out


def _fake(
    a: Tensor, k: int, tol: float, maxiter: int, v0: Tensor | None, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    replicas, n, _ = a.shape
    return (
        a.new_empty((replicas, k)),
        a.new_empty((replicas, k, n)),
        a.new_empty((replicas, k)),
        a.new_empty((replicas,), dtype=torch.int64),
    )


def _impl(
    a: Tensor, k: int, tol: float, maxiter: int, v0: Tensor | None, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = _fake(a, k, tol, maxiter, v0, seed)
    a = a.contiguous()
    v0 = None if v0 is None else v0.contiguous()
    size = _native.call("lanczos_dense_workspace", a.device, a, k)
    work = a.new_empty(size, dtype=torch.float64)
    _native.call("lanczos_dense", a.device, a, v0, *out, work, tol, maxiter, seed)
    return out


register(
    "lanczos_dense(Tensor a, int k, float tol, int maxiter, Tensor? v0, int seed) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _impl,
    _fake,
)
