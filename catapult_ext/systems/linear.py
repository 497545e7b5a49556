"""solve: (A + shift I) x = b for symmetric positive definite A + shift I, with bounds."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._free_memory import free_bytes
from catapult_ext._progress import Progress, check_progress, counted
from catapult_ext.eig.operand import Operand
from catapult_ext.systems.block_cg import block_cg
from catapult_ext.systems.factor import DIRECT, CholeskyFactor, factorised
from catapult_ext.systems.preconditioner import check_kind
from catapult_ext.systems.preconditioner import preconditioner as made_preconditioner
from catapult_ext.systems.problem import RightHandSides, System
from catapult_ext.systems.result import SolveResult, packaged

_WHERE = "solve"
Method = Literal["auto", "cg", "cholesky"]
METHODS = get_args(Method)


@no_autocast()
def solve(
    A: Any,
    b: Tensor,
    *,
    shift: float = 0.0,
    tol: float = 1e-6,
    method: Method = "auto",
    preconditioner: Any = "auto",
    x0: Tensor | None = None,
    maxiter: int = 1000,
    lower: float | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> SolveResult:
    """Solve (A + shift I) x = b for a symmetric positive definite A + shift I, with error bounds.

    Args:
        A: dense tensor or array, an operator of this package (NTK, GGN, streamed, a
            :class:`~catapult_ext.StoredKernel`), a SciPy LinearOperator, any object with ``shape``
            and ``@``, float32 or float64; or a :class:`CholeskyFactor`, which includes its shift.
        b: (n,), or (n, K) of K right-hand sides, float32 or float64, on the device of A.  A column
            with a NaN or an infinity gives NaN and does not affect the others.
        shift: added to the diagonal: the ridge of a kernel regression.
        tol: bound on |b - (A + shift I) x| / |b| for every column.
        method: ``"cg"``: block conjugate gradients, in which the columns share one search space;
            ``"cholesky"``: a factorisation in float64, refined; ``"auto"``: ``"cholesky"`` for an
            explicit matrix of at most 16384 rows that fits in memory, else ``"cg"``.
        preconditioner: for ``"cg"`` alone.  An :class:`EigshResult` (``cx.eigsh(A, k=50)``) or a
            :class:`PivotedCholesky`, both reusable for all shifts; the rank of a pivoted Cholesky
            factor to compute; a function M^-1 of (n, k) float64 tensors; None; or ``"auto"``: rank
            min(200, n / 8) if entries of A can be read, else None.
        x0: (n,) or (n, K) initial guess of ``"cg"``, such as the solution at another shift;
            ``"auto"`` has no use for it where it factorises.
        maxiter: maximal number of block steps of ``"cg"``, each of K products.
        lower: a lower bound on the eigenvalues of A that you know; default ``A.lower_bound``.
        seed: seed of the random pivots.
        progress: for ``"cg"``: True for a bar, or a function of (steps done, ``maxiter``).

    Returns:
        :class:`SolveResult`.  Its ``errors`` are valid if ``lower`` is, and include all rounding.
        For explicit matrices and stored kernels rounding is bounded rigorously in float64; for
        other operators it is estimated as c_n eps |A| |x|, as in :func:`catapult_ext.eigsh`.
        ``"cholesky"`` proves ``lower`` by a second or third factorisation if it is unknown.

    Raises:
        TypeError: A has no ``shape`` or ``@``; wrong dtype of A or b; unknown preconditioner.
        ValueError: shapes that do not match, A not symmetric, A + shift I not positive definite,
            non-finite products, options out of range; x0 or a preconditioner with
            ``"cholesky"``, and also ``"cg"`` or ``lower`` with a factor.

    Cost:
        ``"cg"``: K products per step and memory for about 9 n K float64 numbers, besides the
        preconditioner.  ``"cholesky"``: n^3/3 flops, once or twice more to prove an unknown
        ``lower``; memory for 3 n^2 float64 numbers.

    Example:
        >>> data = cx.data.gaussian(64)
        >>> kernel = cx.NTK(cx.models.fully_connected(50, 1), data.x_train)
        >>> alpha, errors = cx.solve(kernel, data.y_train, shift=1.0)
        >>> bool(errors < 0.01)
        True
    """
    v.require(method in METHODS, _WHERE, f"method must be one of {METHODS}", repr(method))
    v.integers(_WHERE, maxiter=maxiter, seed=seed)
    v.numbers(_WHERE, tol=tol)
    v.require(0 <= tol < 1, _WHERE, "tol must be in [0, 1)", tol)
    v.require(maxiter >= 1, _WHERE, "maxiter must be >= 1", maxiter)
    check_progress(_WHERE, progress)
    check_kind(preconditioner, _WHERE)
    if isinstance(A, CholeskyFactor):
        v.require(shift == 0, _WHERE, "shift must be 0: the factor has its own", shift)
        v.require(lower is None, _WHERE, "lower must be None: the factor has its own", lower)
        v.require(method != "cg", _WHERE, "method='cg' needs A itself and not its factor", method)
        _only_direct("a CholeskyFactor", x0, preconditioner)
        return A.solve(b, tol=tol)
    if method == "cholesky":
        _only_direct("method='cholesky'", x0, preconditioner)
    system = System.of(A, shift, lower, _WHERE)
    sides = system.right_hand_sides(b)
    start = _start(x0, system, sides)
    direct = method == "cholesky" or (method == "auto" and _fits(system.a))
    if direct:
        v.require(
            system.a.explicit is not None,
            _WHERE,
            "method='cholesky' needs a dense matrix (for a StoredKernel: cx.cholesky(A, file=...))",
            type(A).__name__,
        )
        return factorised(system).solve_columns(sides, tol)
    apply, size, spent = made_preconditioner(preconditioner, system, len(sides.scale), seed)
    with counted(progress, _WHERE, int(maxiter), "steps", of="of at most") as counter:
        found = block_cg(system, sides.columns, start, apply, float(tol), counter, size)
    return packaged(
        system,
        sides,
        found.x,
        found.norms,
        found.moved,
        method="cg",
        steps=found.steps,
        matvecs=found.matvecs + spent,
        converged=found.converged,
        history=found.history,
    )


def _only_direct(way: str, x0: Any, preconditioner: Any) -> None:
    """Raise where a direct solve is given what belongs to conjugate gradients."""
    v.require(x0 is None, _WHERE, f"x0 must be None with {way}", type(x0).__name__)
    usual = isinstance(preconditioner, str) or preconditioner is None
    kind = type(preconditioner).__name__
    v.require(usual, _WHERE, f"preconditioner must be 'auto' or None with {way}", kind)


def _fits(a: Operand) -> bool:
    return a.explicit is not None and a.n <= DIRECT and 3 * 8 * a.n**2 <= free_bytes()


def _start(x0: Tensor | None, system: System, sides: RightHandSides) -> Tensor | None:
    """``x0`` of the finite columns, in their scale."""
    if x0 is None:
        return None
    given = v.array(_WHERE, "x0", x0)
    shape = (system.a.n,) if sides.flat else (system.a.n, len(sides.finite))
    v.require(tuple(given.shape) == shape, _WHERE, f"x0 must be {shape}", tuple(given.shape))
    if given.dtype not in v.FLOAT_DTYPES:
        v.fail(_WHERE, "x0 must have dtype float32 or float64", given.dtype, TypeError)
    there = given.device == system.a.device
    v.require(there, _WHERE, f"x0 must be on {system.a.device}", given.device)
    start = given.detach().reshape(system.a.n, -1)[:, sides.finite].double() / sides.scale
    v.finite(bool(torch.isfinite(start).all()), _WHERE, "x0")
    return start
