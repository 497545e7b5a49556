"""Partial Cholesky factors with random pivots: A is about F F', from a few of its columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._shown import Shown, number
from catapult_ext.eig.operand import Operand, as_operand

_AT_ONCE = 32  # pivots drawn together


@dataclass(frozen=True, eq=False, repr=False)
class PivotedCholesky(Shown, saved=True):
    """Low-rank factor F of a positive semi-definite A = F F' + rest; the rest is semi-definite too.

    Example:
        >>> cx.pivoted_cholesky(torch.ones(5, 5), 3).factor.shape
        torch.Size([5, 1])

    Attributes:
        factor: F (n, r), dtype of A.
        pivots: (r,) indices of the chosen columns of A, in order.
        left: trace of A - F F' in float64; 0 if A has no larger rank.
        trace: trace of A.
        matvecs: number of products with A; 0 if its columns could be read.
    """

    factor: Tensor
    pivots: Tensor
    left: float
    trace: float
    matvecs: int

    def _line(self) -> str:
        n, r = self.factor.shape
        share = self.left / self.trace if self.trace > 0 else 0.0
        return f"rank {r} of {n}, {number(share)} of the trace left ({self.matvecs} products)"


@no_autocast()
def pivoted_cholesky(A: Any, rank: int, *, tol: float = 0.0, seed: int = 0) -> PivotedCholesky:
    """Factor A = F F' + rest from at most ``rank`` random columns of A.

    Pivots are drawn with probabilities proportional to the diagonal of the rest.  This approximates
    A nearly as well as its top eigenvectors, for any order of the rows.

    Args:
        A: positive semi-definite: a dense tensor or array, a :class:`~catapult_ext.StoredKernel`,
            or an operator with ``diagonal()``, whose columns are products.
        rank: maximal number of columns.
        tol: stop once the trace of the rest is at most ``tol`` times that of A.
        seed: seed of the random pivots.

    Returns:
        :class:`PivotedCholesky`, also a preconditioner of :func:`catapult_ext.solve`.

    Raises:
        TypeError, ValueError: as :func:`catapult_ext.eigsh`; A without entries or ``diagonal()``;
            a diagonal or column that is not finite, or from which A is not semi-definite.

    Cost:
        ``rank`` columns of A, O(n rank^2) operations and n rank numbers.

    Source:
        Chen, Epperly, Tropp, Webber (2025), "Randomly pivoted Cholesky", blocks of pivots.

    Example:
        >>> kernel = torch.exp(-torch.cdist(torch.rand(90, 1), torch.rand(90, 1)) * 0)
        >>> cx.pivoted_cholesky(kernel, 20)
        rank 1 of 90, 0 of the trace left (0 products)
    """
    where = "pivoted_cholesky"
    a = as_operand(A, where)
    v.integers(where, rank=rank, seed=seed)
    v.numbers(where, tol=tol)
    v.require(1 <= rank <= a.n, where, f"rank must be in [1, n = {a.n}]", rank)
    v.require(0 <= tol < 1, where, "tol must be in [0, 1)", tol)
    return pivoted(a, A, int(rank), float(tol), seed, where)


def has_entries(a: Operand, source: Any) -> bool:
    """Whether columns of it can be read, without products."""
    return a.explicit is not None or hasattr(source, "read_columns")


def pivoted(
    a: Operand, source: Any, rank: int, tol: float, seed: int, where: str
) -> PivotedCholesky:
    """The factor of an operand made of ``source``; see :func:`pivoted_cholesky`."""
    rest = _diagonal(a, source, where)
    trace = rest.sum().item()
    floor = 4 * torch.finfo(a.dtype).eps * rest.max().item()
    v.require(
        rest.min().item() >= -floor,
        where,
        "A must be positive semi-definite",
        f"a diagonal entry {rest.min().item():.3g}",
    )
    rest = rest.clamp_min(0)
    factor = torch.empty(a.n, rank, dtype=torch.float64, device=a.device)
    pivots: list[int] = []
    draw, spent = torch.Generator().manual_seed(seed), 0
    while len(pivots) < rank and rest.sum().item() > max(tol, 0.0) * trace:
        weights = rest.cpu().clamp_min(0)
        weights[weights <= floor] = 0
        if not bool((weights > 0).any()):
            break
        wanted = min(_AT_ONCE, rank - len(pivots))
        drawn = torch.multinomial(weights, wanted, replacement=True, generator=draw)
        chosen = drawn.unique()
        columns = _columns(a, source, chosen)
        v.finite(bool(torch.isfinite(columns).all()), where, "columns of A")
        spent += 0 if has_entries(a, source) else len(chosen)
        done = factor[:, : len(pivots)]
        columns = columns - done @ done[chosen.to(a.device)].T
        new, kept = _block(columns, chosen.to(a.device), floor)
        factor[:, len(pivots) : len(pivots) + len(kept)] = new
        pivots += chosen[kept].tolist()
        rest = (rest - new.square().sum(1)).clamp_min(0)
        rest[chosen.to(a.device)] = 0
    f = factor[:, : len(pivots)].to(a.dtype)
    chosen = torch.tensor(pivots, dtype=torch.int64, device="cpu")
    return PivotedCholesky(f, chosen, rest.sum().item(), trace, spent)


def _block(columns: Tensor, chosen: Tensor, floor: float) -> tuple[Tensor, list[int]]:
    """New columns of the factor from columns of the rest, and which of these were independent."""
    core = columns[chosen]
    core = (core + core.T) / 2
    kept: list[int] = []
    new = columns[:, :0]
    for i in range(len(chosen)):
        column = columns[:, i] - new @ new[chosen[i]]
        pivot = column[chosen[i]].item()
        if pivot > max(floor, 1e-10 * core[i, i].item()):
            new = torch.cat([new, (column / pivot**0.5)[:, None]], 1)
            kept.append(i)
    return new, kept


def _diagonal(a: Operand, source: Any, where: str) -> Tensor:
    if a.explicit is not None:
        diagonal = a.explicit.diagonal()
    else:
        sparse = isinstance(source, Tensor)
        offered = hasattr(source, "diagonal") and callable(source.diagonal) and not sparse
        needs = "A must be a dense tensor or have diagonal()"
        v.require(offered, where, needs, type(source).__name__)
        diagonal = source.diagonal()
    fits = isinstance(diagonal, Tensor) and diagonal.shape == (a.n,)
    v.require(fits, where, f"A.diagonal() must be ({a.n},)", type(diagonal).__name__)
    v.finite(bool(torch.isfinite(diagonal).all()), where, "the diagonal of A")
    return diagonal.detach().double()


def _columns(a: Operand, source: Any, chosen: Tensor) -> Tensor:
    """Columns (n, b) of A in float64."""
    if a.explicit is not None:
        return a.explicit[:, chosen.to(a.device)].double()
    if hasattr(source, "read_columns"):
        return source.read_columns(chosen).double()
    units = torch.zeros(a.n, len(chosen), dtype=a.dtype, device=a.device)
    units[chosen.to(a.device), torch.arange(len(chosen), device=a.device)] = 1
    return a.product(units).double()
