"""Descending a problem's loss: its value, gradients and full-batch training steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import training
from catapult_ext.probes.problem import Problem


def loss_of(model: nn.Module, problem: Problem) -> float:
    """The loss of ``model``."""
    with torch.no_grad():
        return problem.loss(problem.outputs(model), problem.y).item()


def gradients_of(model: nn.Module, problem: Problem) -> tuple[float, list[Tensor]]:
    """The loss and its gradients, one for each trainable parameter."""
    weights = training.moved(model)
    with torch.enable_grad():
        value = problem.loss(problem.outputs(model), problem.y)
        found = torch.autograd.grad(value, weights, allow_unused=True)
    pairs = zip(found, weights, strict=True)
    return value.item(), [torch.zeros_like(p) if g is None else g for g, p in pairs]


def steps(
    model: nn.Module, problem: Problem, optimizer: Any, count: int, cut: float = math.inf
) -> Iterator[training.Step]:
    """Full-batch training with a torch optimizer, which also moves what has no gradient."""
    weights = training.moved(model)

    def move(gradients: training.Gradients) -> None:
        for p, g in zip(weights, gradients, strict=True):
            p.grad = torch.zeros_like(p) if g is None else g
        optimizer.step()

    batches = training.whole(model, problem.y)  # what the outputs are a function of, for a problem
    return training.steps(problem.outputs, weights, batches, problem.loss, count, move, cut=cut)
