"""Mini-batch training with batch sharpness and top sharpness along the way (2412.20553)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import losses
from catapult_ext.experiments.curvature import top_sharpness
from catapult_ext.experiments.edge_runs import CUT, number_or_none
from catapult_ext.training import moved

Record = dict[str, Any]
LEAST_DRAWS = 16
COLUMNS = ("at", "batch_sharpness", "error", "weighted", "sharpness", "loss")


@dataclass(frozen=True)
class BatchSharpness:
    """Curvature g.Hg / |g|^2 of random batches along their own gradients.

    Attributes:
        mean: E[g.Hg / |g|^2].
        error: its standard error; 0 for the full batch.
        weighted: E[g.Hg] / E[|g|^2], in which batches with large gradients count more.
    """

    mean: float
    error: float
    weighted: float


def batch_sharpness(
    model: nn.Module,
    loss: losses.Loss,
    data: tuple[Tensor, Tensor],
    size: int,
    generator: torch.Generator,
    *,
    draws: int = 1000,
    within: float = 0.005,
) -> BatchSharpness:
    """Batch sharpness at the present parameters.

    Args:
        model: at its present parameters.
        loss: function of outputs and targets.
        data: ``(x, y)``, from which every batch is drawn without replacement.
        size: samples of a batch; all of them need one draw.
        generator: generator of the batches.
        draws: largest number of draws.
        within: relative standard error at which drawing ends.

    Cost:
        A forward pass and two backward passes a draw.
    """
    x, y = data
    weights = moved(model)
    if size >= len(x):
        bent, square = _along_gradient(model, loss, data, weights)
        return BatchSharpness(bent / square, 0.0, bent / square)
    found: list[tuple[float, float]] = []
    ratios: list[float] = []
    error = math.inf
    while len(found) < draws:
        index = torch.randperm(len(x), generator=generator, device="cpu")[:size]
        found.append(_along_gradient(model, loss, (x[index], y[index]), weights))
        ratios.append(found[-1][0] / found[-1][1])
        if len(found) >= LEAST_DRAWS:
            error = statistics.stdev(ratios) / math.sqrt(len(ratios))
            if error <= within * abs(statistics.fmean(ratios)):
                break
    weighted = sum(bent for bent, _ in found) / sum(square for _, square in found)
    return BatchSharpness(statistics.fmean(ratios), error, weighted)


def _along_gradient(
    model: nn.Module, loss: losses.Loss, batch: tuple[Tensor, Tensor], weights: list[Tensor]
) -> tuple[float, float]:
    """g.Hg and |g|^2 of one batch."""
    x, y = batch
    value = loss(model(x), y)
    gradient = torch.autograd.grad(value, weights, create_graph=True)
    held = [g.detach() for g in gradient]
    product = torch.autograd.grad(gradient, weights, held)
    bent = sum(float((h * g).sum()) for h, g in zip(product, held, strict=True))
    return bent, sum(float(g.square().sum()) for g in held)


def follow_batches(
    model: nn.Module,
    loss: losses.Loss,
    data: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    batch: int,
    steps: int,
    every: int,
    seed: int,
    *,
    draws: int,
    change: tuple[int, Mapping[str, float]] | None = None,
) -> Record:
    """Train on random batches and read both sharpnesses of the training set every few steps.

    Args:
        model: trained in place.
        loss: function of outputs and targets.
        data: ``(x, y)``.
        optimizer: optimizer of the model's parameters.
        batch: samples of a step, drawn again at every step; all of them for full-batch training.
        steps: number of steps of training.
        every: steps from reading to reading.
        seed: seed of the batches.
        draws: most batches of a reading of batch sharpness.
        change: a step and the options of the optimizer (or ``batch``) that it sets.

    Returns:
        ``COLUMNS`` by reading: the step, batch sharpness (mean, its standard error, weighted), top
        sharpness and loss of all data; ``diverged``: the loss is not finite or above ``CUT`` times
        its start.
    """
    x, y = data
    drawing, reading = (torch.Generator().manual_seed(seed + k) for k in (0, 1_000_003))
    record: Record = {key: [] for key in COLUMNS}
    vector: Tensor | None = None
    start = math.inf
    for number in range(steps + 1):
        if change is not None and number == change[0]:
            options = dict(change[1])
            batch = int(options.pop("batch", batch))
            for group in optimizer.param_groups:
                group.update(options)
        if number % every == 0:
            with torch.no_grad():
                height = loss(model(x), y).item()
            start = height if number == 0 else start
            if not height <= CUT * start:
                return record | {"diverged": True}
            found = batch_sharpness(model, loss, data, batch, reading, draws=draws)
            top, vector = top_sharpness(model, loss, x, y, vector, 1e-2)
            row = (number, found.mean, found.error, found.weighted, top, height)
            for key, value in zip(COLUMNS, row, strict=True):
                record[key].append(number_or_none(value))
        drawn = x, y
        if batch < len(x):
            index = torch.randperm(len(x), generator=drawing, device="cpu")[:batch]
            drawn = x[index], y[index]
        optimizer.zero_grad()
        loss(model(drawn[0]), drawn[1]).backward()
        optimizer.step()
    return record | {"diverged": False}
