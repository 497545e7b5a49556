"""Full-batch training by optimizers of torch, with their realized edge and spectral position."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import losses
from catapult_ext.probes import EdgeMeter

Record = dict[str, Any]

BETA = 0.9
# Options as in table 6 of 2608.18415 where they are not torch's own.
OPTIMIZERS: dict[str, Callable[[Iterable[Tensor], float], torch.optim.Optimizer]] = {
    "gd": lambda w, rate: torch.optim.SGD(w, lr=rate),
    "heavy-ball": lambda w, rate: torch.optim.SGD(w, lr=rate, momentum=BETA),
    "nesterov": lambda w, rate: torch.optim.SGD(w, lr=rate, momentum=BETA, nesterov=True),
    "adam": lambda w, rate: torch.optim.Adam(w, lr=rate, eps=1e-7),
    "adamw": lambda w, rate: torch.optim.AdamW(w, lr=rate, eps=1e-7),
    "rmsprop": lambda w, rate: torch.optim.RMSprop(w, lr=rate, alpha=0.995, eps=1e-7),
    "adagrad": lambda w, rate: torch.optim.Adagrad(w, lr=rate),
}
ENTERS = 0.75  # chi above which a run is near its edge, as the source counts it
CUT = 1e3  # loss over the initial one at which a run has diverged
TOL = 1e-2  # relative error of chi, far below its spread along a run


def follow(
    model: nn.Module,
    loss: losses.Loss,
    data: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int,
    every: int,
) -> Record:
    """Full-batch training; zeta of every step, and its factors at every few.

    Returns:
        ``loss`` and ``zeta`` by step; ``at``, the steps with curvature, and ``chi``, ``varsigma``
        and ``tau`` there, None where not measured; ``diverged``: the loss is not finite or above
        ``CUT`` times its start, where the run ends.
    """
    x, y = data
    values: list[float | None] = []
    diverged = False

    def evaluate() -> Tensor:
        return loss(model(x), y)

    with EdgeMeter(model, optimizer, full_batch=True, curvature_every=every, tol=TOL) as meter:
        start = math.nan
        for number in range(steps):
            optimizer.zero_grad()
            value = evaluate()
            height = value.item()
            start = height if number == 0 else start
            values.append(number_or_none(height))
            if diverged := not height <= CUT * start:
                break
            value.backward()
            optimizer.step()
            meter.step(height, evaluate)
    bent = [row for row in meter.rows if row["step"] % every == 0]
    return {
        "loss": values,
        "zeta": [number_or_none(row["zeta"]) for row in meter.rows],
        "at": [row["step"] for row in bent],
        "chi": [number_or_none(row["chi"]) for row in bent],
        "varsigma": [number_or_none(row["varsigma"]) for row in bent],
        "tau": [number_or_none(row["tau"]) for row in bent],
        "diverged": diverged,
    }


def number_or_none(value: float) -> float | None:
    """The value, or None where JSON cannot hold it."""
    return value if math.isfinite(value) else None


def near_the_edge(record: Record) -> tuple[list[float], list[float]]:
    """Chi and zeta from the first reading of chi above ``ENTERS`` to the last one; [] for none."""
    pairs = zip(record["at"], record["chi"], strict=True)
    read = [(at, chi) for at, chi in pairs if chi is not None]
    above = [at for at, chi in read if chi > ENTERS]
    if not above:
        return [], []
    chi = [value for at, value in read if above[0] <= at <= above[-1]]
    zeta = [z for z in record["zeta"][above[0] : above[-1] + 1] if z is not None]
    return chi, zeta
