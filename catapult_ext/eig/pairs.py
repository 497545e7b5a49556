"""Ritz pairs with their residuals: the types that the solvers share, and the public result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from catapult_ext._shown import number
from catapult_ext.figures.drawn import Drawn
from catapult_ext.figures.spectrum import eigenvalues_figure


@dataclass(frozen=True, eq=False, repr=False)
class EigshResult(Drawn, saved=True):
    """Eigenpairs with their errors; ``values, vectors = eigsh(...)`` takes the first two apart.

    ``torch.save`` and ``torch.load`` keep it, also with ``weights_only=True``.

    Attributes:
        eigenvalues: (k,) descending (``which="LM"``: by magnitude), dtype of the operator.
        eigenvectors: (n, k), unit columns.
        residuals: (k,) |A x - lambda x|, from products already made (solved as its dual: a bound).
        errors: (k,) bounds of |lambda_i - eigenvalues_i|; what they rest on is ``index_check``.
        matvecs: products with A (or its dual), in columns.
        converged: all errors within max(tol |lambda|, 2 c_n eps |A|, 2 noise).
        index_check: ``"inertia"`` (a matrix: no eigenvalue lies beyond, by factors or norms);
            ``"random(p)"`` (the start vectors exclude hidden eigenvalues with probability p over
            the seed; an estimate for k > 1); ``"residual"`` (no check: an eigenvalue lies within
            ``residuals`` of each value; larger ones may be missed, and errors, which trust the
            gaps seen, be too small);
            ``"estimate(p)"`` (an operator in mixed precision: the coarse solve excludes hidden
            eigenvalues beyond its 2 % with probability p; nearer ones were not looked for, so that
            errors of a value with close neighbours may be too small).

    Examples:
        >>> found = cx.eigsh(torch.diag(torch.tensor([1.0, 2.0, 5.0])))
        >>> found.converged, found.eigenvectors.shape
        (True, torch.Size([3, 1]))
        >>> values, vectors = found
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    residuals: Tensor
    errors: Tensor
    matvecs: int
    converged: bool
    index_check: str

    def __iter__(self) -> Iterator[Tensor]:
        yield self.eigenvalues
        yield self.eigenvectors

    def _figure(self) -> Any:
        """Eigenvalues with their errors against their rank."""
        values, errors = self.eigenvalues.tolist(), self.errors.tolist()
        return eigenvalues_figure(values, errors, self.index_check)

    def _line(self) -> str:
        pairs = zip(self.eigenvalues.tolist(), self.errors.tolist(), strict=True)
        shown = [f"{number(value)} +- {error:.1g}" for value, error in pairs]
        more = [] if len(shown) <= 3 else ["..."]
        missed = "" if self.converged else ", NOT converged"
        return (
            f"{len(shown)} eigenvalues of {self.eigenvectors.shape[0]}: "
            f"{', '.join(shown[:3] + more)} ({self.matvecs} products, {self.index_check}{missed})"
        )

    def _table(self) -> list[dict[str, Any]]:
        columns = {
            "eigenvalue": self.eigenvalues.tolist(),
            "error": self.errors.tolist(),
            "residual": self.residuals.tolist(),
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _picture(self) -> Any:
        return self.plot() if len(self.eigenvalues) > 1 else None


@dataclass(frozen=True, eq=False)
class Pairs:
    """Scaled eigenpairs inside the solvers, with vectors and residuals as float64 rows.

    Pairs lifted from a dual have the operator's dtype, and their residuals are bounds of norms.
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
    following: list[float]  # bounds of the eigenvalues after the k-th and each guard (inf: unknown)

    @property
    def gaps(self) -> list[float]:
        """Distances of what follows the k-th value from it, over the largest; 0 where unknown."""
        size = self.values.abs().max().item()
        lowest = self.values[-1].item()
        return [max(0.0, lowest - bound) / size if size > 0 else 0.0 for bound in self.following]


@dataclass(frozen=True)
class Options:
    """Options of a solve, as :func:`catapult_ext.eigsh` documents them."""

    k: int
    which: str
    tol: float
    limit: int  # at most this many columns are multiplied
    seed: int
    confidence: float | None
    where: str  # public function named in errors
    guards: int | None = None  # further Ritz vectors returned beyond the k wanted ones
    share: float = 1.0  # of the probability of a wrong claim: what this part of a solve may use up

    @property
    def wrong(self) -> float:
        """Probability with which the index check may be wrong."""
        assert self.confidence is not None
        return self.share * (1 - self.confidence)

    def claim(self, kind: str) -> str:
        """``index_check`` of the whole solve, with all digits of the confidence."""
        assert self.confidence is not None
        return f"{kind}({float(self.confidence)!r})"
