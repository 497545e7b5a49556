"""Problems of the toy model, shared by tests and benchmarks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from catapult_ext import ops, reference
from catapult_ext.reference.toy_gd import kernel_top
from catapult_ext.testing.backends import Backend


class ToyProblem(NamedTuple):
    """Arguments of ``toy_gd``: R replicas of width W on N samples of D inputs."""

    U: Tensor
    v: Tensor
    x: Tensor
    y: Tensor
    eta: Tensor


class ReducedProblem(NamedTuple):
    """The leading arguments of ``toy_gd_reduced``."""

    w: Tensor
    S: Tensor
    q: Tensor
    x: Tensor
    y: Tensor
    eta: Tensor


def toy_problem(
    c: Sequence[float] | Tensor,
    *,
    width: int,
    inputs: int,
    samples: int,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> ToyProblem:
    """Gaussian data and weights, replica r at the learning rate c[r] / lambda_0 of its own."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator, device="cpu")

    rates = torch.as_tensor(c, dtype=torch.float64, device="cpu")
    x, y = draw(samples, inputs), draw(samples)
    U, v = draw(len(rates), width, inputs), draw(len(rates), width)
    top = kernel_top(U.mT @ U, v.square().sum(1), x, width)
    return ToyProblem(*(t.to(dtype) for t in (U, v, x, y, rates / top)))


def stretched_data(samples: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Inputs x (N, D) with a clear top direction, y (N,) outside the range of x; float64."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, inputs, dtype=torch.float64, generator=generator, device="cpu")
    x[:, 0] *= 3
    return x, torch.randn(samples, dtype=torch.float64, generator=generator, device="cpu")


def reduced_state(problem: ToyProblem) -> ReducedProblem:
    """The closed state w = U'v, S = U'U, q = v.v, formed in float64."""
    U, v, x, y, eta = problem
    V = v.double()[:, :, None]
    w, S = (U.double().mT @ V).squeeze(-1), U.double().mT @ U.double()
    q = V.square().sum((1, 2))
    return ReducedProblem(w.to(U.dtype), S.to(U.dtype), q.to(U.dtype), x, y, eta)


def run_toy_gd(
    backend: Backend, problem: Sequence[Tensor], steps: int, **options: Any
) -> tuple[ops.ToyRecord, Tensor, Tensor]:
    """The record of ``toy_gd``, and U and v after the run, on copies of the problem."""
    mine = [t.clone().to(backend.device) for t in problem]
    record = backend.run(ops.toy_gd, *mine, steps, **options)
    return record, mine[0].cpu(), mine[1].cpu()


def exact_toy_gd(
    problem: Sequence[Tensor], steps: int, **options: Any
) -> tuple[ops.ToyRecord, Tensor, Tensor]:
    """Result of ``toy_gd`` by the reference, in float64."""
    U, v, x, y, eta = (t.double() for t in problem)
    U, v = U.clone(), v.clone()
    return ops.ToyRecord(*reference.toy_gd(U, v, x, y, eta, steps, **options)), U, v


def lean_torch_gd(problem: ToyProblem, steps: int, activation: str = "linear") -> Tensor:
    """The leanest batched torch composition of toy_gd: loss (R, steps + 1); mutates U and v.

    ``activation``: "linear", "relu" or "tanh".
    """
    if activation != "linear":
        return _lean_activated(problem, steps, activation)
    U, v, x, y, eta = problem
    samples, root = x.shape[0], math.sqrt(U.shape[1])
    rate = (eta / root)[:, None]
    losses = []
    w = torch.bmm(v[:, None, :], U)[:, 0]
    for t in range(steps + 1):
        residual = torch.addmm(-y.expand(len(w), samples), w, x.mT, alpha=1 / root)
        losses.append(residual.square().sum(1))
        if t == steps:
            break
        zeta = (residual @ x).mul_(rate / samples)
        pull = torch.bmm(U, zeta[:, :, None])[:, :, 0]
        U.baddbmm_(v[:, :, None], zeta[:, None, :], alpha=-1)
        v.sub_(pull)
        w = torch.bmm(v[:, None, :], U)[:, 0]
    return torch.stack(losses, 1) / (2 * samples)


def _lean_activated(problem: ToyProblem, steps: int, activation: str) -> Tensor:
    U, v, x, y, eta = problem
    samples, root = x.shape[0], math.sqrt(U.shape[1])
    rate = (eta / root)[:, None]
    losses = []
    for t in range(steps + 1):
        hidden = U @ x.mT  # (R, W, N)
        hidden = hidden.relu_() if activation == "relu" else hidden.tanh_()
        residual = torch.bmm(v[:, None, :], hidden)[:, 0].div_(root).sub_(y)
        losses.append(residual.square().sum(1))
        if t == steps:
            break
        residual = residual.mul_(rate / samples)
        pull = torch.bmm(hidden, residual[:, :, None])[:, :, 0]
        slope = hidden.sign_() if activation == "relu" else hidden.square_().neg_().add_(1)
        inner = slope.mul_(residual[:, None, :]) @ x
        U.sub_(inner.mul_(v[:, :, None]))
        v.sub_(pull)
    return torch.stack(losses, 1) / (2 * samples)
