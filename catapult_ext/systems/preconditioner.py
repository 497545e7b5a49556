"""Preconditioners for A + shift I: a low-rank part of A with known eigenpairs, and a tail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext.eig.pairs import EigshResult
from catapult_ext.systems.pivoted import PivotedCholesky, has_entries, pivoted
from catapult_ext.systems.problem import Precondition, System

_RANK = 200  # of the preconditioner that is made where none is given, and entries can be read
_SHARE = 8  # at most n over this


def low_rank(u: Tensor, values: Tensor, shift: float, tail: float) -> Precondition:
    """M^-1 r for M = U diag(values) U' + tail (I - U U') + shift I, U (n, r) orthonormal."""
    u, values = u.double(), values.double()
    weights = (tail + shift) / (values + shift) - 1.0

    def apply(r: Tensor) -> Tensor:
        return r + u @ (weights[:, None] * (u.T @ r))

    return apply


def preconditioner(
    given: Any, system: System, columns: int, seed: int
) -> tuple[Precondition, float, int]:
    """M^-1, what it shows of the norm of A, and the products that making it took.

    Args:
        given: as :func:`catapult_ext.solve` takes it.
        system: to be solved.
        columns: right-hand sides.
        seed: seed of random pivots.

    Raises:
        TypeError, ValueError: another preconditioner, or one of another size.
    """
    where, n = system.where, system.a.n
    if isinstance(given, str):
        rank = min(_RANK, n // _SHARE) if has_entries(system.a, system.source) else 0
        given = rank if rank > 0 and columns > 0 else None
    if given is None:
        return (lambda r: r), 0.0, 0
    spent = 0
    if isinstance(given, int) and not isinstance(given, bool):
        v.require(1 <= given <= n, where, f"preconditioner as a rank must be in [1, {n}]", given)
        given = pivoted(system.a, system.source, given, 0.0, seed, where)
        spent = given.matvecs
    if isinstance(given, PivotedCholesky):
        _check_rows(where, n, given.factor)
        u, s, _ = torch.linalg.svd(given.factor.double(), full_matrices=False)
        tail = given.left / n
        return low_rank(u, s.square(), *_tail(system, tail)), _top(s.square()), spent
    if isinstance(given, EigshResult):
        _check_rows(where, n, given.eigenvectors)
        values = given.eigenvalues.double()
        kept = values + system.shift > 0
        u, values = given.eigenvectors[:, kept], values[kept]
        tail = values.min().item() if len(values) else 0.0
        return low_rank(u, values, *_tail(system, tail)), _top(values), 0
    return _checked(given, where), 0.0, 0


def check_kind(given: Any, where: str) -> None:
    """Must be one of what :func:`preconditioner` takes.

    Raises:
        TypeError, ValueError: anything else.
    """
    if isinstance(given, str):
        v.require(given == "auto", where, f"preconditioner must be {_ACCEPTED}", repr(given))
        return
    known = given is None or callable(given) or isinstance(given, (PivotedCholesky, EigshResult))
    if not known and (isinstance(given, bool) or not isinstance(given, int)):
        v.fail(where, f"preconditioner must be {_ACCEPTED}", type(given).__name__, TypeError)


_ACCEPTED = (
    "'auto', None, a rank, an EigshResult, a PivotedCholesky or a function of (n, k) tensors"
)


def _tail(system: System, tail: float) -> tuple[float, float]:
    """Shift and tail, whose sum is positive."""
    return system.shift, tail if tail + system.shift > 0 else 1.0 - system.shift


def _top(values: Tensor) -> float:
    return values.max().item() if len(values) else 0.0


def _check_rows(where: str, n: int, factor: Tensor) -> None:
    fits = len(factor) == n
    v.require(fits, where, f"preconditioner must be of n = {n} rows", tuple(factor.shape))
    v.finite(bool(torch.isfinite(factor).all()), where, "preconditioner")


def _checked(given: Callable[[Tensor], Any], where: str) -> Precondition:
    def apply(r: Tensor) -> Tensor:
        out = given(r)
        fits = isinstance(out, Tensor) and out.shape == r.shape
        shown = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        v.require(fits, where, f"preconditioner(r) must be {tuple(r.shape)}", shown)
        out = out.detach().to(r)
        v.finite(bool(torch.isfinite(out).all()), where, "preconditioner(r)")
        return out

    return apply
