"""One fused Lanczos step for R operators known only through their products."""

from __future__ import annotations

import torch
from torch import Tensor

from catapult_ext import _native, _validate
from catapult_ext.ops._registry import register

_WHERE = "lanczos_step"


def lanczos_step(
    basis: Tensor,
    alpha: Tensor,
    beta: Tensor,
    w: Tensor,
    step: int,
    *,
    rows: int | None = None,
    coefficients: Tensor | None = None,
    breakdown: float | None = None,
) -> None:
    """Finish Lanczos step ``step`` given ``w = A @ basis[:, step]``; writes its arguments in place.

    The step writes ``alpha[:, step] = q_step . w`` and subtracts from w its projections on the
    basis rows ``[0, rows)``. These cover ``alpha q_step + beta q_{step-1}``, locked vectors and the
    couplings of a thick restart. Projections that remain because of rounding are measured, and
    subtracted too if they exceed a few eps (two passes are enough: Daniel, Gragg, Kaufman and
    Stewart 1976). The remainder's norm is written to ``beta[:, step]`` and its direction to
    ``basis[:, rows]``. Sums run in float64, so that the row written is orthogonal to the others to
    4 eps of the dtype.

    A remainder of at most ``breakdown * ||A||`` (||A|| estimated by ||w|| and the entries of alpha
    and beta so far) is treated as noise: beta and the next row are set to zero, and products with
    this row keep alpha and beta at zero. A replica that is not finite stays NaN and does not affect
    the others.

    Args:
        basis: (R, M, n) contiguous, float32 or float64; rows [0, rows) orthonormal. Row ``rows`` is
            overwritten.
        alpha: (R, m) contiguous, same dtype; entries before ``step`` as earlier calls (or a thick
            restart) left them.
        beta: (R, m) contiguous, same dtype.
        w: (R, n), A times basis row ``step``. Not changed.
        step: column of alpha and beta, and the basis row that w came from.
        rows: basis rows to orthogonalise against; default ``step + 1``. Larger values are for block
            methods, whose next vectors follow the whole block.
        coefficients: optional (R, rows) contiguous; receives the projections of w on the rows,
            i.e. a whole column of the projected operator.
        breakdown: default 10 eps of the dtype.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not fit, step or rows out of range, an output that is
            not contiguous, or a tensor that requires grad.

    Cost:
        4 R rows n multiply-adds and two reads of the rows (6 and three if the second pass is
        needed). The bits do not depend on the number of threads.
    """
    tensors = {"basis": basis, "alpha": alpha, "beta": beta, "w": w}
    _validate.tensor(basis, _WHERE, "basis", ("R", "M", "n"))
    replicas, vectors, n = basis.shape
    _validate.require(n > 0, _WHERE, "basis must have n >= 1", tuple(basis.shape))
    _validate.tensor(alpha, _WHERE, "alpha", (replicas, "m"))
    _validate.tensor(beta, _WHERE, "beta", tuple(alpha.shape))
    _validate.tensor(w, _WHERE, "w", (replicas, n))
    _validate.integers(_WHERE, step=step)
    _validate.integers(_WHERE, rows=rows, optional=True)
    _validate.numbers(_WHERE, breakdown=breakdown, optional=True)
    rows = step + 1 if rows is None else rows
    _validate.require(
        0 <= step < alpha.shape[1],
        _WHERE,
        f"step must be in [0, {alpha.shape[1] - 1}] (columns of alpha)",
        step,
    )
    _validate.require(
        step < rows < vectors, _WHERE, f"rows must be in [{step + 1}, {vectors - 1}]", rows
    )
    if coefficients is not None:
        tensors["coefficients"] = _validate.tensor(
            coefficients, _WHERE, "coefficients", (replicas, rows)
        )
    _validate.same_kind(_WHERE, tensors)
    _validate.no_grad_needed(_WHERE, tensors)
    for name, value in tensors.items():
        ok = name == "w" or value.is_contiguous()
        _validate.require(
            ok, _WHERE, f"{name} is written in place and must be contiguous", value.stride()
        )
    outputs = {"basis": basis, "alpha": alpha, "beta": beta}
    if coefficients is not None:
        outputs["coefficients"] = coefficients
    _validate.written(_WHERE, outputs)
    if breakdown is None:
        breakdown = 10 * torch.finfo(basis.dtype).eps
    torch.ops.catapult.lanczos_step(basis, alpha, beta, w, step, rows, coefficients, breakdown)


def _fake(
    basis: Tensor,
    alpha: Tensor,
    beta: Tensor,
    w: Tensor,
    step: int,
    rows: int,
    coefficients: Tensor | None,
    breakdown: float,
) -> None:
    return None


def _impl(
    basis: Tensor,
    alpha: Tensor,
    beta: Tensor,
    w: Tensor,
    step: int,
    rows: int,
    coefficients: Tensor | None,
    breakdown: float,
) -> None:
    replicas, _, n = basis.shape
    size = _native.call("lanczos_step_workspace", basis.device, replicas, n, rows)
    work = basis.new_empty(size, dtype=torch.float64)
    w = w.contiguous()
    _native.call(
        "lanczos_step",
        basis.device,
        basis,
        alpha,
        beta,
        w,
        coefficients,
        work,
        step,
        rows,
        breakdown,
    )


register(
    "lanczos_step(Tensor(a!) basis, Tensor(b!) alpha, Tensor(c!) beta, Tensor w, int step, "
    "int rows, Tensor(d!)? coefficients, float breakdown) -> ()",
    _impl,
    _fake,
)
