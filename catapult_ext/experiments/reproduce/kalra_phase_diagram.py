"""Four thresholds of early training by width (Kalra and Barkeshli, 2302.12250)."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import losses
from catapult_ext.data import Dataset
from catapult_ext.experiments.curvature import top_sharpness
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import (
    Claim,
    Outcome,
    Row,
    averages,
    line,
    mean,
    show,
)
from catapult_ext.experiments.reproduce.settings import setting
from catapult_ext.figures.line_panel import Panel, Series
from catapult_ext.models import build
from catapult_ext.training import Descent, drawn, moved, steps

TITLE = "early-training thresholds by width"
SOURCE = "Kalra and Barkeshli (2302.12250): c_loss, c_sharp, c_barrier, c_max by width"
TOL = 1e-2  # of the sharpness
CUT = 1e5  # loss above which the source calls a run divergent; valid up to width 2048
LOWEST, HIGHEST = 8, 20  # of c_max, around the published 12 to 14
THRESHOLDS = ("c_loss", "c_sharp", "c_barrier", "c_max")
# Width -> c_loss, c_sharp, c_max of the source's own stored output (CIFAR-10, one initialisation).
PUBLISHED = {
    256: (3.25, 4.92, 13.9),
    512: (3.03, 4.29, 13.0),
    1024: (2.64, 4.00, 13.9),
    2048: (2.46, 3.25, 12.1),
}
USUAL = {"loss": "half_mse_mean"}


@dataclass(frozen=True)
class Settings:
    """Settings of kalra-phase-diagram; ReLU without bias, weight variance 2/fan_in, last 1/fan_in.

    Attributes:
        data: name of the data set; each image standardised by itself.
        train: training samples.
        batch: samples of a step; None for all.
        widths: units of each hidden layer.
        depth: hidden layers + 1.
        seeds: number of initialisations.
        steps: SGD steps within which a threshold counts.
        exponent: c runs through 2^(exponent k), k = 0, 1, ...
        highest: last exponent of 2.
        probe_samples: training samples of the sharpness.
        barrier_points: interior points of the interpolation from start to end.
    """

    data: str = "digits"
    train: int = 256
    batch: int | None = None
    widths: tuple[int, ...] = setting((128, 256, 512, 1024), ascending=True)
    depth: int = setting(8, least=2)
    seeds: int = 3
    steps: int = 10
    exponent: float = 0.2
    highest: float = 5.0
    probe_samples: int = 128
    barrier_points: int = 9


SETTINGS = {
    "smoke": Settings(
        train=24, widths=(16, 32), depth=4, seeds=1, steps=4, exponent=1.0, probe_samples=12
    ),
    "cpu": Settings(),
    "full": Settings(
        "cifar-10", 50_000, 512, (256, 512, 1024, 2048), seeds=10, exponent=0.1,
        probe_samples=4096, barrier_points=99,
    ),
}  # fmt: skip


def run(settings: Settings, context: Context) -> Outcome:
    """Scan c for every width and seed and compare with the published values."""
    s = settings
    data = context.data(s.data, train=s.train, test=0, standardisation="image", flatten=True)
    cells = context.parts(
        {
            f"w{width}_s{seed}": functools.partial(_cell, s, data, width, seed)
            for width in s.widths
            for seed in range(s.seeds)
        }
    )
    rows = [_row(width, [c for c in cells if c["width"] == width]) for width in s.widths]
    claims = [
        _claim_falls(rows, "c_loss"),
        _claim_falls(rows, "c_sharp"),
        _claim_max(rows, s.depth),
        _claim_order(cells),
    ]
    inverse = [r | {"x": 1 / r["width"]} for r in rows]
    series = [line(f"{key}, here", inverse, key, "x") for key in THRESHOLDS]
    for i, key in enumerate(("c_loss", "c_sharp", "c_max")):
        x, y = [1 / w for w in PUBLISHED], [v[i] for v in PUBLISHED.values()]
        series.append(Series(f"{key}, published", x, y, style="x:"))
    panel = Panel(
        "Thresholds against 1/width", "1 / width", "c", series, ylog=True, hlines={"c = 2": 2.0}
    )
    notes = [
        f"c counts the initial sharpness (top Hessian eigenvalue on {s.probe_samples} samples); "
        "published values are for CIFAR-10 and one initialisation."
    ]
    return Outcome(claims, {"widths": rows, "cells": cells}, {"thresholds": panel}, notes)


def _cell(s: Settings, data: Dataset, width: int, seed: int) -> dict[str, Any]:
    """Thresholds of one initialisation, on the grid of c."""
    first = build(
        "fc",
        (data.x_train.shape[1],),
        data.outputs,
        width=width,
        depth=s.depth - 1,
        parameterisation="standard",
        init="he_lecun_last",
        seed=seed,
    ).to(data.x_train.device)
    loss = losses.resolve("half_mse_mean")
    probe = data.x_train[: s.probe_samples], data.y_train[: s.probe_samples]
    sharpness, vector = top_sharpness(first, loss, *probe, None, TOL)
    found: dict[str, float | None] = dict.fromkeys(THRESHOLDS)
    for k in range(int(s.highest / s.exponent + 1e-9) + 1):
        c = 2 ** (s.exponent * k)
        watch = probe if found["c_sharp"] is None else None
        seen = _try(s, first, loss, data, c / sharpness, (sharpness, vector), watch, seed)
        if seen["diverged"]:
            break
        found["c_max"] = c
        for key in ("c_loss", "c_sharp", "c_barrier"):
            if found[key] is None and seen[key]:
                found[key] = c
    # A threshold that no convergent rate passed lies at c_max, as in the source.
    top = found["c_max"]
    known = {k: v if v is not None else top for k, v in found.items()}
    return {"width": width, "seed": seed, "sharpness": sharpness} | known


def _try(
    s: Settings,
    first: nn.Module,
    loss: losses.Loss,
    data: Dataset,
    eta: float,
    initial: tuple[float, Tensor],
    watch: tuple[Tensor, Tensor] | None,
    seed: int,
) -> dict[str, bool]:
    """A few SGD steps at one rate: what exceeded its initial value; sharpness with its vector."""
    model = copy.deepcopy(first)
    weights, batches = moved(model), drawn(*data.train, s.batch, seed)
    loss0 = math.nan
    vector = initial[1]
    seen = {"c_loss": False, "c_sharp": False, "c_barrier": False, "diverged": False}
    for step in steps(model, weights, batches, loss, s.steps, Descent(weights, eta)):
        with torch.no_grad():
            now = loss(model(data.x_train), data.y_train).item()
        if step.number == 0:
            loss0 = now
            continue
        if step.diverged or not now <= CUT:
            return seen | {"diverged": True}
        seen["c_loss"] |= now > loss0
        if watch is not None and not seen["c_sharp"]:
            sharpness, vector = top_sharpness(model, loss, *watch, vector, TOL)
            seen["c_sharp"] = sharpness > initial[0]
    seen["c_barrier"] = _barrier(s, first, model, loss, data) > loss0
    return seen


@torch.no_grad()
def _barrier(
    s: Settings, first: nn.Module, last: nn.Module, loss: losses.Loss, data: Dataset
) -> float:
    """Largest loss on the straight line between two sets of weights, ends left out."""
    between = copy.deepcopy(first)
    highest = -float("inf")
    for i in range(1, s.barrier_points + 1):
        share = i / (s.barrier_points + 1)
        for p, a, b in zip(
            between.parameters(), first.parameters(), last.parameters(), strict=True
        ):
            p.copy_((1 - share) * a + share * b)
        highest = max(highest, loss(between(data.x_train), data.y_train).item())
    return highest


def _row(width: int, cells: list[dict[str, Any]]) -> Row:
    row: Row = {
        "width": width,
        "seeds": len(cells),
        "sharpness": mean(c["sharpness"] for c in cells),
    }
    row |= averages({key: [c[key] for c in cells] for key in THRESHOLDS})
    known = PUBLISHED.get(width)
    for i, key in enumerate(("c_loss", "c_sharp", "c_max")):
        row[f"published_{key}"] = None if known is None else known[i]
    return row


def _claim_falls(rows: list[Row], key: str) -> Claim:
    text = "; ".join(
        f"{show(r[key])} at {r['width']} (published {show(r[f'published_{key}'])})" for r in rows
    )
    values = [r[key] for r in rows]
    known = None not in values and len(rows) > 1
    holds = known and all(2 <= b < a for a, b in itertools.pairwise(values))
    return Claim(
        f"{key} falls towards 2",
        f"{key} decreases from width to width, towards 2",
        text,
        holds if known else None,
        "" if holds else "few seeds and a grid as coarse as the effect",
    )


def _claim_max(rows: list[Row], depth: int) -> Claim:
    found = {r["width"]: r["c_max"] for r in rows if r["c_max"] is not None}
    text = "; ".join(
        f"{show(r['c_max'])} at {r['width']} (published {show(r['published_c_max'])})" for r in rows
    )
    outside = [width for width, value in found.items() if not LOWEST <= value <= HIGHEST]
    narrow = [width for width in outside if found[width] > HIGHEST and width < min(PUBLISHED)]
    why = "other data than published; the boundary is fractal"
    if outside and outside == narrow:
        why = (
            f"width {', '.join(map(str, narrow))} is narrow for depth {depth} and was not "
            "published; deep narrow nets stand rates up to 40 / lambda_0 (2406.09405)"
        )
    return Claim(
        "c_max of deep ReLU nets",
        f"c_max stays within {LOWEST} to {HIGHEST} at every width (published 12 to 14)",
        text,
        not outside if found else None,
        why,
    )


def _claim_order(cells: list[dict[str, Any]]) -> Claim:
    known = [values for c in cells if None not in (values := [c[k] for k in THRESHOLDS])]
    good = [values for values in known if values == sorted(values)]
    return Claim(
        "order of the thresholds",
        "c_loss <= c_sharp <= c_barrier <= c_max",
        f"in {len(good)} of {len(known)} initialisations with all four, of {len(cells)}",
        len(good) == len(known) if known else None,
        "neighbouring points of the grid swap" if known else "no initialisation has all four",
    )
