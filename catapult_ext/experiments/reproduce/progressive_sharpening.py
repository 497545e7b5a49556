"""Progressive sharpening to 2/eta, and self-stabilisation there (2103.00065, 2209.15594)."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from catapult_ext import _validate as v
from catapult_ext import losses
from catapult_ext.data import Dataset
from catapult_ext.experiments.curvature import top_sharpness
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import (
    Claim,
    Outcome,
    Row,
    mean,
    show,
)
from catapult_ext.experiments.reproduce.self_stabilisation import follow
from catapult_ext.experiments.reproduce.settings import setting
from catapult_ext.figures.line_panel import Panel, Series
from catapult_ext.models import build
from catapult_ext.probes.record import Row as Observed
from catapult_ext.probes.record import columns
from catapult_ext.training import full_batch

TITLE = "progressive sharpening and self-stabilisation"
SOURCE = (
    "Cohen et al. (2103.00065): sharpness rises to 2/eta and stays; Damian, Nichani and Lee "
    "(2209.15594): why"
)
WITHIN = 0.1  # "hovers at": the mean sharpness is so close to the edge
LONG = 100  # steps at the edge that let a long-term decrease show
CUT = 1e3  # loss over the initial one at which a run has diverged
USUAL = {"loss": "half_mse"}


@dataclass(frozen=True)
class Settings:
    """Settings of progressive-sharpening; full batch, torch's initialisation, ``half_mse``.

    Attributes:
        data: name of the data set, standardised pixel by pixel.
        train: training samples.
        width: units of each hidden layer.
        depth: hidden layers.
        activation: name in ``models.ACTIVATIONS``.
        ratios: the edge over the initial sharpness: eta = 2 (1 + beta) / (ratio S_0).
        momentum: beta of the runs with momentum, at the first ratio.
        seeds: number of initialisations.
        steps: gradient steps.
        every: steps between two readings of the sharpness.
        pair: two classes, targets -1 and +1, of the run that is followed at every step.
        pair_depth: its hidden layers.
        pair_ratio: its edge over the initial sharpness.
        approach: number of steps within which a run must reach the edge.
        window: steps followed from there.
    """

    data: str = "digits"
    train: int = 256
    width: int = 100
    depth: int = 2
    activation: str = "tanh"
    ratios: tuple[float, ...] = (4.0, 6.0, 8.0)
    momentum: float = setting(0.5, above=0, below=1)
    seeds: int = 2
    steps: int = 1500
    every: int = 5
    pair: tuple[int, ...] = setting((3, 8), least=0, count=2)
    pair_depth: int = 3
    pair_ratio: float = setting(2.5, above=1)
    approach: int = 1000
    window: int = 160


SETTINGS = {
    "smoke": Settings(
        train=48, width=24, ratios=(2.0,), seeds=1, steps=80, every=20, pair_ratio=1.5,
        approach=60, window=6,
    ),
    "cpu": Settings(),
    "full": Settings("cifar-10", 5000, 200, ratios=(4.0, 8.0, 16.0), steps=10_000),
}  # fmt: skip


def run(settings: Settings, context: Context) -> Outcome:
    """Train at rates whose edge lies above the initial sharpness, and judge."""
    s = settings
    data, signed = _data(s, context), _data(s, context, classes=s.pair, targets="signed")
    plan = [(ratio, 0.0) for ratio in s.ratios] + [(s.ratios[0], s.momentum)]
    records = context.parts(
        {
            f"r{ratio:g}_b{beta:g}_s{seed}": functools.partial(_hover, s, data, ratio, beta, seed)
            for ratio, beta in plan
            for seed in range(s.seeds)
        }
    )
    cycles = context.parts(
        {f"cycle_s{seed}": functools.partial(_cycle, s, signed, seed) for seed in range(s.seeds)}
    )
    rows = [_row(record) for record in records]
    plain = [r for r in rows if r["momentum"] == 0]
    claims = [
        _claim_sharpens(rows),
        _claim_hovers(plain, "hovers at 2/eta", "2/eta"),
        _claim_loss(plain),
        _claim_hovers([r for r in rows if r["momentum"] > 0], "with momentum", "(2 + 2 beta)/eta"),
        _claim_restoring(cycles),
        _claim_four_steps(cycles),
    ]
    panels = {"sharpness": _panel_sharpness(records), "cycle": _panel_cycle(cycles[0])}
    notes = [f"Loss rises are counted after the sharpness first reaches the edge; {s.steps} steps."]
    return Outcome(claims, {"runs": rows, "cycles": [_flat(c) for c in cycles]}, panels, notes)


def _data(s: Settings, context: Context, **changes: Any) -> Dataset:
    shape = {"standardisation": "pixel", "flatten": True}
    return context.data(s.data, train=s.train, test=0, **shape, **changes)


def _network(s: Settings, data: Dataset, depth: int, seed: int) -> nn.Module:
    return build(
        "fc",
        tuple(data.x_train.shape[1:]),
        data.outputs,
        width=s.width,
        depth=depth,
        activation_name=s.activation,
        parameterisation="standard",
        init="torch",
        seed=seed,
    ).to(data.x_train)


def _hover(s: Settings, data: Dataset, ratio: float, beta: float, seed: int) -> dict[str, Any]:
    """Loss at every step and the sharpness at every few."""
    model, loss = _network(s, data, s.depth, seed), losses.resolve("half_mse")
    top, vector = top_sharpness(model, loss, *data.train, None, 1e-3)
    v.require(top > 0, "reproduce", "the initial sharpness must be > 0 (constant inputs?)", top)
    eta = 2 * (1 + beta) / (ratio * top)
    curve: list[float] = []
    probes: list[Observed] = [{"step": 0, "sharpness": top}]
    for step in full_batch(model, data.train, loss, s.steps, eta, beta):
        curve.append(step.loss)
        if not step.loss <= CUT * curve[0]:
            break
        if step.number and step.number % s.every == 0:
            top, vector = top_sharpness(model, loss, *data.train, vector, 1e-3)
            probes.append({"step": step.number, "sharpness": top})
    record = {"ratio": ratio, "momentum": beta, "seed": seed, "eta": eta, "every": s.every}
    return record | {"loss": curve} | columns(probes, ["sharpness"])


def _cycle(s: Settings, data: Dataset, seed: int) -> dict[str, Any]:
    """One output: every step from the edge on, next to the prediction of self-stabilisation."""
    data = data.to(torch.float64)
    model, loss = _network(s, data, s.pair_depth, seed), losses.resolve("half_mse")
    return {"seed": seed} | follow(model, loss, data.train, s.pair_ratio, s.approach, s.window)


def _row(record: dict[str, Any]) -> Row:
    """Behaviour of one run after its sharpness first reached the edge."""
    scale = record["eta"] / (1 + record["momentum"])
    reduced = [scale * v for v in record["sharpness"]]  # 2 at the edge
    crossing = next((i for i, v in enumerate(reduced) if v >= 2), None)
    row: Row = {key: record[key] for key in ("ratio", "momentum", "seed", "eta")}
    row |= {"first": reduced[0], "highest": max(reduced), "crossed_at": None, "mean": None}
    row |= {"rises": None, "steps_there": 0, "loss_then": None, "loss_end": record["loss"][-1]}
    if crossing is not None:
        at = crossing * record["every"]
        curve = record["loss"][at:]
        row["crossed_at"], row["mean"] = at, mean(reduced[crossing:])
        pairs = list(itertools.pairwise(curve))
        row["rises"] = sum(b > a for a, b in pairs) / max(1, len(pairs))
        row["loss_then"], row["loss_end"] = curve[0], mean(curve[-max(1, len(curve) // 10) :])
        row["steps_there"] = len(pairs)
    return row


def _flat(cycle: dict[str, Any]) -> Row:
    return {k: v for k, v in cycle.items() if not isinstance(v, list)}


def _claim_sharpens(rows: list[Row]) -> Claim:
    reached = [r for r in rows if r["crossed_at"] is not None]
    text = f"{len(reached)} of {len(rows)} runs reach the edge"
    if reached:
        text += f", from {min(r['ratio'] for r in reached):g} to "
        text += f"{max(r['ratio'] for r in reached):g} times less"
    return Claim(
        "progressive sharpening",
        "gradient descent raises the sharpness until it reaches 2/eta",
        text,
        len(reached) == len(rows) if rows else None,
        "it still rises when the steps end: higher edges take longer" if rows else "no run",
    )


def _claim_hovers(rows: list[Row], name: str, edge: str) -> Claim:
    # the mean of a run that reaches the edge in its last steps is that of its first reading there
    kept = [r for r in rows if r["mean"] is not None and r["steps_there"] >= LONG]
    smallest = max((r["ratio"] for r in kept), default=None)
    judged = [r["mean"] / 2 for r in kept if r["ratio"] == smallest]
    others = [r["mean"] / 2 for r in kept if r["ratio"] != smallest]
    text = f"none spent {LONG} steps there"
    if judged:
        text = ", ".join(show(value, ".3f") for value in judged) + " at the smallest rate there"
    if others:
        text += "; " + ", ".join(show(value, ".3f") for value in others) + " at larger ones"
    return Claim(
        name,
        f"squared loss, small rates: from then on the sharpness hovers at, or slightly above, "
        f"{edge} (mean within 10 %)",
        f"mean over the edge, run by run: {text}",
        all(abs(value - 1) <= WITHIN for value in judged) if judged else None,
        "runs that end early, or whose sharpness falls once the data are fitted",
    )


def _claim_loss(rows: list[Row]) -> Claim:
    # A run that reaches the edge in its last steps has no long time to judge.
    kept = [r for r in rows if r["rises"] is not None and r["steps_there"] >= LONG]
    good = [r for r in kept if r["rises"] > 0 and r["loss_end"] < r["loss_then"]]
    text = "; ".join(
        f"rises in {r['rises']:.0%} of the steps, {r['loss_then']:.3g} to {r['loss_end']:.3g}"
        for r in kept
    )
    return Claim(
        "loss at the edge",
        "the loss is non-monotone over short times and decreases over long ones",
        text or f"no run spent {LONG} steps at the edge",
        len(good) == len(kept) if kept else None,
        "the loss does not come down in the steps left" if kept else "too few steps",
    )


def _claim_restoring(cycles: list[dict[str, Any]]) -> Claim:
    kept = [c for c in cycles if c["slope"] is not None]
    text = "; ".join(f"slope {c['slope']:.3f}, r = {c['correlation']:.3f}" for c in kept)
    holds = bool(kept) and all(abs(c["slope"] - 1) < 0.15 for c in kept)
    return Claim(
        "self-stabilisation, step by step",
        "S' - S = eta (alpha - beta x^2 / 2), x the oscillation along the top eigenvector, "
        "alpha = -grad L . grad S, beta = |grad S|^2 across it: slope 1 (within 15 %)",
        f"measured against predicted change of S, {text}" if kept else "the edge was not reached",
        holds if kept else None,
        "" if holds else "the expansion is of third order; large oscillations exceed it",
    )


def _claim_four_steps(cycles: list[dict[str, Any]]) -> Claim:
    kept = [c for c in cycles if c["highest"] is not None]
    good = [c for c in kept if c["highest"] > 2 and c["loss_peak"] > 1 and c["lowest_after"] < 2]
    text = "; ".join(
        f"eta S up to {c['highest']:.2f}, loss x{c['loss_peak']:.3g}, then eta S down to "
        f"{c['lowest_after']:.2f}"
        for c in kept
    )
    return Claim(
        "self-stabilisation, the cycle",
        "sharpness passes 2/eta, the loss rises, the sharpness falls below 2/eta",
        text or "the edge was not reached",
        len(good) == len(kept) if kept else None,
        "" if kept and len(good) == len(kept) else "the window ends before the cycle does",
    )


def _panel_sharpness(records: list[dict[str, Any]]) -> Panel:
    series = []
    for r in records:
        if r["seed"] == 0:
            scale = r["eta"] / (1 + r["momentum"])
            steps = [float(i * r["every"]) for i in range(len(r["sharpness"]))]
            name = f"edge at {r['ratio']:g} S_0" + (
                f", beta = {r['momentum']:g}" if r["momentum"] else ""
            )
            series.append(Series(name, steps, [scale * v for v in r["sharpness"]], style="-"))
    return Panel(
        "Sharpness of the first seed",
        "step",
        "eta * sharpness / (1 + beta)",
        series,
        hlines={"edge": 2.0},
    )


def _panel_cycle(cycle: dict[str, Any]) -> Panel:
    steps = [float(v) for v in cycle["step"]]
    predicted = list(cycle["sharpness"][:1])
    for change in cycle["predicted"][:-1]:
        predicted.append(predicted[-1] + change)
    return Panel(
        "eta * sharpness beside its predicted changes, summed up",
        "step",
        "eta * sharpness",
        [
            Series("measured", steps, cycle["sharpness"], style="-"),
            Series("eta (alpha - beta x^2 / 2), summed", steps, predicted, style="--"),
        ],
        hlines={"edge": 2.0},
    )
