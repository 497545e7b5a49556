"""Cholesky factors of A + shift I in float64: in memory, or tile by tile in a file."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._free_memory import free_bytes, show_bytes
from catapult_ext._progress import Progress, check_progress
from catapult_ext._shown import Shown, number
from catapult_ext.systems.problem import RightHandSides, System, product_rounding
from catapult_ext.systems.result import SolveResult, packaged
from catapult_ext.systems.tiled import tiled_cholesky

DIRECT = 16384  # rows up to which an explicit matrix is factorised without being asked
_PANEL = 1024  # rows of a factor that a substitution reads at a time
_REFINEMENTS = 4
_UNIT = 2.0**-53


@dataclass(frozen=True, eq=False, repr=False)
class CholeskyFactor(Shown):
    """Cholesky factor L with L L' = A + shift I, and the system that it factorises.

    Example:
        >>> factor = cx.cholesky(torch.eye(4), shift=1.0)
        >>> x, errors = factor.solve(torch.ones(4))
        >>> print(f"{x[0]:.2f}", f"{factor.logdet():.4f}")
        0.50 2.7726

    Attributes:
        lower: L (n, n), zero above the diagonal; memory-mapped if it is stored in a file.
        shift: number added to the diagonal of A.
        least: lower bound on the eigenvalues of A + shift I; None if unknown.
    """

    lower: Tensor
    shift: float
    system: System

    @property
    def least(self) -> float | None:
        """Lower bound on the eigenvalues of A + shift I; None if unknown."""
        return self.system.lower

    @no_autocast()
    def solve(self, b: Tensor, *, tol: float = 1e-6) -> SolveResult:
        """(A + shift I)^-1 b for (n,) or (n, K), refined; as :func:`catapult_ext.solve`.

        Raises:
            TypeError, ValueError: b of another shape, dtype or device.
        """
        return self.solve_columns(self.system.right_hand_sides(b), tol)

    def solve_columns(self, sides: RightHandSides, tol: float) -> SolveResult:
        """Solve for right-hand sides that are already checked."""
        b, history = sides.columns, []
        scale = b.norm(dim=0).clamp_min(1e-300)
        x = self.substitute(b)
        r, moved = self.system.residual(x, b, self._size(), 0.0)
        norms, steps = r.norm(dim=0), 0
        history.append(_largest(norms / scale))
        while steps < _REFINEMENTS and bool((norms > moved).any()):
            finer = x + self.substitute(r)
            r, moved = self.system.residual(finer, b, self._size(), 0.0)
            steps += 1
            better = r.norm(dim=0) < norms
            helped = bool((r.norm(dim=0) < norms / 2).any())
            x = torch.where(better, finer, x)
            norms = torch.where(better, r.norm(dim=0), norms)
            history.append(_largest(norms / scale))
            if not helped:
                break
        return packaged(
            self.system,
            sides,
            x,
            norms,
            moved,
            method="cholesky",
            steps=steps,
            matvecs=(steps + 1) * b.shape[1],
            converged=bool((norms <= torch.maximum(tol * scale, moved)).all()),
            history=history,
        )

    def substitute(self, b: Tensor) -> Tensor:
        """L'^-1 L^-1 b for (n, K) in float64, without refinement."""
        x = self.forward(b)
        for rows in reversed(self._panels(0)):
            panel = self.lower[rows, : rows.stop].double()
            square, before = panel[:, rows.start :], panel[:, : rows.start]
            x[rows] = torch.linalg.solve_triangular(square.T, x[rows], upper=True)
            x[: rows.start] -= before.T @ x[rows]
        return x

    def forward(self, b: Tensor, start: int = 0) -> Tensor:
        """L^-1 b for (n, K), zero in the rows before ``start``, a multiple of the panel."""
        x = b.double().clone()
        for rows in self._panels(start):
            panel = self.lower[rows, start : rows.stop].double()
            square, before = panel[:, rows.start - start :], panel[:, : rows.start - start]
            right = x[rows] - before @ x[start : rows.start]
            x[rows] = torch.linalg.solve_triangular(square, right, upper=False)
        return x

    @no_autocast()
    def logdet(self) -> float:
        """Log of the determinant of A + shift I."""
        return 2 * self.lower.diagonal().double().log().sum().item()

    @no_autocast()
    def inverse_diagonal(self) -> Tensor:
        """Diagonal (n,) of (A + shift I)^-1 in float64, by n^3/3 flops."""
        n = len(self.lower)
        out = torch.empty(n, dtype=torch.float64, device=self.lower.device)
        for rows in self._panels(0):
            width = rows.stop - rows.start
            unit = torch.zeros(n, width, dtype=torch.float64, device=self.lower.device)
            unit[rows] = torch.eye(width, dtype=torch.float64, device=self.lower.device)
            out[rows] = self.forward(unit, rows.start).square().sum(0)
        return out

    def _panels(self, start: int) -> list[slice]:
        n = len(self.lower)
        return [slice(at, min(at + _PANEL, n)) for at in range(start, n, _PANEL)]

    def _size(self) -> float:
        """At least the norm of A, for operators whose residuals are not exact."""
        return self.lower.diagonal().double().square().sum().item()

    def _line(self) -> str:
        least = "" if self.least is None else f", eigenvalues >= {number(self.least)}"
        return f"Cholesky factor of {len(self.lower)} rows, shift {number(self.shift)}{least}"


def _largest(values: Tensor) -> float:
    return values.max().item() if values.numel() else 0.0


