"""Block conjugate gradients that cannot break down: columns share one search space.

Search directions are kept orthonormal, and those that have become dependent are dropped (Ji, Li
2017, "A breakdown-free block conjugate gradient method"; O'Leary 1980).  Vectors are float64, with
products in the operator's own dtype; where the recurrence has finished, the residual is computed
again and the solve goes on from there while that helps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._progress import Counter
from catapult_ext.eig.certify import rounding
from catapult_ext.systems.problem import Precondition, System

_DEPENDENT = 1e-12  # share of a direction below which it is one of the others
_ROUNDS = 6  # times that the residual is computed again


@dataclass(eq=False)
class Solved:
    """Columns of scaled solutions with their residuals, and what they took."""

    x: Tensor
    norms: Tensor  # (K,) of the residuals
    moved: Tensor  # (K,) what rounding may have put into them
    steps: int = 0
    matvecs: int = 0
    converged: bool = False
    size: float = 0.0  # the largest |A q| / |q| met
    noise: float = 0.0  # the largest |<u, A v> - <A u, v>| of unit vectors met
    history: list[float] = field(default_factory=list)


def block_cg(
    system: System,
    b: Tensor,
    x0: Tensor | None,
    precondition: Precondition,
    tol: float,
    counter: Counter,
    size: float = 0.0,
) -> Solved:
    """Solutions of (A + shift I) x = b for (n, K) float64.

    Args:
        system: the operator and its shift.
        b: right-hand sides of moderate size.
        x0: (n, K) a start, or None.
        precondition: M^-1 r.
        tol: of |r| / |b|.
        counter: counter of block steps; its total is how many there may be.
        size: the norm of A as far as it is known.

    Raises:
        ValueError: products that are not finite, A + shift I that is not positive definite.
    """
    start = torch.zeros_like(b) if x0 is None else x0.clone()
    found = Solved(start, b.new_full(b.shape[1:], torch.inf), b, size=size)
    scale = b.norm(dim=0).clamp_min(1e-300)
    r = b.clone()
    if x0 is not None:
        r, _ = system.residual(start, b, size, 0.0)
        found.matvecs += b.shape[1]
    for _ in range(_ROUNDS):
        before, held = found.norms, found.x.clone()
        _round(system, found, r, precondition, tol * scale, scale, counter)
        r, found.moved = system.residual(found.x, b, found.size, found.noise)
        found.matvecs += b.shape[1]
        worse = r.norm(dim=0) > before
        found.x[:, worse] = held[:, worse]
        found.norms = torch.where(worse, before, r.norm(dim=0))
        met = found.norms <= torch.maximum(tol * scale, found.moved)
        found.converged = bool(met.all())
        helped = bool((found.norms < before / 2)[~met].any())
        if found.converged or found.steps >= counter.total or not helped:
            break
    return found


def _round(
    system: System,
    found: Solved,
    r: Tensor,
    precondition: Precondition,
    wanted: Tensor,
    scale: Tensor,
    counter: Counter,
) -> None:
    """Steps from the residual ``r`` until the recurrence has it within ``wanted``."""
    r = r.clone()
    left = r.norm(dim=0) > wanted
    p = _orthonormal(precondition(r[:, left]))
    before: tuple[Tensor, Tensor] | None = None
    while bool(left.any()) and found.steps < counter.total and p.shape[1]:
        q = system.product(p)
        found.steps += 1
        counter.at(found.steps)
        found.matvecs += p.shape[1]
        found.size = max(found.size, (q - system.shift * p).norm(dim=0).max().item())
        gram = p.T @ q
        found.noise = max(found.noise, _skew(gram, gram))
        if before is not None:
            found.noise = max(found.noise, _skew(before[0].T @ q, p.T @ before[1]))
        before = p, q
        inverse = _inverse(gram, system, found.size)
        if inverse is None:
            return
        alpha = inverse @ (p.T @ r)
        found.x += p @ alpha
        r -= q @ alpha
        norms = r.norm(dim=0)
        found.history.append((norms / scale).max().item())
        left = norms > wanted
        z = precondition(r[:, left])
        p = _orthonormal(z - p @ (inverse @ (q.T @ z)))


def _skew(one: Tensor, other: Tensor) -> float:
    """Largest <u, A v> - <A u, v>, which exact products do not have."""
    return (one - other.T).abs().max().item()


def _orthonormal(block: Tensor) -> Tensor:
    """Orthonormal columns that span those of ``block`` (n, k) but for dependent ones."""
    norms = block.norm(dim=0)
    block = block[:, norms > 0] / norms[norms > 0]
    if block.shape[1] < 2:
        return block
    q, r = torch.linalg.qr(block)
    u, sizes, _ = torch.linalg.svd(r)
    return q @ u[:, sizes > _DEPENDENT * sizes[0]]


def _inverse(gram: Tensor, system: System, size: float) -> Tensor | None:
    """Inverse of P'(A + shift I) P but for directions that rounding hides; None if it hides all.

    Raises:
        ValueError: a direction along which A + shift I is negative beyond rounding.
    """
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    a = system.a
    hidden = max(rounding(a.n, a.eps), 2 * a.grain) * (size + abs(system.shift))
    least = values[0].item()
    v.require(
        least > -hidden,
        system.where,
        "A + shift I must be positive definite (give a larger shift=)",
        f"v'(A + shift I)v = {least:.3g} for a unit vector v",
    )
    kept = values > 1e-3 * hidden
    if not bool(kept.any()):
        return None
    return (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
