"""Learning-rate warm-up: larger usable rates through lower sharpness (2406.09405)."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext import losses
from catapult_ext.data import Dataset
from catapult_ext.experiments.curvature import top_sharpness
from catapult_ext.experiments.reproduce.brackets import brackets
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import (
    Claim,
    Outcome,
    Row,
    line,
    mean,
    median,
    show,
    standard_error,
    with_error,
)
from catapult_ext.experiments.reproduce.settings import setting
from catapult_ext.figures.line_panel import Panel, Series
from catapult_ext.models import build
from catapult_ext.probes import accuracy, activity, divergence_cut
from catapult_ext.probes.phases import is_dead
from catapult_ext.training import Descent, drawn, moved, steps

TITLE = "why warm up the learning rate"
SOURCE = (
    "Kalra and Barkeshli (2406.09405): warm-up lowers the sharpness on the way and so tolerates a "
    "larger target rate"
)
USUAL = {"loss": "half_mse_mean"}


@dataclass(frozen=True)
class Settings:
    """Settings of warmup; standard parameterisation, variance 2/fan_in, 1/(2 N O) sum |f - y|^2.

    Attributes:
        data: name of the data set.
        train: training samples.
        test: test samples; None for all others.
        batch: samples of a step.
        width: units of each hidden layer.
        depth: hidden layers.
        warmups: steps from 0 to the target rate; 1 for none.
        exponents: target rates 2^x over the initial sharpness.
        shown: the exponent whose curves are drawn and whose peaks are compared.
        seeds: number of initialisations.
        steps: gradient steps at the target rate, after the warm-up.
        probes: readings of the sharpness during the warm-up and after it, each.
        delta: tolerated rise of the loss in the search of eta_c by forward passes.
    """

    data: str = "digits"
    train: int = 512
    test: int | None = setting(None, least=0)
    batch: int = 128
    width: int = 128
    depth: int = 3
    warmups: tuple[int, ...] = setting((1, 16, 64, 256), ascending=True)
    exponents: tuple[float, ...] = setting(
        tuple(float(x) for x in range(1, 10)), above=-64, below=64, ascending=True
    )
    shown: float = setting(3.0, above=-64, below=64)
    seeds: int = 2
    steps: int = 100
    probes: int = 3
    delta: float = 0.1


SETTINGS = {
    "smoke": Settings(
        train=48, test=60, batch=24, width=32, warmups=(1, 16), exponents=(1.0, 3.0, 6.0),
        seeds=1, steps=15, probes=2,
    ),
    "cpu": Settings(),
    "full": Settings(
        "cifar-10", 50_000, None, 512, 512, warmups=(1, 64, 256, 1024), seeds=5, steps=10_000,
        probes=20,
    ),
}  # fmt: skip


def run(settings: Settings, context: Context) -> Outcome:
    """Every warm-up at every target rate, eta_c by forward passes, and the claims."""
    s = settings
    data = context.data(s.data, train=s.train, test=s.test, flatten=True)

    def scan(seed: int, warm: int) -> dict[str, Any]:
        return {"runs": _scan(s, data, seed, warm)}

    scans = {
        f"s{seed}_w{warm}": functools.partial(scan, seed, warm)
        for seed in range(s.seeds)
        for warm in s.warmups
    }
    runs: list[Row] = [r for part in context.parts(scans) for r in part["runs"]]
    searches = context.parts(
        {f"search_s{seed}": functools.partial(_search, s, data, seed) for seed in range(s.seeds)}
    )
    rows = [_row(s, warm, runs) for warm in s.warmups]
    claims = [
        _claim_largest(rows),
        _claim_milder(s, rows),
        _claim_sharpness(runs),
        _claim_accuracy(s, runs),
        *_claims_search(searches),
    ]
    panels = {"largest": _panel_largest(rows), "sharpness": _panel_sharpness(s, runs)}
    notes = [f"A run: its warm-up, then {s.steps} steps at the target rate; {s.seeds} seeds."]
    flat = [{k: v for k, v in r.items() if not isinstance(v, list)} for r in runs]
    return Outcome(claims, {"warmups": rows, "cells": flat, "search": searches}, panels, notes)


def _first(s: Settings, data: Dataset, seed: int) -> tuple[nn.Module, float, Tensor]:
    """A network, its initial sharpness on one batch and the eigenvector."""
    model = build(
        "fc",
        tuple(data.x_train.shape[1:]),
        data.outputs,
        width=s.width,
        depth=s.depth,
        parameterisation="standard",
        seed=seed,
    ).to(data.x_train)
    top, vector = _sharpness(s, model, data, None)
    v.require(top > 0, "reproduce", "the initial sharpness must be > 0 (dead units?)", top)
    return model, top, vector


def _sharpness(
    s: Settings, model: nn.Module, data: Dataset, vector: Tensor | None
) -> tuple[float, Tensor]:
    x, y = data.x_train[: s.batch], data.y_train[: s.batch]
    return top_sharpness(model, losses.resolve("half_mse_mean"), x, y, vector, 1e-2)


def _scan(s: Settings, data: Dataset, seed: int, warm: int) -> list[Row]:
    """One warm-up at every target rate, until the first that diverges."""
    first, sharpness, vector = _first(s, data, seed)
    found = []
    for exponent in s.exponents:
        c = 2**exponent
        row = _train(s, data, copy.deepcopy(first), c / sharpness, warm, seed, vector)
        row["eta_lambda"] = [c / sharpness * v for v in row.pop("sharpness")]
        found.append({"seed": seed, "warmup": warm, "c": c, **row})
        if row["diverged"]:
            break
    return found


def _train(
    s: Settings, data: Dataset, model: nn.Module, eta: float, warm: int, seed: int, vector: Tensor
) -> Row:
    """SGD at eta min(1, t / warm), t = 1, 2, ..."""
    loss, total = losses.resolve("half_mse_mean"), warm + s.steps
    marks = {round(warm * i / s.probes) for i in range(1, s.probes + 1)}
    marks |= {warm + round(s.steps * i / s.probes) for i in range(1, s.probes + 1)}
    with torch.no_grad():
        start = loss(model(data.x_train), data.y_train).item()
    cut, peak = divergence_cut(start, s.width, 1 / eta), 0.0
    at: list[float] = [0.0]
    seen = [_sharpness(s, model, data, vector)[0]]
    weights, batches = moved(model), drawn(*data.train, s.batch, seed)
    move = Descent(weights, 0.0)
    for step in steps(model, weights, batches, loss, total, move, cut=cut):
        if step.diverged:
            lost = {"diverged": True, "dead": False, "peak": None, "accuracy": None}
            return lost | {"at": at, "sharpness": seen}
        if step.number < total:
            peak = max(peak, step.loss / start)
        if step.number > 0 and step.number in marks:
            top, vector = _sharpness(s, model, data, vector)
            at.append(float(step.number))
            seen.append(top)
        move.rate = eta * min(1.0, (step.number + 1) / warm)
    with torch.no_grad():
        outputs, active = activity(model, data.x_train)
        ended = not loss(outputs, data.y_train).item() <= start
        right = accuracy(model(data.x_test), data.y_test) if data.classes else None
    dead = not ended and active is not None and is_dead(active.worst_inactive)
    found = {"diverged": ended, "dead": dead, "peak": None if ended else peak, "accuracy": right}
    return found | {"at": at, "sharpness": seen}


@torch.no_grad()
def _search(s: Settings, data: Dataset, seed: int) -> dict[str, Any]:
    """eta_c by forward passes: double until the loss rises, bisect to a rise below delta."""
    first, sharpness, _ = _first(s, data, seed)
    loss, (x, y) = losses.resolve("half_mse_mean"), data.train
    x, y = x[: s.batch], y[: s.batch]
    weights: list[Tensor] = list(first.parameters())
    with torch.enable_grad():
        value = loss(first(x), y)
        gradients = torch.autograd.grad(value, weights)
    start, passes = value.item(), 0

    def after(eta: float) -> float:
        nonlocal passes
        passes += 1
        moved = copy.deepcopy(first)
        torch._foreach_add_(list[Tensor](moved.parameters()), list(gradients), alpha=-eta)
        return loss(moved(x), y).item()

    high = 1e-4
    while (reached := after(high)) <= start:
        high *= 2
    low = high / 2
    while not reached < (1 + s.delta) * start:
        middle = (low + high) / 2
        if not low < middle < high:  # the loss jumps by more than delta between neighbours
            break
        height = after(middle)
        if height > start:
            high, reached = middle, height
        else:
            low = middle
    return {"seed": seed, "passes": passes, "c": high * sharpness, "sharpness": sharpness}


def _row(s: Settings, warm: int, runs: list[Row]) -> Row:
    held = [r for r in runs if r["warmup"] == warm]
    found = brackets(held, _live, lambda r: r["dead"])
    largest = [b.stable for b in found]
    shown = [r for r in held if r["c"] == 2**s.shown and _live(r)]
    return {
        "warmup": warm,
        "largest_c": median(largest),
        "lowest": min(largest),
        "highest": max(largest),
        "ended": sum(b.lost is not None for b in found),
        "peak_at_shown": mean(r["peak"] for r in shown),
        "peak_se": standard_error(r["peak"] for r in shown),
    }


def _live(run: Row) -> bool:
    """Neither diverged nor ended with a dead layer: it trained."""
    return not run["diverged"] and not run["dead"]


def _claim_largest(rows: list[Row]) -> Claim:
    values = [r["largest_c"] for r in rows]
    text = "; ".join(
        f"{r['warmup']} steps: {r['largest_c']:.3g} ({r['lowest']:.3g} to {r['highest']:.3g})"
        for r in rows
    )
    grows = values == sorted(values) and values[-1] > values[0]
    # where no run was lost the largest rate lies beyond the grid, and could be any
    open_ = [r["warmup"] for r in rows if not r["ended"]]
    tested = len(rows) > 1 and (grows or not open_)
    return Claim(
        "a longer warm-up tolerates a larger rate",
        "the largest target rate that trains grows with the length of the warm-up",
        f"largest c, median of seeds (lowest to highest), {text}",
        grows if tested else None,
        "the grid is coarse" if tested else "one warm-up, or the largest rate of the grid trains",
    )


def _claim_milder(s: Settings, rows: list[Row]) -> Claim:
    known = [r for r in rows if r["peak_at_shown"] is not None]
    text = "; ".join(
        f"{r['warmup']} steps: {with_error(r['peak_at_shown'], r['peak_se'])}" for r in known
    )
    name = "milder catapults"
    predicted = (
        f"at the same target (c = {2**s.shown:g}) the loss peaks lower after a longer warm-up"
    )
    text = f"peak over start, {text or 'no run'}"
    if len(known) < 2:
        return Claim(name, predicted, text, None, "fewer than two warm-ups train at this rate")
    first, last = known[0], known[-1]
    if first["peak_se"] is None or last["peak_se"] is None:
        return Claim(name, predicted, text, None, "one seed: no error to compare with")
    fall = first["peak_at_shown"] - last["peak_at_shown"]
    noise = 2 * math.hypot(first["peak_se"], last["peak_se"])
    if abs(fall) < noise:
        why = f"the fall, {fall:.2f}, lies within the seeds' noise ({noise:.2f})"
        return Claim(name, predicted, text, None, why)
    why = "this rate makes no catapult without warm-up either"
    return Claim(name, predicted, text, fall > 0, why)


def _claim_sharpness(runs: list[Row]) -> Claim:
    kept = [r for r in runs if _live(r) and r["c"] > 2]
    ends = [r["eta_lambda"][-1] for r in kept]
    low = [e for e in ends if e <= 2.2]
    return Claim(
        "sharpness brought below the edge",
        "where training succeeds the sharpness has come down to 2/eta of the target or below "
        "(here at most a tenth above)",
        f"{len(low)} of {len(kept)} runs; largest eta * sharpness at the end "
        f"{show(max(ends, default=None))}",
        len(low) == len(kept) if kept else None,
        "mini-batches hold the sharpness of one of them apart from the average"
        if len(low) < len(kept)
        else "",
    )


def _claim_accuracy(s: Settings, runs: list[Row]) -> Claim:
    """Spread over warm-ups at one target against spread over targets at one warm-up."""
    every = [2**x for x in s.exponents]
    complete = [
        c
        for c in every
        if len([r for r in runs if r["c"] == c and _live(r) and r["accuracy"] is not None])
        == s.seeds * len(s.warmups)
    ]
    table = {
        (c, w): mean(r["accuracy"] for r in runs if r["c"] == c and r["warmup"] == w)
        for c in complete
        for w in s.warmups
    }
    predicted = "the final accuracy is set by the target rate, little by the length of the warm-up"
    if len(complete) < 2 or len(s.warmups) < 2:
        text = "fewer than two common targets or warm-ups"
        return Claim("accuracy", predicted, text, None, "grid")

    def spread(groups: list[list[Any]]) -> float:
        return mean(max(g) - min(g) for g in groups) or 0.0

    by_warm = spread([[table[c, w] for w in s.warmups] for c in complete])
    by_rate = spread([[table[c, w] for c in complete] for w in s.warmups])
    return Claim(
        "accuracy",
        predicted,
        f"over c = {', '.join(f'{c:.3g}' for c in complete)}: spread {by_rate:.4f} over targets, "
        f"{by_warm:.4f} over warm-ups",
        by_warm < by_rate,
        "" if by_warm < by_rate else "equal steps at the target: a long warm-up trains longer",
    )


def _claims_search(searches: list[Row]) -> list[Claim]:
    passes, c = [r["passes"] for r in searches], [r["c"] for r in searches]
    text = ", ".join(f"{v:.2f}" for v in c)
    return [
        Claim(
            "eta_c by forward passes",
            "doubling and bisecting the rate of one step finds eta_c, at or above 2/lambda_0",
            f"eta_c times the initial sharpness: {text}",
            all(v >= 2 * 0.95 for v in c) if c else None,
            "the curvature averaged along the step is not the sharpness at its start",
        ),
        Claim(
            "cost of eta_c",
            "about ten forward passes (here 5 to 20)",
            ", ".join(str(p) for p in passes),
            all(5 <= p <= 20 for p in passes) if passes else None,
            "the search starts at 1e-4, far below",
        ),
    ]


def _panel_largest(rows: list[Row]) -> Panel:
    series = [
        line("median of seeds", rows, "largest_c", "warmup"),
        line("lowest", rows, "lowest", "warmup", "v:"),
        line("highest", rows, "highest", "warmup", "^:"),
    ]
    return Panel(
        "Largest target rate that trains",
        "steps of the warm-up",
        "c = eta * sharpness_0",
        series,
        xlog=True,
        ylog=True,
        hlines={"c = 2": 2.0},
    )


def _panel_sharpness(s: Settings, runs: list[Row]) -> Panel:
    series = []
    for r in runs:
        if r["seed"] == 0 and r["c"] == 2**s.shown:
            name = f"warm-up {r['warmup']}" + (" (diverged)" if r["diverged"] else "")
            series.append(Series(name, [v + 1 for v in r["at"]], r["eta_lambda"]))
    return Panel(
        f"Sharpness times the target rate, c = {2**s.shown:g}, by length of the warm-up",
        "step + 1",
        "eta_target * sharpness",
        series,
        xlog=True,
        hlines={"sharpness = 2/eta_target": 2.0},
    )
