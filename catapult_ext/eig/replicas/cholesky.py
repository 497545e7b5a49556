"""Upper bounds of eigenvalues of matrices by Cholesky factors, in float32 where that suffices.

If s I - A has a factor, no eigenvalue of A exceeds s, but for rounding: the factor is the exact
one of a matrix that differs by E, |E| about sqrt(n) eps times the largest diagonal entry, since
every entry of E is a sum of roundings of that size.  In float32 eight times as much is kept as a
margin; in float64 what the caller allows for rounding is more than that.  A test measures |E|.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ENTRIES = 1 << 20  # of matrices that are factorised together, so that they stay in cache
_MARGIN = 8.0


def margin(n: int, largest: Tensor) -> Tensor:
    """Bound on the rounding to float32, from the largest diagonal entry of a matrix (n, n)."""
    return _MARGIN * n**0.5 * torch.finfo(torch.float32).eps * largest


def by_cholesky(
    matrices: Tensor,
    left: Tensor,
    factor: Tensor,
    theta: Tensor,
    x: Tensor,
    guess: Tensor,
    allowed: Tensor,
) -> tuple[Tensor, Tensor]:
    """Errors (R', k) that a factorisation confirms, and for which matrices it does.

    Args:
        matrices: (R, n, n).
        left: numbers (R',) of those to test, on the CPU like all but ``matrices`` and ``x``.
        factor: (R,) such that ``factor * matrices`` is -A, in the units of what follows.
        theta: (R', k) Ritz values, descending.
        x: (R, k, n) Ritz vectors, orthonormal rows.
        guess: (R', k) errors that are tried first.
        allowed: (R', k) errors that are tried last.
    """
    n, device = matrices.shape[1], matrices.device
    errors, proved = guess.clone(), torch.ones(len(left), dtype=torch.bool, device="cpu")
    step = max(1, _ENTRIES // (n * n))
    shape = (2, min(step, len(left)), n, n)
    narrow = torch.empty(shape, dtype=torch.float32, device=device)
    wide = torch.empty(0, dtype=torch.float64, device=device)
    for first in range(0, len(left), step):
        part = slice(first, min(first + step, len(left)))
        at = left[part].to(device)
        lowest = matrices.diagonal(dim1=1, dim2=2)[at].double().cpu() * factor[left[part], None]
        hidden = margin(n, theta[part, 0].abs() + lowest.abs().amax(1))
        tried = torch.maximum(guess[part], 2 * hidden[:, None])
        fine = tried > allowed[part] / 2  # float32 tells too little
        tried = torch.where(fine, guess[part], tried)
        coarse = ~fine.any(1)
        good = torch.zeros(len(at), dtype=torch.bool, device="cpu")
        some = coarse.nonzero().flatten()
        if len(some):
            good[some] = _below(
                _scaled(matrices, at[some.to(device)], factor[left[part][some]], narrow),
                theta[part][some] + tried[some] - hidden[some, None],
                x[at[some.to(device)]],
                narrow[1],
            )
            errors[part] = torch.where(good[:, None], tried, errors[part])
        for last, limit in ((False, guess[part]), (True, allowed[part])):
            some = (~good & (~coarse | last)).nonzero().flatten()
            if not len(some):
                continue
            if wide.numel() == 0:
                wide = torch.empty(shape, dtype=torch.float64, device=device)
            there = at[some.to(device)]
            found = _below(
                _scaled(matrices, there, factor[left[part][some]], wide),
                theta[part][some] + limit[some],
                x[there],
                wide[1],
            )
            errors[first + some[found]] = limit[some[found]]
            good[some[found]] = True
        proved[part] = good
    return errors, proved


def _scaled(matrices: Tensor, at: Tensor, factor: Tensor, out: Tensor) -> Tensor:
    """``factor`` times some of the matrices, in the memory and dtype of ``out``."""
    for to, r, c in zip(out[0], at.tolist(), factor.tolist(), strict=False):
        if 1e-25 < abs(c) < 1e25:  # entries and their multiples are normal numbers
            to.copy_(matrices[r]).mul_(c)
        else:
            torch.mul(matrices[r], c, out=to)
    return out[0, : len(at)]


def _below(negative: Tensor, limits: Tensor, x: Tensor, work: Tensor) -> Tensor:
    """Mask (R,) of the A whose i-th eigenvalue is below limit i, for all i; ``negative`` is -A."""
    good = torch.ones(len(negative), dtype=torch.bool, device="cpu")
    for rank in range(limits.shape[1]):
        if rank:
            _project(negative, x[:, rank - 1].to(negative))
        moved = work[: len(negative)].copy_(negative)
        moved.diagonal(dim1=1, dim2=2).add_(limits[:, rank].to(moved)[:, None])
        good &= definite(moved)
    return good


def _project(matrices: Tensor, x: Tensor) -> None:
    """P A P in place, P = I - x x' for unit rows x (R, n)."""
    ax = (matrices @ x[:, :, None])[:, :, 0]
    ax = ax - (x * ax).sum(1, keepdim=True) / 2 * x
    both = ax[:, :, None] * x[:, None]
    matrices -= both
    matrices -= both.mT


def definite(matrices: Tensor) -> Tensor:
    """Which matrices (R, n, n) have a Cholesky factor; they are overwritten.

    Small diagonal blocks are factorised, and what remains is updated by products: LAPACK's own
    factorisation of matrices of this size one after the other reaches a third of that speed.
    """
    n = matrices.shape[1]
    width = 32 if n <= 128 else 64
    if matrices.device.type != "cpu":  # takes a batch at once
        return (torch.linalg.cholesky_ex(matrices).info == 0).cpu()
    good = torch.ones(len(matrices), dtype=torch.bool, device="cpu")
    unit = torch.eye(width, dtype=matrices.dtype, device="cpu")
    for start in range(0, n, width):
        stop = min(start + width, n)
        block = slice(start, stop)
        factor, info = torch.linalg.cholesky_ex(matrices[:, block, block])
        good &= (info == 0) & torch.isfinite(factor.diagonal(dim1=1, dim2=2)).all(1)
        if stop == n or not bool(good.any()):
            break
        inverse = torch.linalg.solve_triangular(
            factor, unit[: stop - start, : stop - start], upper=False
        )
        rest = inverse @ matrices[:, block, stop:]
        for at in range(stop, n, 2 * width):  # the upper triangle, by strips
            strip = rest[:, :, at - stop : at - stop + 2 * width]
            to = matrices[:, at : at + 2 * width, at:]
            to.baddbmm_(strip.mT, rest[:, :, at - stop :], alpha=-1)
    return good
