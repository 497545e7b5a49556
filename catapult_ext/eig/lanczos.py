"""eigsh: extreme eigenvalues of a symmetric operator, with errors and what backs them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._progress import Counter, Progress, counted
from catapult_ext.eig.certify import Inertia, rounding
from catapult_ext.eig.dense import INERTIA_LIMIT, is_matrix, proved_top, top_pairs
from catapult_ext.eig.operand import Operand, as_operand, coarse_operand, has_coarse_products
from catapult_ext.eig.pairs import EigshResult, Options, Pairs
from catapult_ext.eig.refine import refine
from catapult_ext.eig.replicas.batch import is_batch
from catapult_ext.eig.replicas.eigsh import eigsh_replicas
from catapult_ext.eig.solve import direct_from, lifted, package, solve, start_rows

_COARSE_TOL = 0.02  # accuracy of the solve with bfloat16 products
_NEEDS_GUARDS = 5e-4  # relative accuracy of coarse products from which guards are multiplied too
_WHERE = "eigsh"
Which = Literal["LA", "SA", "LM", "BE"]
WHICH = get_args(Which)


@no_autocast()
def eigsh(
    A: Any,
    k: int = 1,
    *,
    which: Which = "LA",
    tol: float = 1e-3,
    maxiter: int | None = None,
    v0: Tensor | None = None,
    seed: int = 0,
    precision: Literal["full", "mixed"] = "full",
    confidence: float | None = 0.99,
    progress: Progress = None,
) -> EigshResult:
    """Find k extreme eigenpairs of a symmetric operator by block Lanczos with thick restart.

    Args:
        A: dense tensor or array, sparse tensor, an operator of this package, a SciPy
            LinearOperator, or any object with ``shape`` and ``@``; float32 or float64.  If it
            offers ``dual()`` (GGN), the smaller operator is solved and its eigenvectors are mapped
            back.  For R problems at once: a tensor (R, n, n), or a batched operator, whose ``@``
            takes (R, n, K) and which offers ``replicas(index)``.
        k: number of pairs; blocks have k columns, so multiplicities up to k are seen.  For k > 1
            two random vectors find the largest eigenvalues of an operator if they suffice
            (docs/curvature).
        which: ``"LA"`` largest, ``"SA"`` smallest, ``"LM"`` largest magnitude, ``"BE"`` both ends.
        tol: requested relative error of the eigenvalues.
        maxiter: stop after this many columns multiplied by A (default ``1000 + 20 k``), then with
            ``converged=False`` and errors that are valid to the extent that ``index_check`` states.
            At least one block is multiplied.
        v0: start vector (n,) or block (n, j <= n) of a previous solve; random vectors are added.
            For a batch (R, n) or (R, n, j); a start that is zero or not finite becomes random.
        seed: seed of the random start.  The same seed, machine and number of threads give the same
            bits. On a GPU this needs reproducible products: those of cuDNN may need
            ``torch.backends.cudnn.deterministic``.
        precision: ``"full"``, or ``"mixed"`` (``which="LA"``; a dense tensor, NTK, GGN, Hessian): a
            solve to 2 % with products in lower precision, then Rayleigh-Ritz with values and errors
            from products in full precision. If these miss ``tol``, a full solve starts from there.
            An operator's ``mixed`` names the format: bfloat16 on tensor cores and AMX, 16-bit
            integers on AVX512-VNNI. It is full precision where no shorter format is faster
            (``plan`` says why). A matrix is multiplied in bfloat16.
        confidence: p of ``index_check="random(p)"``; None omits the index check, as other packages
            do, and takes about half the products (``"residual"``).
        progress: True for a bar, or a function of (products done, largest number of products); see
            :mod:`catapult_ext._progress`.

    Returns:
        :class:`EigshResult`, for a batch :class:`BatchedEigshResult`; ``errors`` are ``min(|R|_2,
        r_i^2/gap_i) + c_n eps |A|``, with at least two rounding units of a model that computes less
        precisely than its dtype (autocast inside: 1.6 % of |A| in bfloat16). They are raised until
        the index check passes. Explicit matrices with n <= 2048 are checked by inertia, and solved
        densely if Lanczos has missed a value.

        Replicas of a batch take the same steps from the same random start, with one product and one
        launch per step for all that have not finished. A non-finite replica gives NaN and does not
        affect the others. For explicit matrices the proof uses Frobenius norms where they suffice,
        otherwise Cholesky (``which`` "LM" and "BE" one by one); ``index_check`` is ``"inertia"``
        for both.

    Raises:
        TypeError: A without shape or @, or of another dtype.
        ValueError: not square, not symmetric (a replica is named by number), non-finite products,
            k < 1 or k > n, bad options, R = 0.

    Examples:
        >>> A = torch.diag(torch.tensor([1.0, 2.0, 5.0]))
        >>> values, vectors = cx.eigsh(A, k=2)
        >>> [round(value, 2) for value in values.tolist()]
        [5.0, 2.0]
        >>> found = cx.eigsh(A)
        >>> bool((found.eigenvalues - 5).abs() <= found.errors)
        True
    """
    v.integers(_WHERE, seed=seed)
    if is_batch(A):
        _check_options(tuple(A.shape)[1], k, which, tol, maxiter, precision, confidence)
        one = precision == "full"
        v.require(one, _WHERE, "precision must be 'full' for a batch", repr(precision))
        k = int(k)
        limit = 1000 + 20 * k if maxiter is None else maxiter
        options = Options(k, which, tol, limit, seed, confidence, _WHERE)
        with counted(progress, _WHERE, limit, "products", of="of at most") as counter:
            return eigsh_replicas(A, v0, options, counter)
    a = None if is_matrix(A) else as_operand(A, _WHERE)
    _check_options(len(A) if a is None else a.n, k, which, tol, maxiter, precision, confidence)
    if precision == "mixed" and not has_coarse_products(A):
        precision = "full"
    k = int(k)
    limit = 1000 + 20 * k if maxiter is None else maxiter
    options = Options(k, which, tol, limit, seed, confidence, _WHERE)
    with counted(progress, _WHERE, limit, "products", of="of at most") as counter:
        if a is None:
            found = proved_top(A, options) if v0 is None and precision == "full" else None
            if found is not None:
                counter.add(found.matvecs)
                return found
            a = as_operand(A, _WHERE)
        return _solved(A, a.counted(counter), v0, options, precision, counter)


def _solved(
    A: Any, a: Operand, v0: Tensor | None, o: Options, precision: str, counter: Counter
) -> EigshResult:
    """The pairs of ``A``, whose operand is ``a``, by way of its dual where that is smaller."""
    dual = A.dual() if o.which in ("LA", "LM") and hasattr(A, "dual") else None
    if dual is not None and o.k <= dual.operator.shape[0]:
        start = v0
        if isinstance(v0, Tensor) and v0.shape[0] == a.n:
            start = dual.restrict(start_rows(v0, a, _WHERE).T)
            start = start[:, start.abs().amax(0) > 0]  # what lies in the null space is no start
            start = start if start.shape[1] else None
        small = _written_out(dual.operator, start, o, precision)
        if small is None:
            other = as_operand(dual.operator, _WHERE).counted(counter)
            small = _pairs(dual.operator, other, start, o, precision, counter)
        # the null space of the large operator is not in the image of the small one
        floor = 10 * rounding(a.n, torch.finfo(a.dtype).eps) * small.values.abs().max()
        if small.values.abs().min() > floor:
            return package(lifted(small, dual, a), o, a)
    pairs = _written_out(A, v0, o, precision)
    return package(_pairs(A, a, v0, o, precision, counter) if pairs is None else pairs, o, a)


def _written_out(A: Any, v0: Tensor | None, o: Options, precision: str) -> Pairs | None:
    """Pairs of the matrix that a small operator is, where that is cheaper to solve."""
    plain = v0 is None and precision == "full" and o.limit > A.shape[0]
    matrix = A.written_out() if plain and hasattr(A, "written_out") else None
    if matrix is None:
        return None
    found = top_pairs(matrix, o)
    direct = o.k >= direct_from(len(matrix), matrix.device)
    if found is None and direct and bool(torch.isfinite(matrix).all()):
        found = solve(as_operand(matrix, o.where), None, o)
    return found


def _check_options(
    n: int, k: int, which: str, tol: float, maxiter: int | None, precision: str, p: float | None
) -> None:
    v.integers(_WHERE, k=k)
    v.numbers(_WHERE, tol=tol)
    v.numbers(_WHERE, confidence=p, optional=True)
    v.require(1 <= k <= n, _WHERE, f"k must be in [1, n = {n}]", k)
    v.require(which in WHICH, _WHERE, f"which must be one of {WHICH}", repr(which))
    v.require(0 <= tol < 1, _WHERE, "tol must be in [0, 1)", tol)
    v.integers(_WHERE, maxiter=maxiter, optional=True)
    v.require(
        maxiter is None or maxiter >= 1, _WHERE, "maxiter must be None or an int >= 1", maxiter
    )
    known = precision in ("full", "mixed")
    v.require(known, _WHERE, "precision must be 'full' or 'mixed'", repr(precision))
    top = precision == "full" or which == "LA"
    v.require(top, _WHERE, "precision='mixed' needs which='LA'", repr(which))
    v.require(p is None or 0 < p < 1, _WHERE, "confidence must be None or in (0, 1)", p)


def _pairs(
    A: Any, a: Operand, v0: Tensor | None, o: Options, precision: str, counter: Counter
) -> Pairs:
    """Pairs of ``A``, whose operand is ``a``, in the given precision."""
    return solve(a, v0, o) if precision == "full" else _mixed(A, a, v0, o, counter)


def _mixed(A: Any, a: Operand, v0: Tensor | None, o: Options, counter: Counter) -> Pairs:
    """Coarse solve, then full precision from its block; of a matrix, eigenvalues are counted."""
    low = coarse_operand(A, o.where).counted(counter)
    # what bfloat16 leaves of the next vectors has to be taken out; finer products leave nothing
    guards = min(1 + o.k // 4, a.n - o.k) if low.eps >= _NEEDS_GUARDS else 0
    found = solve(low, v0, replace(o, tol=max(o.tol, _COARSE_TOL), guards=guards))
    block = torch.cat([found.x, found.guards]).to(dtype=a.dtype, device=a.device)
    exact = a.explicit is not None and a.n <= INERTIA_LIMIT
    index = "residual" if o.confidence is None else o.claim("estimate")
    index = "inertia" if exact else index
    pairs = refine(a, block, o.k, found.gaps, o.tol, index, o.where)
    spent = found.matvecs + (0 if pairs is None else pairs.matvecs)
    if pairs is None or not pairs.converged or (exact and _hides(a, pairs, o)):
        pairs = solve(a, block[: o.k].T, o)
        spent += pairs.matvecs
    return replace(pairs, matvecs=spent)


def _hides(a: Operand, pairs: Pairs, o: Options) -> bool:
    """Whether an explicit matrix has eigenvalues beyond the errors of ``pairs``."""
    assert a.explicit is not None
    count = Inertia(a.explicit, pairs.scale, o.which, o.k)
    beyond = pairs.values.cpu() + pairs.errors
    return not all(count.excluded(i, 1, value.item()) for i, value in enumerate(beyond))
