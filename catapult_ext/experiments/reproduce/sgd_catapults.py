"""Catapults in SGD: spikes from steps above a batch's own 2/lambda (Zhu et al., 2306.04815)."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch

from catapult_ext import _validate as v
from catapult_ext.data import Dataset
from catapult_ext.eig import eigsh
from catapult_ext.experiments.curvature import top_curvature
from catapult_ext.experiments.descent import Recipe, Start, start
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import (
    Claim,
    Outcome,
    Row,
    mean,
    show,
    standard_error,
)
from catapult_ext.figures.line_panel import Panel, Series
from catapult_ext.linops import NTK
from catapult_ext.models import build
from catapult_ext.training import Descent, drawn, full_batch, moved, steps

TITLE = "catapults in SGD live in the top eigenspace and are told by the batch's own curvature"
SOURCE = "Zhu, Liu, Radhakrishnan, Belkin: catapults in SGD (2306.04815), claims 1 and 2"
SPIKE = 1.0  # a step spikes where the batch's loss after it is above this times the one before
USUAL = {"loss": "half_mse"}


@dataclass(frozen=True)
class Settings:
    """Settings of sgd-catapults: targets +1 (even classes) and -1 (odd classes), loss 1/(2 N) sum.

    Attributes:
        data: name of a data set with class labels.
        train: training samples.
        width: units of each hidden layer.
        depth: hidden layers.
        batches: batch sizes; the full batch is always run too.
        c: learning rate of all runs in units of 1 / lambda_0 of the full batch.
        gd_c: learning rate of the full-batch run whose catapult is analysed by eigenspace.
        steps: number of steps of every run.
        seeds: seeds of the initialisations.
        top: dimension s of the eigenspace.
    """

    data: str = "digits"
    train: int = 256
    width: int = 512
    depth: int = 2
    batches: tuple[int, ...] = (8, 32, 128)
    c: float = 1.9
    gd_c: float = 4.0
    steps: int = 40
    seeds: int = 3
    top: int = 5


SETTINGS = {
    "smoke": Settings(train=32, width=48, batches=(4, 16), steps=6, seeds=1),
    "cpu": Settings(),
    "real": Settings("fashion-mnist", 2000, 256, seeds=2),
    "full": Settings(train=1024, width=2048, batches=(5, 10, 50, 250), steps=400, seeds=5),
}


def run(settings: Settings, context: Context) -> Outcome:
    """SGD with the batch's own lambda at every step, GD with its residual taken apart; judge."""
    s = settings
    held = context.data(s.data, train=s.train, test=0, flatten=True)
    text = f"data of sgd-catapults must hold classes, got {s.data}"
    v.require(held.classes, "reproduce", text, f"{held.outputs} targets")
    even = torch.arange(held.outputs, device="cpu") % 2 == 0
    y = (held.y_train @ torch.where(even, 1.0, -1.0).to(held.y_train))[:, None]
    data = replace(held, y_train=y, y_test=y[:0], classes=False)
    recipe = Recipe(steps=s.steps)

    @functools.lru_cache(maxsize=1)
    def problem(seed: int) -> Start:
        model = build(
            "fc", tuple(data.x_train.shape[1:]), 1, width=s.width, depth=s.depth, seed=seed
        )
        return start(model, data, "half_mse", recipe)

    def stochastic(seed: int, batch: int) -> dict[str, Any]:
        return _sgd(problem(seed), data, batch, s, seed)

    def descend(seed: int) -> dict[str, Any]:
        return _gd(problem(seed), data, s)

    sgd = context.parts(
        {
            f"sgd_b{batch}_s{seed}": functools.partial(stochastic, seed, batch)
            for seed in range(s.seeds)
            for batch in s.batches
        }
    )
    gd = context.parts({f"gd_s{seed}": functools.partial(descend, seed) for seed in range(s.seeds)})
    rows = [_row(batch, [r for r in sgd if r["batch"] == batch]) for batch in s.batches]
    claims = [*_claims_space(gd, s.top), _claim_predicts(rows), _claim_smaller(rows)]
    panels = {"space": _panel_space(gd[0], s.top), "batch": _panel_batch(sgd)}
    notes = [
        f"SGD at c = {s.c:g} of the full batch, GD at c = {s.gd_c:g}; a step spikes where the "
        "loss of its own batch is higher after it. AGOP alignment (claim 3) is not measured."
    ]
    return Outcome(claims, {"batches": rows, "gd": [_thin(r) for r in gd]}, panels, notes)


