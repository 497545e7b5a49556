"""f(A) v by Lanczos, for operators known by their products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._progress import Progress, check_progress, counted
from catapult_ext._shown import Shown, number
from catapult_ext.systems.lanczos import AT_ONCE, LAG, Lanczos
from catapult_ext.systems.problem import System


@dataclass(frozen=True, eq=False, repr=False)
class FunctionResult(Shown, saved=True):
    """f(A) v with an estimate of its error; ``value, estimates = matrix_function(...)``.

    Example:
        >>> value, estimates = cx.matrix_function(4 * torch.eye(3), torch.sqrt, torch.ones(3))
        >>> print([round(entry, 4) for entry in value.tolist()])
        [2.0, 2.0, 2.0]

    Attributes:
        value: (n,) or (n, K) as v, dtype of the operator.
        estimates: (K,) float64, estimates of the error and not bounds: how much the last steps
            changed each column, and what rounding of the products may have done.
        steps: Lanczos steps of the slowest column.
        matvecs: products with A, in columns.
        converged: whether the last steps changed every column by at most tol |f(A) v|, or its
            Krylov space is exhausted.
    """

    value: Tensor
    estimates: Tensor
    steps: int
    matvecs: int
    converged: bool

    def __iter__(self) -> Iterator[Tensor]:
        yield self.value
        yield self.estimates

    def _line(self) -> str:
        finite = self.estimates[torch.isfinite(self.estimates)]
        most = finite.max().item() if len(finite) else math.nan
        missed = "" if self.converged else ", NOT converged"
        return (
            f"f(A) v of {len(self.estimates)} vectors, error about {number(most)} "
            f"({self.steps} steps, {self.matvecs} products{missed})"
        )

    def _table(self) -> list[dict[str, Any]]:
        columns = self.value.reshape(len(self.value), -1).double().norm(dim=0).tolist()
        rows = zip(columns, self.estimates.tolist(), strict=True)
        return [{"|f(A) v|": size, "estimate": error} for size, error in rows]


@no_autocast()
def matrix_function(
    A: Any,
    f: Callable[[Tensor], Tensor],
    vectors: Tensor,
    *,
    shift: float = 0.0,
    tol: float = 1e-6,
    maxiter: int = 300,
    progress: Progress = None,
) -> FunctionResult:
    """Compute f(A + shift I) v for a symmetric operator by Lanczos: |v| V f(T) e_1.

    Args:
        A: see :func:`catapult_ext.solve`.
        f: maps a float64 tensor of eigenvalues to one of the same shape: ``torch.sqrt``,
            ``lambda x: torch.exp(-t * x)``.  It must be finite on the spectrum.  If A has a
            ``lower_bound``, f is not evaluated below it.
        vectors: (n,) or (n, K).  A column that is not finite gives NaN and does not affect others.
        shift: added to the diagonal.
        tol: stop once five steps changed a column by less than ``tol`` times its norm.
        maxiter: maximal number of steps per column.
        progress: True for a bar, or a function of (columns done, columns).

    Returns:
        :class:`FunctionResult`.

    Raises:
        TypeError, ValueError: as :func:`catapult_ext.solve`; f is not such a function, or not
            finite at a Ritz value, which the message names.

    Cost:
        One product per step and column; memory for 8 * steps * n float64 numbers.

    Example:
        >>> kernel = torch.diag(torch.tensor([0.5, 1.0, 2.0]))
        >>> left = cx.matrix_function(kernel, lambda x: torch.exp(-3.0 * x), torch.ones(3))
        >>> print([round(entry, 4) for entry in left.value.tolist()])
        [0.2231, 0.0498, 0.0025]
    """
    where = "matrix_function"
    check_progress(where, progress)
    v.integers(where, maxiter=maxiter)
    v.numbers(where, tol=tol)
    v.require(0 <= tol < 1, where, "tol must be in [0, 1)", tol)
    v.require(maxiter >= 1, where, "maxiter must be >= 1", maxiter)
    if not callable(f):
        v.fail(where, "f must be a function of a tensor", type(f).__name__, TypeError)
    system = System.of(A, shift, None, where)
    sides = system.right_hand_sides(vectors)
    pieces = []
    with counted(progress, where, sides.columns.shape[1], "columns") as counter:
        for some in sides.columns.split(AT_ONCE, 1):
            pieces.append(_function_of(system, f, some, tol, maxiter))
            counter.add(some.shape[1])
    if not pieces:
        pieces = [_Found(sides.columns, sides.columns.new_zeros(0), 0, 0, True)]
    value = torch.cat([piece.value for piece in pieces], 1) * sides.scale
    whole = sides.spread(value.to(system.a.dtype))
    return FunctionResult(
        value=whole.reshape(-1) if sides.flat else whole,
        estimates=sides.spread(torch.cat([piece.moved for piece in pieces]) * sides.scale),
        steps=max(piece.steps for piece in pieces),
        matvecs=sum(piece.matvecs for piece in pieces),
        converged=all(piece.converged for piece in pieces),
    )


@dataclass(frozen=True, eq=False)
class _Found:
    value: Tensor  # (n, k)
    moved: Tensor  # (k,)
    steps: int
    matvecs: int
    converged: bool


def _function_of(
    system: System, f: Callable[[Tensor], Tensor], start: Tensor, tol: float, maxiter: int
) -> _Found:
    space = Lanczos(system, start, maxiter)
    k = start.shape[1]
    before: list[Tensor | None] = [None] * k
    coefficients = [start.new_zeros(0)] * k
    moved, rounding = start.new_zeros(k), start.new_zeros(k)
    eps = torch.finfo(system.a.dtype).eps * len(start) ** 0.5
    left = [i for i in range(k) if not bool(space.ended[i])]
    while left and space.m < space.most:
        space.step()
        due = space.m % LAG == 0 or space.m == space.most
        for i in list(left):
            ended = bool(space.ended[i])
            if not (due or ended):
                continue
            values, s = space.ritz(i, space.m)
            found = s @ (_applied(f, values, system) * s[0])
            nearby = s @ (_applied(f, _inwards(values, eps), system) * s[0])
            rounding[i] = (nearby - found).norm()
            old, before[i], coefficients[i] = before[i], found, found
            moved[i] = found.norm()
            if old is not None:
                moved[i] = math.hypot((found[: len(old)] - old).norm(), found[len(old) :].norm())
            small = old is not None and bool(moved[i] <= tol * found.norm())
            if ended:
                moved[i] = torch.finfo(torch.float64).eps * found.norm()
            if small or ended:
                left.remove(i)
                space.ended[i] = True
    value = torch.zeros_like(start)
    for i, c in enumerate(coefficients):
        if len(c):
            value[:, i] = space.sizes[i] * (c @ space.v[i, : len(c)])
    return _Found(value, (moved + rounding) * space.sizes, space.m, space.matvecs, not left)


def _inwards(values: Tensor, eps: float) -> Tensor:
    """Ritz values moved by eps |A|, as rounding may have, yet not out of the spectrum."""
    middle = (values.max() + values.min()) / 2
    step = torch.minimum((values - middle).abs(), eps * values.abs().max())
    return values + step * torch.sign(middle - values)


def _applied(f: Callable[[Tensor], Tensor], values: Tensor, system: System) -> Tensor:
    """F at Ritz values, which rounding may have moved below the bound of the spectrum."""
    if system.lower is not None:
        values = values.clamp_min(system.lower)
    elif getattr(system.source, "lower_bound", None) is not None:
        values = values.clamp_min(float(system.source.lower_bound) + system.shift)
    out = f(values.clone())
    where = "matrix_function"
    fits = isinstance(out, Tensor) and out.shape == values.shape
    shown = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    v.require(fits, where, f"f must return a tensor {tuple(values.shape)}", shown)
    out = out.detach().double()
    bad = ~torch.isfinite(out)
    if bool(bad.any()):
        v.fail(
            where,
            "f must be finite on the spectrum (or give shift=)",
            f"{out[bad][0].item()} at {values[bad][0].item():.6g}",
        )
    return out