@no_autocast()
def cholesky(
    A: Any,
    *,
    shift: float = 0.0,
    lower: float | None = None,
    file: Path | str | None = None,
    dtype: torch.dtype = torch.float64,
    progress: Progress = None,
) -> CholeskyFactor:
    """Factor A + shift I = L L', in memory or in a file that may be larger than the memory.

    Args:
        A: positive definite with its shift: a dense tensor or array, or, with ``file``, a
            :class:`~catapult_ext.StoredKernel`.
        shift: added to the diagonal.
        lower: a known lower bound on the eigenvalues of A.
        file: ``.npy`` file to which L is written, panel by panel.  After an interruption the same
            call resumes; a finished file is only opened.
        dtype: dtype of L in a file; in memory it is always float64.
        progress: for a factor in a file: True for a bar, or a function of (panels done, panels).

    Returns:
        :class:`CholeskyFactor`, with ``.solve(b)``, ``.logdet()`` and ``.inverse_diagonal()``.
        :func:`catapult_ext.leave_one_out` accepts it.

    Raises:
        TypeError, ValueError: as :func:`catapult_ext.solve`; A is not explicit; another dtype
            without ``file``; the factor exceeds the memory and there is no ``file``.
        KernelFileError: the file contains another factor or other data, is damaged or in use, or
            cannot be written.  The file is not changed.

    Cost:
        n^3/3 flops.  In memory, proving an unknown smallest eigenvalue takes one or two more
        factorisations.  In a file, each panel reads all earlier panels once.

    Example:
        >>> factor = cx.cholesky(torch.eye(4), shift=0.5, file="factor.npy")
        >>> factor
        Cholesky factor of 4 rows, shift 0.5
    """
    where = "cholesky"
    check_progress(where, progress)
    system = System.of(A, shift, lower, where)
    if file is not None:
        return CholeskyFactor(tiled_cholesky(system, file, dtype, progress), system.shift, system)
    in_memory = "dtype must be torch.float64 without file="
    v.require(dtype == torch.float64, where, in_memory, dtype)
    needs = "A must be a dense tensor, or a StoredKernel and file='factor.npy'"
    v.require(system.a.explicit is not None, where, needs, type(A).__name__)
    return factorised(system)


def factorised(system: System) -> CholeskyFactor:
    """The factor in memory, with a proved bound of the smallest eigenvalue."""
    assert system.a.explicit is not None
    n, where = system.a.n, system.where
    needed, free = 3 * 8 * n**2, free_bytes()
    fits = needed <= free or system.a.device.type != "cpu"
    room = "3 float64 copies of A must fit the memory (method='cg' of cx.solve needs none, "
    room += f"cx.cholesky(A, file=...) one panel): {show_bytes(needed)}"
    v.require(fits, where, room, show_bytes(free))
    matrix = system.a.explicit.double().clone()
    matrix.diagonal().add_(system.shift)
    factor, status = torch.linalg.cholesky_ex(matrix)
    if int(status):
        _not_definite(where, f"a pivot <= 0 in row {int(status) - 1}")
    found = CholeskyFactor(factor, system.shift, system)
    if system.lower is not None:
        return found
    least = _proved(matrix, found, where)
    bound = "none" if least is None else "cholesky"
    return replace(found, system=replace(system, lower=least, bound=bound))


def _not_definite(where: str, shown: str) -> None:
    needs = "A + shift I must be positive definite beyond rounding (give a larger shift=)"
    v.fail(where, needs, shown)


def _proved(matrix: Tensor, factor: CholeskyFactor, where: str) -> float | None:
    """A number that no eigenvalue of A + shift I (n, n) is below; None where rounding hides it.

    A - mu I that has a Cholesky factor in floating point has no eigenvalue below minus the
    rounding of that factorisation (Rump 2006, "Verification of positive definiteness").  The
    matrix is used up.
    """
    n, trace = len(matrix), matrix.diagonal().sum().item()
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, generator=draw, dtype=torch.float64, device="cpu").to(matrix.device)
    for _ in range(8):
        x = factor.substitute(x / x.norm(dim=0))
    least = 1 / x.norm(dim=0).max().item()  # from above, up to rounding
    if least <= 2 * _UNIT * trace:
        _not_definite(where, f"a smallest eigenvalue of about {least:.3g} of a trace {trace:.3g}")
    # twice: libraries may multiply by inverses of diagonal blocks, which rounds once more
    share = product_rounding(2 * n + 2)
    rounding = share / (1 - share) * trace + 4 * _UNIT * matrix.diagonal().abs().max().item()
    diagonal = matrix.diagonal().clone()
    for part in (0.6, 0.25):
        if part * least <= rounding:
            return None
        matrix.diagonal().copy_(diagonal - part * least)
        if not int(torch.linalg.cholesky_ex(matrix)[1]):
            return part * least - rounding
    return None


def logdet_error(factor: CholeskyFactor) -> float:
    """By how much rounding of the factorisation may have moved the log-determinant."""
    if factor.least is None:
        return math.inf
    n = len(factor.lower)
    unit = max(_UNIT, torch.finfo(factor.lower.dtype).eps / 2)
    explicit = factor.system.a.explicit
    assert explicit is not None
    trace = (explicit.diagonal().double() + factor.shift).sum().item()
    moved = product_rounding(2 * n + 2) * unit / _UNIT * trace
    return n * math.log1p(moved / factor.least) + n * unit * 8
