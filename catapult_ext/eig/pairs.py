"""What the solvers hand to each other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pairs:
    """Scaled eigenpairs before they are handed out: rows of x and of the residuals, float64.

    Pairs lifted from a dual keep the operator's dtype, and of the residuals bounds of the norms.
    """

    values: Tensor
    x: Tensor
    rest: Tensor
    errors: Tensor
    converged: bool
    matvecs: int
    scale: float
    index: str
    guards: Tensor  # (g, n) further Ritz vectors next to the wanted ones, no better than they came
    ceiling: float  # Ritz value beyond them, the first that no vector is kept for (-inf: none)
