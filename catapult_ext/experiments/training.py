"""Full-batch gradient descent at one learning rate, with everything a sweep records."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import losses
from catapult_ext.data import Dataset
from catapult_ext.experiments.curvature import TopSpace, top_curvature
from catapult_ext.probes import accuracy, activity, weight_norm

# An eigenvector that carries less than this share of the projected residual at the start is not
# asked whether its component grows: what other components leak into it would decide.
COUNTED_SHARE = 0.1
PROBED = (
    "probe_steps",
    "lambda",
    "lambda_error",
    "weight_norm",
    "train_accuracy",
    "test_accuracy",
    "test_loss",
    "inactive",
    "worst_inactive",
    "dead_units",
)


@dataclass(frozen=True)
class Problem:
    """What all learning rates of a sweep share.

    Attributes:
        model: trained in place; ``state`` brings it back to the start.
        state: parameters and buffers at the start.
        loss: the loss trained.
        data: training and test set.
        top: kernel eigenspace at the start.
        cut: loss above which a run is given up.
        steps: gradient steps T.
        probe_steps: steps at which curvature, accuracy, norm and activity are measured.
        tol: relative tolerance of the curvature.
    """

    model: nn.Module
    state: dict[str, Tensor]
    loss: losses.Loss
    data: Dataset
    top: TopSpace
    cut: float
    steps: int
    probe_steps: tuple[int, ...]
    tol: float


def probe_schedule(steps: int, factor: float) -> tuple[int, ...]:
    """Steps 0, 1, then growing by ``factor`` (at least by one), and the last one."""
    found = [0]
    while found[-1] < steps:
        found.append(min(steps, max(found[-1] + 1, math.ceil(found[-1] * factor))))
    return tuple(found)


class Projection:
    """The residual's components along the eigenvectors of the kernel at the start.

    ``growth`` is the largest |component| over its own start, among the components that carry at
    least ``share`` of the start; ``norm`` that of the whole projection.
    """

    def __init__(self, vectors: Tensor, columns: int = 1, share: float = COUNTED_SHARE) -> None:
        self.vectors, self.share = vectors, share
        self.growth: list[list[float]] = [[] for _ in range(columns)]
        self.norm: list[list[float]] = [[] for _ in range(columns)]
        self._start: Tensor | None = None

    def follow(self, residual: Tensor, columns: list[int] | None = None) -> None:
        """Record (N*O, K) residuals, K the number of ``columns`` (default: all)."""
        parts = (self.vectors.T @ residual).abs().double()
        if self._start is None:
            size = parts.norm(dim=0, keepdim=True)
            counted = (parts >= self.share * size) & (parts > 0)
            self._start = torch.where(counted, parts, torch.inf)
            self._size = torch.where(size > 0, size, torch.inf)[0]
        which = list(range(residual.shape[1])) if columns is None else columns
        growth = (parts / self._start[:, which]).amax(dim=0).tolist()
        norm = (parts.norm(dim=0) / self._size[which]).tolist()
        for i, column in enumerate(which):
            self.growth[column].append(growth[i])
            self.norm[column].append(norm[i])


def descend(
    problem: Problem, eta: float, on_step: Callable[[int, float], None] | None = None
) -> dict[str, Any]:
    """Train at ``eta`` from the start and return the record of the run (plain JSON values).

    The record holds ``loss``, ``projection`` and ``growth`` at every step; ``lambda``,
    ``weight_norm``, accuracies, test loss and unit activity at ``probe_steps``; and
    ``diverged_at``, the step whose loss was not finite or above the cut (-1: none). Only finite
    values are recorded. Nothing carries over from one rate to the next.
    """
    model, (x, y) = problem.model, problem.data.train
    model.load_state_dict(problem.state)
    weights = [p for p in model.parameters() if p.requires_grad]
    projection = Projection(problem.top.vectors)
    probes = Probes(problem)
    loss_curve: list[float] = []
    diverged_at = -1
    for step in range(problem.steps + 1):
        with torch.enable_grad():
            outputs = model(x)
            loss = problem.loss.value(outputs, y)
            value = loss.item()
            if math.isfinite(value):
                (residual,) = torch.autograd.grad(loss, outputs)
                loss_curve.append(value)
                projection.follow(residual.reshape(-1, 1))
            if not value <= problem.cut:
                diverged_at = step
                break
            if step < problem.steps:
                gradients = torch.autograd.grad(outputs, weights, residual, allow_unused=True)
        if step in problem.probe_steps:
            probes.measure(step, outputs.detach())
        if on_step is not None:
            on_step(step, value)
        if step < problem.steps:
            _move(weights, gradients, eta)
    return {
        "eta": eta,
        "diverged_at": diverged_at,
        "loss": loss_curve,
        "projection": projection.norm[0],
        "growth": projection.growth[0],
        **probes.columns,
    }


@torch.no_grad()
def _move(weights: Sequence[Tensor], gradients: tuple[Tensor | None, ...], eta: float) -> None:
    used = [(w, g) for w, g in zip(weights, gradients, strict=True) if g is not None]
    torch._foreach_add_([w for w, _ in used], [g for _, g in used], alpha=-eta)


class Probes:
    """What is measured at the probe steps of one run, as columns of equal length."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.vector = problem.top.vector  # warm start, within this run only
        self.columns: dict[str, list[Any]] = {name: [] for name in PROBED}

    @torch.no_grad()
    def measure(self, step: int, outputs: Tensor) -> None:
        """Append one row; ``outputs`` are those of the training inputs at this step."""
        problem, model, top = self.problem, self.problem.model, self.problem.top
        (x, y), (x_test, y_test) = problem.data.train, problem.data.test
        value, error = top.lambda0, top.error
        if step > 0:
            value, error, self.vector = top_curvature(
                model, problem.loss, x, y, self.vector, problem.tol
            )
        _, active = activity(model, x)
        tested = model(x_test) if len(x_test) else None
        classes = problem.data.classes
        row = {
            "probe_steps": step,
            "lambda": value,
            "lambda_error": error,
            "weight_norm": weight_norm(model),
            "train_accuracy": accuracy(outputs, y) if classes else None,
            "test_accuracy": None if tested is None or not classes else accuracy(tested, y_test),
            "test_loss": None if tested is None else problem.loss.value(tested, y_test).item(),
            "inactive": None if active is None else active.inactive,
            "worst_inactive": None if active is None else active.worst_inactive,
            "dead_units": None if active is None else active.dead,
        }
        for name, entry in row.items():
            self.columns[name].append(entry)
