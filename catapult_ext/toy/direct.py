"""Batched gradient descent of the two-layer network in plain torch: what no fused kernel covers.

Replicas are the batch dimension. A replica that diverges leaves the batch at once, so that it costs
nothing from then on and its numbers touch nobody.

The number of rows of U may be less than the width W of the model: with a linear activation, plain
or heavy-ball gradient descent with or without L2, on all samples or on some, commutes with
rotations of the hidden space, where the columns of U and v span at most D + 1 directions. D + 1
rows are thus an exact model of any width, which is then only the W in f = W^-1/2 v . phi(U x).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from catapult_ext.toy.activations import Activation
from catapult_ext.toy.problem import Data

# Residuals (A, N) over the normaliser of the loss -> gradients of U (A, H, D) and v (A, H).
PullBack = Callable[[Tensor], tuple[Tensor, Tensor]]


class Rule(NamedTuple):
    """How R replicas move: m = momentum m - eta (gradient + decay weights), weights += m.

    Attributes:
        eta: (R, steps), or (R, 1) for constant rates.
        momentum: (R,).
        decay: (R,) weight of |U|^2 / 2 + |v|^2 / 2 in the loss.
        batches: draws the samples of a step, None for all of them.
    """

    eta: Tensor
    momentum: Tensor
    decay: Tensor
    batches: Batches | None = None

    @property
    def is_plain(self) -> bool:
        """Full-batch gradient descent at a constant rate, nothing else."""
        moving = self.eta.shape[1] > 1 or self.batches is not None
        return not (moving or bool(self.momentum.any()) or bool(self.decay.any()))

    def to(self, like: Tensor) -> Rule:
        """In the dtype and on the device of ``like``."""
        eta, momentum, decay = (part.to(like) for part in (self.eta, self.momentum, self.decay))
        return Rule(eta, momentum, decay, self.batches)

    def rows(self, first: int, last: int) -> Rule:
        """That of the replicas first .. last - 1."""
        batches = None if self.batches is None else self.batches.rows(first, last)
        part = slice(first, last)
        return Rule(self.eta[part], self.momentum[part], self.decay[part], batches)


class Batches(NamedTuple):
    """Mini-batches without replacement, reshuffled every epoch; a function of seed and step only.

    Attributes:
        samples: N.
        size: samples per batch; what an epoch leaves over is left out.
        seeds: one for all replicas, or one each.
    """

    samples: int
    size: int
    seeds: list[int]

    def rows(self, first: int, last: int) -> Batches:
        """Those of the replicas first .. last - 1."""
        return self if len(self.seeds) == 1 else self._replace(seeds=self.seeds[first:last])

    def weights(self, t: int) -> Tensor:
        """(len(seeds), N) float64: N / size for the samples of step t, 0 for the others."""
        epoch, part = divmod(t, self.samples // self.size)
        out = torch.zeros(len(self.seeds), self.samples, dtype=torch.float64)
        for row, seed in zip(out, self.seeds, strict=True):
            order = np.random.default_rng([seed, 1, epoch]).permutation(self.samples)
            row[order[part * self.size : (part + 1) * self.size]] = self.samples / self.size
        return out


class Schedule(NamedTuple):
    """Number of steps, and strides of the records."""

    steps: int
    record_every: int = 1
    curvature_every: int = 1


class Network(NamedTuple):
    """f = W^-1/2 v . phi(U x) for A replicas at once."""

    phi: Activation
    width: float

    def run(self, U: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, PullBack]:
        """Outputs (A, N) and their vector-Jacobian product."""
        scale = self.width**-0.5
        if self.phi.name == "linear":
            w = (v[:, None, :] @ U)[:, 0]

            def pull_linear(r: Tensor) -> tuple[Tensor, Tensor]:
                zeta = scale * (r @ x)
                return v[:, :, None] * zeta[:, None, :], (U @ zeta[:, :, None])[:, :, 0]

            return scale * (w @ x.mT), pull_linear
        hidden, slope = self.phi.both(U @ x.mT)  # (A, H, N)

        def pull_back(r: Tensor) -> tuple[Tensor, Tensor]:
            inner = (slope * r[:, None, :]) @ x
            return inner.mul_(scale * v[:, :, None]), scale * (hidden @ r[:, :, None])[:, :, 0]

        return scale * (v[:, None, :] @ hidden)[:, 0], pull_back

    def top(self, U: Tensor, v: Tensor, x: Tensor) -> Tensor:
        """(A,) top eigenvalue of the kernel of the gradients, divided by N."""
        if self.phi.name == "linear":
            inner = U.mT @ U
            inner.diagonal(dim1=1, dim2=2).add_(v.square().sum(1)[:, None])
            kernel = x @ inner @ x.mT
        else:
            hidden, slope = self.phi.both(U @ x.mT)
            pulled = slope.mul_(v[:, :, None])
            kernel = hidden.mT @ hidden + (x @ x.mT) * (pulled.mT @ pulled)
        kernel /= self.width * len(x)
        return torch.linalg.eigvalsh(kernel.double())[:, -1].to(x.dtype)

    def cut(self, data: Data, U: Tensor, v: Tensor) -> Tensor:
        """(A,) loss beyond which a run counts as diverged: the rule of ``ops.toy_gd``.

        1000 times the loss of the largest outputs that weights of this norm can give.
        """
        norm = U.double().square().sum((1, 2)) + v.double().square().sum(1)
        reach = self.phi.steepest * data.x.double().norm() * norm / (2 * math.sqrt(self.width))
        reach += abs(self.phi.at_zero) * math.sqrt(len(data.x)) * v.double().norm(dim=1)
        bound = (reach + data.y.double().norm()).square() / (2 * len(data.x))
        return (1e3 * bound).clamp(max=torch.finfo(U.dtype).max).to(U.dtype)


class DirectRecord(NamedTuple):
    """What :func:`descend` records; see ``ops.ToyRecord``. test_loss (R, M) or (R, 0)."""

    loss: Tensor
    weight_norm: Tensor
    diverged_at: Tensor
    curvature: Tensor
    test_loss: Tensor


def descend(
    network: Network,
    U: Tensor,
    v: Tensor,
    data: Data,
    rule: Rule,
    schedule: Schedule,
    test: Data | None = None,
) -> DirectRecord:
    """Train R networks from U (R, H, D), v (R, H), both destroyed.

    Divergence and held records as in ``ops.toy_gd``. Every step computes the loss over all samples;
    a mini-batch only weighs their gradients.

    Cost:
        About 6 H D N flops per replica and step; 6 H D for the linear activation.
    """
    replicas, (x, y), (steps, record_every, curvature_every) = len(U), data, schedule
    alive = torch.arange(replicas, device=U.device)
    diverged_at = torch.full((replicas,), -1, device=U.device)
    last = U.new_full((4, replicas), torch.nan)  # loss, norm, curvature, test loss
    records: tuple[list[Tensor], ...] = ([], [], [], [])
    cut = network.cut(data, U, v)
    rule = rule.to(U)
    state = [U, v] + ([torch.zeros_like(U), torch.zeros_like(v)] if rule.momentum.any() else [])
    for t in range(steps + 1):
        f, pull_back = network.run(state[0], state[1], x)
        residual = f - y
        loss = residual.square().sum(1) / (2 * len(x))
        norm = (state[0].square().sum((1, 2)) + state[1].square().sum(1)).sqrt()
        good = (loss <= cut[alive]) & norm.isfinite()
        if not bool(good.all()):
            diverged_at[alive[~good]] = t
            alive, loss, norm, residual = alive[good], loss[good], norm[good], residual[good]
            state = [part[good] for part in state]
            _, pull_back = network.run(state[0], state[1], x)
        last[0, alive], last[1, alive] = loss, norm
        if t % record_every == 0:
            records[0].append(last[0].clone())
            records[1].append(last[1].clone())
            if test is not None:
                error = network.run(state[0], state[1], test.x)[0] - test.y
                last[3, alive] = error.square().sum(1) / (2 * len(test.x))
                records[3].append(last[3].clone())
        if t % curvature_every == 0:
            last[2, alive] = network.top(state[0], state[1], x)
            records[2].append(last[2].clone())
        if t < steps and len(alive) > 0:
            eta = rule.eta[alive, min(t, rule.eta.shape[1] - 1)]
            if rule.batches is not None:
                weights = rule.batches.weights(t).to(U)
                residual = residual * (weights[alive] if len(weights) > 1 else weights)
            gradients = pull_back(residual / len(x))
            _move(state, gradients, eta, rule.momentum[alive], rule.decay[alive])
    columns = [torch.stack(r, 1) if r else last.new_empty(replicas, 0) for r in records]
    return DirectRecord(columns[0], columns[1], diverged_at, columns[2], columns[3])


def _move(
    state: list[Tensor],
    gradients: tuple[Tensor, Tensor],
    eta: Tensor,
    momentum: Tensor,
    decay: Tensor,
) -> None:
    """One step of (U, v) and, where they are kept, of their velocities."""
    decays = bool(decay.any())
    for i, gradient in enumerate(gradients):
        shape = (-1,) + (1,) * (gradient.dim() - 1)
        if decays:
            gradient = gradient + decay.view(shape) * state[i]
        move = gradient * eta.view(shape)
        if len(state) > 2:
            move = state[2 + i].mul_(momentum.view(shape)).sub_(move)
            state[i].add_(move)
        else:
            state[i].sub_(move)
