"""Mini-batch training with batch sharpness and top sharpness along the way (2412.20553)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import losses
from catapult_ext.experiments.curvature import top_sharpness
from catapult_ext.experiments.edge_runs import CUT, number_or_none
from catapult_ext.training import moved

Record = dict[str, Any]
LEAST_DRAWS = 16


def batch_sharpness(
    model: nn.Module,
    loss: losses.Loss,
    data: tuple[Tensor, Tensor],
    size: int,
    generator: torch.Generator,
    *,
    draws: int = 1000,
    within: float = 0.005,
) -> tuple[float, float]:
    """Mean of g.Hg / |g|^2 over random batches, g and H of the batch; and its standard error.

    Args:
        model: at its present parameters.
        loss: of outputs and targets.
        data: ``(x, y)``, from which every batch is drawn without replacement.
        size: samples of a batch; all of them need one draw, without error.
        generator: of the batches.
        draws: at most so many.
        within: relative standard error at which drawing ends.

    Cost:
        A forward pass and two backward passes a draw.
    """
    x, y = data
    weights = moved(model)
    whole = size >= len(x)
    found: list[float] = []
    error = math.nan
    while len(found) < (1 if whole else draws):
        index = torch.randperm(len(x), generator=generator, device="cpu")[:size]
        batch = (x, y) if whole else (x[index], y[index])
        found.append(_along_gradient(model, loss, batch, weights))
        if len(found) >= LEAST_DRAWS:
            error = _standard_error(found)
            if not error > within * abs(sum(found) / len(found)):
                break
    return sum(found) / len(found), 0.0 if whole else error


def _along_gradient(
    model: nn.Module, loss: losses.Loss, batch: tuple[Tensor, Tensor], weights: list[Tensor]
) -> float:
    x, y = batch
    value = loss(model(x), y)
    gradient = torch.autograd.grad(value, weights, create_graph=True)
    held = [g.detach() for g in gradient]
    product = torch.autograd.grad(gradient, weights, held)
    bent = sum(float((h * g).sum()) for h, g in zip(product, held, strict=True))
    return bent / sum(float(g.square().sum()) for g in held)


def _standard_error(values: list[float]) -> float:
    middle = sum(values) / len(values)
    spread = sum((v - middle) ** 2 for v in values) / (len(values) - 1)
    return math.sqrt(spread / len(values))


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
        loss: of outputs and targets.
        data: ``(x, y)``.
        optimizer: of the model's parameters.
        batch: samples of a step, drawn anew at every step; all of them for full-batch training.
        steps: of training.
        every: steps from reading to reading.
        seed: of the batches.
        draws: most batches of a reading of batch sharpness.
        change: a step and the options of the optimizer (or ``batch``) that it sets.

    Returns:
        ``at``, ``batch_sharpness``, ``error``, ``sharpness`` and ``loss`` of all data at every
        reading; ``diverged``: the loss is not finite or above ``CUT`` times its start.
    """
    x, y = data
    drawing, reading = (torch.Generator().manual_seed(seed + k) for k in (0, 1_000_003))
    record: Record = {key: [] for key in ("at", "batch_sharpness", "error", "sharpness", "loss")}
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
            mean, error = batch_sharpness(model, loss, data, batch, reading, draws=draws)
            top, vector = top_sharpness(model, loss, x, y, vector, 1e-2)
            row = {"at": number, "batch_sharpness": mean, "error": error, "sharpness": top}
            for key, value in (row | {"loss": height}).items():
                record[key].append(number_or_none(value))
        chosen = slice(None)
        if batch < len(x):
            chosen = torch.randperm(len(x), generator=drawing, device="cpu")[:batch]
        optimizer.zero_grad()
        loss(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    return record | {"diverged": False}
