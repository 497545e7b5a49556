"""Errors of Ritz pairs by the formula of ``bounds``, and guards: what every driver shares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from catapult_ext.eig.certify import Inertia, bounds, inexact, wanted
from catapult_ext.eig.krylov import Krylov
from catapult_ext.eig.pairs import Options

Ritz = tuple[Tensor, Tensor, Tensor]  # values, vectors and residual rows, as Krylov.ritz gives


def rounding_floor(space: Krylov, theta: Tensor) -> float:
    """The share of inexact products in errors, in scaled units."""
    size = max(space.norm, theta.abs().max().item())
    return inexact(space.a.n, space.eps, size, space.noise, space.a.grain)


@dataclass(frozen=True, eq=False)
class Errors:
    """Errors of the wanted Ritz values by the formula of ``bounds``, and those that tol allows."""

    errors: Tensor  # (k,) without the share of rounding
    allowed: Tensor  # (k,) with it
    floor: float  # the share of rounding


def formula_errors(
    space: Krylov, o: Options, theta: Tensor, r: Tensor, chosen: list[int], block_norm: float
) -> Errors:
    """From all Ritz values and residual norms, and the spectral norm of the chosen residuals."""
    floor = rounding_floor(space, theta)
    errors = bounds(theta, r, chosen, block_norm)
    return Errors(errors, (o.tol * theta[chosen].abs()).clamp_min(2 * floor), floor)


def spectral_norm(residual: Tensor) -> float:
    """|R|_2 of residual rows."""
    if residual.numel() and min(residual.shape) > 1:
        return torch.linalg.matrix_norm(residual, 2).item()
    return torch.linalg.vector_norm(residual).item()


def guards_of(
    space: Krylov, ritz: Ritz, o: Options, values: Tensor, counts: Inertia | None
) -> tuple[Tensor, list[float]]:
    """Guard vectors, and bounds of the eigenvalues after the wanted ones and after each guard.

    Uses no products.  The next Ritz value and its residual locate the next eigenvalue only as far
    as the basis has converged.  For an explicit matrix, eigenvalues are counted instead.
    """
    theta, s, residual = ritz
    if o.guards is None:
        return space.v.new_empty(0, space.a.n).double(), []
    following = [i for i, _ in wanted(theta, o.which, o.k + o.guards + 1)][o.k :]
    kept = following[: o.guards]
    guards = space.unit_vectors(s[:, kept]) if kept else space.v.new_empty(0, space.a.n).double()
    none = -math.inf if space.m >= space.a.n else math.inf
    reach = [theta[i].item() + residual[i].norm().item() for i in following]
    reach += [none] * (o.guards + 1 - len(reach))
    if counts is None or space.m >= space.a.n:
        return guards, reach
    block, size = torch.cat([values, theta[kept]]), values.abs().max().item()
    limits = [math.inf] * len(reach)
    for j in {0, len(kept)}:
        limits[j] = counts.limit(o.k + j, block[o.k + j - 1].item(), reach[j], size)
    return guards, limits
