"""eigsh of R operators or matrices at once: arguments, duals and results."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._progress import Counter
from catapult_ext.eig.certify import rounding
from catapult_ext.eig.pairs import Options
from catapult_ext.eig.replicas.batch import Batch, as_batch
from catapult_ext.eig.replicas.dense import solve_matrices
from catapult_ext.eig.replicas.lanczos import solve_replicas
from catapult_ext.eig.replicas.pairs import BatchedEigshResult, Found
from catapult_ext.eig.sums import row_norms

_ENTRIES = 1 << 22  # of matrices that are written out together


def eigsh_replicas(A: Any, v0: Tensor | None, o: Options, counter: Counter) -> BatchedEigshResult:
    """:func:`catapult_ext.eigsh` of an operator or tensor (R, n, n)."""
    large = as_batch(A, o.where, counter)
    dual = A.dual() if o.which in ("LA", "LM") and hasattr(A, "dual") else None
    start = batch_start(v0, large)
    if dual is None or o.k > dual.operator.shape[1]:
        return package(_solved(large, start, o), o, large)
    small = as_batch(dual.operator, o.where, counter)
    found = lifted(_solved(small, _restricted(start, dual), o), dual, large)
    # the null space of the large operators is not in the image of the small ones
    floor = 10 * rounding(large.n, large.eps) * found.values.abs().amax(1)
    null = (found.values.abs().amin(1) <= floor).nonzero().flatten()
    if len(null):
        given = None if start is None else start[null.to(start.device)]
        found.put(null, _solved(large.select(null), given, o))
    return package(found, o, large)


def _solved(a: Batch, start: Tensor | None, o: Options) -> Found:
    if a.explicit:
        return solve_matrices(a, start, o)
    found = _written_out(a, o) if start is None and o.limit > a.n else None
    return solve_replicas(a, start, o) if found is None else found


def _written_out(a: Batch, o: Options) -> Found | None:
    """Pairs of small operators from their explicit matrices, a few at a time, or None."""
    if o.k > 1 or not hasattr(a.source, "written_out"):
        return None
    found = Found.nothing(a.replicas, a.n, o.k, a.dtype, a.device)
    for some in torch.arange(a.replicas, device="cpu").split(max(1, _ENTRIES // a.n**2)):
        part = a.select(some)
        matrices = part.source.written_out()
        if matrices is None:
            return None
        found.put(some, solve_matrices(part.of(matrices), None, o))
    return found


def batch_start(v0: Tensor | None, a: Batch) -> Tensor | None:
    """Start vectors as unit rows (R, j, n); a zero or non-finite one of a replica becomes random.

    Raises:
        TypeError: no real tensor.
        ValueError: not (R, n) or (R, n, j).
    """
    if v0 is None:
        return None
    if not isinstance(v0, Tensor):
        v.fail(a.where, "v0 must be a torch.Tensor", type(v0).__name__, TypeError)
    v.dense(a.where, "v0", v0)
    if v0.is_complex():
        v.fail(a.where, "v0 must be real", v0.dtype, TypeError)
    shape = (a.replicas, a.n)
    fits = v0.dim() in (2, 3) and tuple(v0.shape[:2]) == shape and v0.numel() > 0
    v.require(fits, a.where, f"v0 must be {shape} or ({a.replicas}, {a.n}, j)", tuple(v0.shape))
    return unit_rows(v0.detach().reshape(*shape, -1)[:, :, : a.n].mT, a)


def unit_rows(rows: Tensor, a: Batch) -> Tensor:
    """Unit rows in the dtype of ``a``; random ones where a row is zero or not finite."""
    largest = rows.abs().amax(dim=2, keepdim=True)
    known = torch.isfinite(largest) & (largest > 0)
    # in their own dtype: in that of A the entries may be infinite or 0, as their squares may be
    rows = torch.where(known, rows / largest, 0.0).to(dtype=a.dtype, device=a.device)
    random = torch.Generator().manual_seed(0)
    other = torch.randn(rows.shape[1:], generator=random, dtype=a.dtype, device="cpu")
    rows = torch.where(known.to(a.device), rows, other.to(a.device))
    return rows / row_norms(rows)[:, :, None].to(rows)


def _restricted(start: Tensor | None, dual: Any) -> Tensor | None:
    """Start rows in the small spaces; what lies in a null space starts at random."""
    if start is None:
        return None
    small = as_batch(dual.operator, "eigsh")
    return unit_rows(dual.restrict(start.mT).mT[:, : small.n], small)


def lifted(small: Found, dual: Any, a: Batch) -> Found:
    """Pairs of the duals K = G'G in the large spaces; see :func:`catapult_ext.eig.solve.lifted`."""
    large = dual.lift(small.x.mT.to(dtype=a.dtype, device=a.device)).mT
    top = (small.values + small.errors).amax(1, keepdim=True)
    return Found(
        values=small.values,
        x=large / row_norms(large)[:, :, None].to(large),
        residuals=(top / small.values.abs()).sqrt() * small.residuals,
        errors=small.errors,
        converged=small.converged,
        matvecs=small.matvecs,
        index=small.index,
    )


def package(p: Found, o: Options, a: Batch) -> BatchedEigshResult:
    """The result in the dtype of ``a``, each replica sorted by eigenvalue."""
    key = p.values.abs() if o.which == "LM" else p.values
    order = key.argsort(dim=1, descending=True, stable=True)
    like = torch.empty(0, dtype=a.dtype, device=a.device)
    values, residuals, errors = (
        part.gather(1, order).to(like) for part in (p.values, p.residuals, p.errors)
    )
    there = order.to(a.device)[:, :, None].expand(-1, -1, a.n)
    return BatchedEigshResult(
        eigenvalues=values,
        eigenvectors=p.x.gather(1, there).mT.to(like),
        residuals=residuals,
        errors=errors,
        matvecs=p.matvecs,
        converged=p.converged,
        index_check=tuple(p.index),
    )
