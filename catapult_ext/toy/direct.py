"""Batched gradient descent of the two-layer network in plain torch: what no fused kernel covers.

Replicas are the batch dimension. A replica that diverges or converges leaves the batch at once, so
that it costs nothing from then on and its numbers touch nobody.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from catapult_ext.toy.network import Network, PullBack
from catapult_ext.toy.observer import Observer
from catapult_ext.toy.task import Record, Task


class _Recorder:
    """Columns of records; a replica that has left the batch keeps its last values."""

    def __init__(self, like: Tensor, replicas: int) -> None:
        self.like, self.replicas = like, replicas
        self.last: dict[str, Tensor] = {}
        self.columns: dict[str, list[Tensor]] = {}

    def note(self, alive: Tensor, **values: Tensor) -> None:
        for name, value in values.items():
            if name not in self.last:
                shape = (self.replicas, *value.shape[1:])
                self.last[name] = self.like.new_full(shape, torch.nan)
            self.last[name][alive] = value.to(self.like)

    def keep(self, *names: str) -> None:
        for name in names:
            self.columns.setdefault(name, []).append(self.last[name].clone())

    def take(self, name: str, count: int) -> Tensor:
        """(R, count, ...); columns after the last replica has left repeat the last one."""
        columns = self.columns.pop(name, [])
        missing = count - len(columns)
        return torch.stack(columns + [self.last[name]] * missing, 1)


def descend(
    network: Network, U: Tensor, v: Tensor, task: Task, stepped: Callable[[], None]
) -> Record:
    """Train R networks from U (R, H, D), v (R, H), both destroyed; ``stepped`` after each step.

    Divergence and held records as in ``ops.toy_gd``. Every step computes the loss over all samples;
    a mini-batch only weighs their gradients.

    Cost:
        About 6 H D N flops per replica and step; 6 H D for the linear activation. See
        :class:`~catapult_ext.toy.observer.Observer` for that of the curvature and the others.
    """
    run = _Descent(network, U, v, task)
    for t in range(task.schedule.steps + 1):
        residual, pull_back = run.look(t)
        if t == task.schedule.steps or len(run.alive) == 0:
            break
        run.move(t, residual, pull_back)
        stepped()
    return run.record()


class _Descent:
    """The replicas on their way: ``state`` holds those in ``alive``, everything else all R."""

    def __init__(self, network: Network, U: Tensor, v: Tensor, task: Task) -> None:
        self.network, self.task, self.rule = network, task, task.rule.to(U)
        moving = bool(self.rule.momentum.any())
        self.state = [U, v, torch.zeros_like(U), torch.zeros_like(v)] if moving else [U, v]
        self.alive = torch.arange(len(U), device=U.device)
        self.diverged_at = torch.full_like(self.alive, -1)
        self.converged_at = self.diverged_at.clone()
        self.observer = Observer(task.observe, network, task.data)
        self.records = _Recorder(U, len(U))
        self.decays = bool(self.rule.decay.any())
        self.cut = network.cut(task.data, U, v)
        if task.stop.diverged is not None:
            self.cut.fill_(task.stop.diverged)
        self.first_loss = torch.empty(0, device="cpu")

    def look(self, t: int) -> tuple[Tensor, PullBack]:
        """Record step t, let go what has diverged: residuals of the rest, and their pull-back."""
        (x, y), (_, record_every, curvature_every) = self.task.data, self.task.schedule
        U, v = self.state[:2]
        f, pull_back = self.network.run(U, v, x)
        residual = f - y
        loss = residual.square().sum(1) / (2 * len(x))
        norm = (U.square().sum((1, 2)) + v.square().sum(1)).sqrt()
        self.first_loss = loss if t == 0 else self.first_loss
        good = (loss <= self.cut[self.alive]) & norm.isfinite()
        if not bool(good.all()):
            self.diverged_at[self.alive[~good]] = t
            self._keep(good)
            loss, norm, residual = loss[good], norm[good], residual[good]
            U, v = self.state[:2]
            pull_back = self.network.run(U, v, x)[1]
        self.records.note(self.alive, loss=loss, weight_norm=norm)
        if t % record_every == 0:
            self.records.keep("loss", "weight_norm")
            if self.task.test is not None:
                error = self.network.run(U, v, self.task.test.x)[0] - self.task.test.y
                self.records.note(self.alive, test_loss=error.square().mean(1) / 2)
                self.records.keep("test_loss")
        if t % curvature_every == 0:
            eta = self.rule.at(t)[self.alive]
            self.records.note(self.alive, **self.observer.measure(U, v, eta, self.alive))
            self.records.keep("curvature", *self.task.observe.names)
        return residual, pull_back

    def move(self, t: int, residual: Tensor, pull_back: PullBack) -> None:
        """Step t of gradient descent, for those that have not converged."""
        if self.rule.batches is not None:
            weights = self.rule.batches.weights(t).to(residual)
            residual = residual * (weights[self.alive] if len(weights) > 1 else weights)
        gradients = list(pull_back(residual / len(self.task.data.x)))
        if self.decays:
            decay = self.rule.decay[self.alive]
            gradients = [g + _as(decay, g) * w for g, w in zip(gradients, self.state, strict=False)]
        if self.task.stop.converged is not None:
            square = gradients[0].square().sum((1, 2)) + gradients[1].square().sum(1)
            least = self.task.stop.converged * self.first_loss[self.alive]
            going = self.rule.at(t)[self.alive] * square > least
            self.converged_at[self.alive[~going]] = t
            self._keep(going)
            gradients = [g[going] for g in gradients]
        eta, momentum = self.rule.at(t)[self.alive], self.rule.momentum[self.alive]
        for i, gradient in enumerate(gradients):
            step = gradient * _as(eta, gradient)
            if len(self.state) > 2:
                step = self.state[2 + i].mul_(_as(momentum, gradient)).sub_(step)
                self.state[i].add_(step)
            else:
                self.state[i].sub_(step)

    def record(self) -> Record:
        """Records of all replicas."""
        steps, record_every, curvature_every = self.task.schedule
        columns, measured = steps // record_every + 1, steps // curvature_every + 1
        loss = self.records.take("loss", columns)
        tested = self.task.test is not None
        return Record(
            loss,
            self.records.take("weight_norm", columns),
            self.diverged_at,
            self.records.take("curvature", measured),
            self.records.take("test_loss", columns) if tested else loss.new_empty(len(loss), 0),
            self.converged_at,
            {name: self.records.take(name, measured) for name in self.task.observe.names},
        )

    def _keep(self, those: Tensor) -> None:
        if not bool(those.all()):
            self.alive = self.alive[those]
            self.state = [part[those] for part in self.state]


def _as(values: Tensor, like: Tensor) -> Tensor:
    """(A,) shaped to multiply ``like`` (A, ...)."""
    return values.view(-1, *[1] * (like.dim() - 1))