def _sgd(problem: Start, data: Dataset, batch: int, s: Settings, seed: int) -> dict[str, Any]:
    """Per step: eta * lambda of the batch before it, and how much that batch's loss grew."""
    model, loss, eta = problem.model, problem.loss, s.c / problem.lambda0
    model.load_state_dict(problem.state)
    weights, batches = moved(model), drawn(*data.train, batch, seed)
    ratios: list[float] = []
    growth: list[float] = []
    diverged_at, last = -1, None
    for step in steps(model, weights, batches, loss, s.steps, Descent(weights, eta)):
        if last is not None:  # the batch of the step that was just made
            with torch.no_grad():
                after = loss(model(last.batch[0]), last.batch[1]).item()
            if not after <= problem.cut:
                diverged_at = last.number
                break
            growth.append(after / max(last.loss, 1e-30))
        if step.number < s.steps:
            value, _, _ = top_curvature(model, loss, *step.batch, None, 1e-3)
            ratios.append(eta * value)
        last = step
    return {"batch": batch, "seed": seed, "diverged_at": diverged_at} | {
        "eta_lambda": ratios[: len(growth)],
        "growth": growth,
    }


@torch.no_grad()
def _shares(problem: Start, data: Dataset, s: Settings) -> tuple[float, float, float]:
    """Loss, its part in the top-s eigenspace of the present kernel, and eta * lambda there."""
    x, y = data.train
    found = eigsh(NTK(problem.model, x), k=s.top, tol=1e-3)
    residual = (problem.model(x) - y).reshape(-1)
    inside = (found.eigenvectors.T @ residual).square().sum().item() / (2 * len(x))
    total = residual.square().sum().item() / (2 * len(x))
    return total, inside, float(found.eigenvalues[0]) / len(x)


def _gd(problem: Start, data: Dataset, s: Settings) -> dict[str, Any]:
    """Full-batch descent: loss and its part in the top-s space at every step."""
    problem.model.load_state_dict(problem.state)
    eta = s.gd_c / problem.lambda0
    rows: list[Row] = []
    for step in full_batch(problem.model, data.train, problem.loss, s.steps, eta):
        total, inside, value = _shares(problem, data, s)
        rows.append(
            {"step": step.number, "loss": total, "top": inside, "rest": total - inside}
            | {"eta_lambda": eta * value}
        )
        if total > problem.cut:
            break
    return {"rows": rows, "diverged": rows[-1]["loss"] > problem.cut}


def _row(batch: int, runs: list[dict[str, Any]]) -> Row:
    pairs = [
        (v > 2, g > SPIKE) for r in runs for v, g in zip(r["eta_lambda"], r["growth"], strict=True)
    ]
    above = [spiked for over, spiked in pairs if over]
    below = [spiked for over, spiked in pairs if not over]
    spread = []
    for r in runs:
        middle = mean(r["eta_lambda"])
        if middle and len(r["eta_lambda"]) > 1:
            error = standard_error(r["eta_lambda"]) or 0.0
            spread.append(error * len(r["eta_lambda"]) ** 0.5 / middle)
    return {
        "batch": batch,
        "steps": len(pairs),
        "diverged": sum(r["diverged_at"] >= 0 for r in runs),
        "above_critical": len(above),
        "spiked_above": sum(above),
        "spiked_below": sum(below),
        "agreement": mean(float(over == spiked) for over, spiked in pairs),
        "relative_spread_of_lambda": mean(spread),
        "spikes_per_step": mean(float(spiked) for _, spiked in pairs),
    }


def _peaks(runs: list[dict[str, Any]]) -> list[tuple[Row, Row]]:
    """The lowest row before the peak, and the peak, of every run whose loss rose."""
    found = []
    for r in runs:
        peak = max(r["rows"], key=lambda row: row["loss"])
        before = [row for row in r["rows"] if row["step"] <= peak["step"]]
        low = min(before, key=lambda row: row["loss"])
        if peak["loss"] > 1.01 * low["loss"]:
            found.append((low, peak))
    return found


