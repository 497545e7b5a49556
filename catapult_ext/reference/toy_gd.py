"""Reference of toy_gd: explicit batched gradient descent on (U, v)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor

Record = tuple[Tensor, Tensor, Tensor, Tensor]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda z: z,
    "relu": torch.relu,
    "abs": torch.abs,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "gelu": lambda z: z * torch.special.ndtr(z),
    "softplus": lambda z: torch.logaddexp(z, torch.zeros_like(z)),
    "silu": lambda z: z * torch.sigmoid(z),
}
STEEPEST = {"erf": 2 / math.sqrt(math.pi), "gelu": 1.13, "silu": 1.1}  # bounds on |phi'|, else 1


def activation_of(name: str) -> tuple[Callable[[Tensor], Tensor], float]:
    """Phi and a bound on its slope; ``leaky(s)`` besides the names in ``ACTIVATIONS``."""
    leaky = re.fullmatch(r"leaky\((.*)\)", name)
    if leaky:
        slope = float(leaky.group(1))
        return lambda z: torch.where(z > 0, z, slope * z), max(1.0, abs(slope))
    return ACTIVATIONS[name], STEEPEST.get(name, 1.0)


def value_and_slope(phi: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """phi(z), and phi'(z) from autograd."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = phi(z)
        (slope,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), slope


def toy_gd(
    U: Tensor,
    v: Tensor,
    x: Tensor,
    y: Tensor,
    eta: Tensor,
    steps: int,
    *,
    record_every: int = 1,
    curvature_every: int = 0,
    activation: str = "linear",
) -> Record:
    """Gradient descent of :func:`catapult_ext.ops.toy_gd`, one tensor operation at a time."""
    samples, width = x.shape[0], U.shape[1]
    rate = (eta / math.sqrt(width))[:, None]
    phi, steepest = activation_of(activation)

    def observe() -> tuple[Tensor, Tensor, Tensor]:
        hidden = phi(U @ x.mT)  # (R, W, N)
        residual = (v[:, None, :] @ hidden).squeeze(1) / math.sqrt(width) - y  # (R, N)
        norm = U.square().sum((1, 2)) + v.square().sum(1)
        return residual, residual.square().sum(1) / (2 * samples), norm

    def step(residual: Tensor, alive: Tensor) -> None:
        hidden, slope = value_and_slope(phi, U @ x.mT)
        new_U = U - (rate * v)[:, :, None] * ((slope * residual[:, None, :]) @ x) / samples
        new_v = v - rate * (hidden @ residual[:, :, None]).squeeze(-1) / samples
        U.copy_(torch.where(alive[:, None, None], new_U, U))
        v.copy_(torch.where(alive[:, None], new_v, v))

    def curvature() -> Tensor:
        if activation == "linear":
            return kernel_top(U.mT @ U, v.square().sum(1), x, width)
        hidden, slope = value_and_slope(phi, U @ x.mT)
        pulled = slope * v[:, :, None]
        kernel = (x @ x.mT) * (pulled.mT @ pulled) + hidden.mT @ hidden
        return top_eigenvalue(kernel / (samples * width))

    at_zero = abs(float(phi(x.new_zeros(1))))
    limit = divergence_cut(
        x,
        y,
        steepest * (U.square().sum((1, 2)) + v.square().sum(1)),
        width,
        at_zero * math.sqrt(samples) * v.norm(dim=1),
    )
    return run(observe, step, curvature, limit, steps, record_every, curvature_every)


def run(
    observe: Callable[[], tuple[Tensor, Tensor, Tensor]],
    step: Callable[[Tensor, Tensor], None],
    curvature: Callable[[], Tensor],
    limit: Tensor,
    steps: int,
    record_every: int,
    curvature_every: int,
) -> Record:
    """The loop over steps, with the divergence rule and the held records; ``limit`` (R,)."""
    _, loss, _ = observe()
    diverged = torch.full(loss.shape, -1, dtype=torch.int64, device=loss.device)
    held = [torch.full_like(loss, torch.nan) for _ in range(3)]  # loss, norm, curvature
    records: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for t in range(steps + 1):
        residual, loss, norm = observe()
        bad = ~((loss <= limit) & norm.isfinite()) & (diverged < 0)
        diverged[bad] = t
        alive = diverged < 0
        held[0] = torch.where(alive, loss, held[0])
        held[1] = torch.where(alive, norm.sqrt(), held[1])
        if t % record_every == 0:
            records[0].append(held[0])
            records[1].append(held[1])
        if curvature_every and t % curvature_every == 0:
            held[2] = torch.where(alive, curvature(), held[2])
            records[2].append(held[2])
        if t < steps:
            step(residual, alive)
    stacked = [torch.stack(r, 1) if r else loss.new_empty(len(loss), 0) for r in records]
    return stacked[0], stacked[1], diverged, stacked[2]


def divergence_cut(
    x: Tensor, y: Tensor, norm: Tensor, width: float, besides: Tensor | float = 0.0
) -> Tensor:
    """1000 times a bound on the loss that the initial |U|^2 + |v|^2, ``norm`` (R,), allows.

    ``besides`` (R,) is what phi(0) != 0 adds to the reach of the outputs.
    """
    reach = x.norm() * norm / (2 * math.sqrt(width)) + besides + y.norm()
    bound = reach.square() / (2 * x.shape[0])
    return (1e3 * bound).clamp(max=torch.finfo(norm.dtype).max)


def kernel_top(S: Tensor, q: Tensor, x: Tensor, width: float) -> Tensor:
    """Top eigenvalue of X (S + q I) X' / (N W) for S (R, D, D), q (R,)."""
    inner = S + q[:, None, None] * torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
    return top_eigenvalue(x @ inner @ x.mT / (x.shape[0] * width))


def top_eigenvalue(kernel: Tensor) -> Tensor:
    """(R,) of (R, N, N); NaN where a kernel is not finite."""
    finite = kernel.isfinite().all(-1).all(-1)
    safe = torch.where(finite[:, None, None], kernel, torch.zeros_like(kernel))
    return torch.where(finite, torch.linalg.eigvalsh(safe)[:, -1], torch.nan)
