"""Results of :func:`catapult_ext.solve`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catapult_ext._shown import number
from catapult_ext.figures.drawn import Drawn
from catapult_ext.figures.spectrum import convergence_figure
from catapult_ext.systems.problem import RightHandSides, System, bounds


@dataclass(frozen=True, eq=False, repr=False)
class SolveResult(Drawn, saved=True):
    """Solutions of (A + shift I) x = b with bounds; ``x, errors = solve(...)`` takes it apart.

    ``torch.save`` and ``torch.load`` keep it, also with ``weights_only=True``.  A column of b with
    a NaN or an infinity has NaN in all of these, and takes no part in the solve.

    Example:
        >>> found = cx.solve(torch.diag(torch.tensor([1.0, 2.0, 4.0])), torch.ones(3))
        >>> print([round(value, 4) for value in found.x.tolist()], bool(found.errors < 1e-6))
        [1.0, 0.5, 0.25] True

    Attributes:
        x: (n,) or (n, K) as b, dtype of the operator.
        errors: (K,) bounds on |x - x*|_2, float64: |r| / ``lower``, with the rounding of the
            residual added to |r|, plus the rounding of x to its dtype; inf if no bound is known.
        energy_errors: (K,) bounds on the error in the norm of A + shift I, |r| / sqrt(``lower``),
            for x before rounding to its dtype.
        residuals: (K,) |b - (A + shift I) x|_2 as computed, for x before that rounding.
        lower: lower bound on the eigenvalues of A + shift I, used for the errors; None: unknown.
        bound: origin of ``lower``: ``"operator"`` (a property of A: an NTK is positive
            semi-definite), ``"given"`` (``lower=``), ``"cholesky"`` (proved by a factorisation) or
            ``"none"``.
        shift: shift of the solve.
        method: ``"cg"`` or ``"cholesky"``.
        steps: block steps of conjugate gradients; refinement steps for ``"cholesky"``.
        matvecs: products with A, in columns, including those for a preconditioner made in the call.
        converged: whether every residual of a finite b is within max(tol |b|, its rounding).
        history: largest |r| / |b| after each step, as computed by the recurrence.
    """

    x: Tensor
    errors: Tensor
    energy_errors: Tensor
    residuals: Tensor
    lower: float | None
    bound: str
    shift: float
    method: str
    steps: int
    matvecs: int
    converged: bool
    history: list[float]

    def __iter__(self) -> Iterator[Tensor]:
        yield self.x
        yield self.errors

    def _line(self) -> str:
        n, k = len(self.x), len(self.errors)
        finite = torch.isfinite(self.residuals)
        cost = f"{self.method}, {self.steps} steps, {self.matvecs} products"
        missed = "" if self.converged else ", NOT converged"
        lost = k - int(finite.sum())
        left = f", {lost} not finite" if lost else ""
        if not bool(finite.any()):
            return f"{k} solutions of {n} unknowns{left} ({cost}{missed})"
        error = self.errors[finite].max().item()
        bounded = (
            f"|x - x*| <= {number(error)}" if error < float("inf") else "no bound: give lower="
        )
        return f"{k} solutions of {n} unknowns: {bounded}{left} ({cost}{missed})"

    def _table(self) -> list[dict[str, Any]]:
        columns = self.x.reshape(len(self.x), -1)
        rows = zip(
            columns.double().norm(dim=0).tolist(),
            self.errors.tolist(),
            self.residuals.tolist(),
            strict=True,
        )
        return [{"|x|": x, "error": error, "residual": r} for x, error, r in rows]

    def _figure(self) -> Any:
        """The residual against the steps."""
        return convergence_figure(self.history)

    def _picture(self) -> Any:
        return self.plot() if len(self.history) > 1 else None


def packaged(
    system: System,
    sides: RightHandSides,
    x: Tensor,
    norms: Tensor,
    moved: Tensor,
    **facts: Any,
) -> SolveResult:
    """The result of scaled solutions ``x`` (n, K') of the finite columns, in the units of b."""
    rounded = x.to(system.a.dtype)
    shifted = (x - rounded.double()).norm(dim=0)
    errors, energy = bounds(system, norms, moved, shifted)
    scale = sides.scale
    whole = sides.spread((rounded.double() * scale).to(system.a.dtype))
    return SolveResult(
        x=whole.reshape(-1) if sides.flat else whole,
        errors=sides.spread(errors * scale),
        energy_errors=sides.spread(energy * scale),
        residuals=sides.spread(norms * scale),
        lower=system.lower,
        bound=system.bound,
        shift=system.shift,
        **facts,
    )