def _claims_space(runs: list[dict[str, Any]], top: int) -> list[Claim]:
    peaks = _peaks(runs)
    shares = [(peak["top"] - low["top"]) / (peak["loss"] - low["loss"]) for low, peak in peaks]
    drops = [
        r["rows"][-1]["eta_lambda"] < r["rows"][0]["eta_lambda"] for r in runs if not r["diverged"]
    ]
    share = mean(shares)
    none = "no run's loss rose"
    return [
        Claim(
            "the spike lives in the top eigenspace",
            "the part of the loss in the kernel's top-s eigenspace reproduces the spike",
            f"share of the rise carried by it: {show(share, '.3f')} ({len(peaks)} runs)",
            None if share is None else share >= 0.8,
            none if share is None else f"the kernel turns meanwhile: more than its top {top}",
        ),
        Claim(
            "the kernel's top eigenvalue drops at the spike",
            "lambda is lower after a catapult",
            f"lower in {sum(drops)} of {len(drops)} full-batch runs that converged",
            all(drops) if drops else None,
            "the catapult was too weak to lower it" if drops else "no run converged",
        ),
    ]


def _claim_predicts(rows: list[Row]) -> Claim:
    text = "; ".join(
        f"batch {r['batch']}: {r['spiked_above']} of {r['above_critical']} above, "
        f"{r['spiked_below']} of {r['steps'] - r['above_critical']} below"
        for r in rows
    )
    above, below = sum(r["above_critical"] for r in rows), 0
    below = sum(r["steps"] for r in rows) - above
    high = sum(r["spiked_above"] for r in rows) / above if above else None
    low = sum(r["spiked_below"] for r in rows) / below if below else None
    decided = high is not None and low is not None
    holds = decided and high is not None and low is not None and high > 0.5 and low < 0.1
    return Claim(
        "eta above the batch's 2/lambda makes that batch's loss spike",
        "a step spikes its batch's loss where eta > 2/lambda(batch), and not below",
        f"steps that spiked: {text}",
        holds if decided else None,
        ""
        if holds
        else (
            "2/lambda is the threshold of the top direction; a residual with little in it, or a "
            "finite width, moves the loss's own threshold above 2"
            if decided
            else "no steps on a side"
        ),
    )


def _claim_smaller(rows: list[Row]) -> Claim:
    kept = [r for r in rows if r["relative_spread_of_lambda"] is not None]
    spread = [r["relative_spread_of_lambda"] for r in kept]
    text = "; ".join(
        f"batch {r['batch']}: spread {r['relative_spread_of_lambda']:.3f}, "
        f"{show(r['spikes_per_step'], '.3f')} spikes per step"
        for r in kept
    )
    spikes = [r["spikes_per_step"] for r in kept]
    decided = len(kept) > 1 and max(spikes) > 0
    holds = decided and spread[0] > spread[-1] and spikes[0] > spikes[-1]
    return Claim(
        "smaller batches, more catapults",
        "smaller batches have a wider spread of lambda(batch) and more spikes at the same eta",
        text,
        holds if decided else None,
        "few spikes at this rate: chance decides" if decided else "no batch size made a spike",
    )


def _thin(r: dict[str, Any]) -> Row:
    peak = max(r["rows"], key=lambda row: row["loss"])
    return {
        "diverged": r["diverged"],
        "loss_start": r["rows"][0]["loss"],
        "loss_peak": peak["loss"],
        "top_at_peak": peak["top"],
        "rest_at_peak": peak["rest"],
        "eta_lambda_start": r["rows"][0]["eta_lambda"],
        "eta_lambda_end": r["rows"][-1]["eta_lambda"],
    }


def _panel_space(r: dict[str, Any], top: int) -> Panel:
    steps = [float(row["step"]) for row in r["rows"]]
    series = [
        Series(label, steps, [max(row[key], 1e-12) for row in r["rows"]], style="-")
        for key, label in (
            ("loss", "loss"),
            ("top", f"top {top} eigenvectors"),
            ("rest", "the rest"),
        )
    ]
    return Panel("The loss by kernel eigenspace, full batch", "step", "loss", series, ylog=True)


def _panel_batch(runs: list[dict[str, Any]]) -> Panel:
    series = []
    for batch in sorted({r["batch"] for r in runs}):
        held = [r for r in runs if r["batch"] == batch]
        x = [v for r in held for v in r["eta_lambda"]]
        y = [max(g, 1e-6) for r in held for g in r["growth"]]
        series.append(Series(f"batch {batch}", x, y, style="."))
    return Panel(
        "One SGD step: growth of its batch's loss against eta * lambda of that batch",
        "eta * lambda(batch)",
        "loss after / before",
        series,
        ylog=True,
        vlines={"2": 2.0},
        hlines={"no change": 1.0},
    )
