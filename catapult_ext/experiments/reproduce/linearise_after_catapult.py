"""Linearise the net after its catapult and train both on (arXiv version, figure 6)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch

from catapult_ext.data import Dataset
from catapult_ext.experiments.curvature import top_curvature
from catapult_ext.experiments.descent import Recipe, Start, start, train
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.grid import last
from catapult_ext.experiments.reproduce.grid_panels import C_LABEL
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
from catapult_ext.figures.line_panel import Panel
from catapult_ext.linops import freeze
from catapult_ext.losses import SquaredLoss
from catapult_ext.models import build
from catapult_ext.probes import accuracy
from catapult_ext.probes.phases import is_dead
from catapult_ext.training import full_batch

TITLE = "after the catapult the net is linear again"
SOURCE = (
    "Lewkowycz et al., arXiv version, figure 6: train of order log n steps, linearise, continue"
)
USUAL = {"loss": "half_mse"}


@dataclass(frozen=True)
class Settings:
    """Settings of linearise-after-catapult; full batch, loss 1/(2 N) sum |f - y|^2.

    Attributes:
        data: name of the data set.
        train: training samples.
        test: test samples; None for all others.
        width: units of each hidden layer.
        depth: hidden layers.
        c: learning rates in units of 1 / lambda_0.
        seeds: number of initialisations.
        logs: the net is linearised after logs * ln(width) steps.
        steps: gradient steps of both continuations.
    """

    data: str = "digits"
    train: int = 256
    test: int | None = setting(None, least=1)
    width: int = 512
    depth: int = 3
    c: tuple[float, ...] = (2.25, 2.75, 3.25, 3.75)
    seeds: int = 4
    logs: float = 5.0
    steps: int = 60


SETTINGS = {
    "smoke": Settings(train=48, test=100, width=64, c=(2.5, 3.5), seeds=2, steps=10),
    "cpu": Settings(),
    "full": Settings(train=512, width=2048, c=(2.25, 2.5, 2.75, 3, 3.25, 3.5, 3.75, 4), seeds=10),
}


def run(settings: Settings, context: Context) -> Outcome:
    """Train each rate and seed, linearise at start and after the catapult, judge the claims."""
    s = settings
    data = context.data(s.data, train=s.train, test=s.test, flatten=True)
    before = math.ceil(s.logs * math.log(s.width))
    recipe = Recipe(steps=before, probe_factor=float(before + 1))

    @functools.lru_cache(maxsize=1)
    def problem(seed: int) -> Start:
        shape = tuple(data.x_train.shape[1:])
        model = build("fc", shape, data.outputs, width=s.width, depth=s.depth, seed=seed)
        return start(model, data, "half_mse", recipe)

    def compute(seed: int, c: float) -> dict[str, Any]:
        return {"seed": seed, "c": c, **_cell(problem(seed), data, c, recipe, s.steps)}

    cells = context.parts(
        {
            f"s{seed}_c{c:g}": functools.partial(compute, seed, c)
            for seed in range(s.seeds)
            for c in s.c
        }
    )
    rows = [_row(c, [x for x in cells if x["c"] == c]) for c in s.c]
    claims = [_claim_same(rows), _claim_start(rows), _claim_settled(rows)]
    both = [
        line("non-linear", rows, "nonlinear"),
        line("linearised after the catapult", rows, "linear"),
    ]
    panel = Panel(
        f"Test accuracy {s.steps} steps after the linearisation",
        C_LABEL,
        "test accuracy",
        both,
    )
    notes = [f"Linearised after {before} steps ({s.logs:g} ln {s.width}); seeds: {s.seeds}."]
    return Outcome(claims, {"rates": rows, "cells": cells}, {"accuracy": panel}, notes)


def _cell(problem: Start, data: Dataset, c: float, recipe: Recipe, steps: int) -> dict[str, Any]:
    """Both continuations of one run, and the linear one from the start."""
    eta = problem.eta(c, recipe)
    problem.model.load_state_dict(problem.state)
    from_start = _linear(problem, data, eta, recipe.steps_at(eta) + steps)
    first = train(problem, eta, recipe)
    dead = is_dead(last(first, "worst_inactive"))
    if first["diverged_at"] >= 0 or dead:  # a dead net is linear, which is no finding
        return {"diverged_at": first["diverged_at"], "dead": dead, "eta_lambda": None} | {
            "nonlinear": None,
            "linear": None,
            "linear_diverged": None,
            "start_diverged": from_start is None,
        }
    x, y = data.train
    value, _, _ = top_curvature(problem.model, problem.loss, x, y, problem.top.vector, recipe.tol)
    linear = _linear(problem, data, eta, steps)
    nonlinear = _continue(problem, data, eta, steps)
    return {
        "diverged_at": -1,
        "dead": False,
        "eta_lambda": eta * value,
        "nonlinear": nonlinear,
        "linear": linear,
        "linear_diverged": linear is None,
        "start_diverged": from_start is None,
    }


@torch.no_grad()
def _linear(problem: Start, data: Dataset, eta: float, steps: int) -> float | None:
    """Test accuracy of the model linearised here and trained on; None if its loss passed the cut.

    The residual follows r <- r - (eta/m) J J' r exactly; the weights have then moved by
    -(eta/m) J' sum_t r_t, which gives the test outputs by one more product.
    """
    assert isinstance(problem.loss, SquaredLoss)
    (x, y), (x_test, y_test) = data.train, data.test
    frozen = freeze(problem.model, x)
    m = problem.loss.normaliser(frozen.outputs, y)
    residual = (frozen.outputs - y).reshape(-1, 1)
    total = torch.zeros_like(residual)
    for _ in range(steps):
        total += residual
        residual = residual - (eta / m) * frozen.ntk(residual)
        if not residual.square().sum().item() / (2 * m) <= problem.cut:
            return None
    tested = freeze(problem.model, x_test)
    moved = tested.jvp(frozen.vjp(total)) * (-eta / m)
    return accuracy(tested.outputs + moved.reshape(tested.outputs.shape), y_test)


def _continue(problem: Start, data: Dataset, eta: float, steps: int) -> float | None:
    """Test accuracy of the net itself after further steps; its parameters move."""
    x_test, y_test = data.test
    for step in full_batch(problem.model, data.train, problem.loss, steps, eta):
        if not step.loss <= problem.cut:
            return None
    with torch.no_grad():
        return accuracy(problem.model(x_test), y_test)


def _row(c: float, cells: list[dict[str, Any]]) -> Row:
    pairs = [
        (x["nonlinear"], x["linear"])
        for x in cells
        if x["nonlinear"] is not None and x["linear"] is not None
    ]
    return {
        "c": c,
        "runs": len(cells),
        "diverged": sum(x["diverged_at"] >= 0 for x in cells),
        "dead": sum(x["dead"] for x in cells),
        "eta_lambda_then": mean(x["eta_lambda"] for x in cells),
        "eta_lambda_then_max": max(
            (x["eta_lambda"] for x in cells if x["eta_lambda"] is not None), default=None
        ),
        **averages({"nonlinear": [a for a, _ in pairs], "linear": [b for _, b in pairs]}),
        "linear_diverged": sum(bool(x["linear_diverged"]) for x in cells),
        "start_diverged": sum(x["start_diverged"] for x in cells),
    }


def _claim_same(rows: list[Row]) -> Claim:
    """Accuracies within two standard errors (their difference, errors added in squares)."""
    kept = [r for r in rows if r["linear"] is not None and r["linear_se"] is not None]
    apart = []
    for r in kept:
        error = math.hypot(r["linear_se"], r["nonlinear_se"])
        if abs(r["linear"] - r["nonlinear"]) > 2 * error or r["linear_diverged"]:
            apart.append(r["c"])
    text = "; ".join(
        f"c = {r['c']:g}: {show(r['nonlinear'], '.4f')} and {show(r['linear'], '.4f')}"
        for r in kept
    )
    whole = len(kept) == len(rows) and not any(r["diverged"] or r["dead"] for r in rows)
    why = "the kernel still moves at this width: it differs at c = "
    why += ", ".join(f"{c:g}" for c in apart)
    return Claim(
        "linear = non-linear after the catapult",
        "for c in (2, 4) the accuracy of the continuation linearised after the catapult is that of "
        "the net itself, within two standard errors",
        f"non-linear and linearised: {text or 'no pair'}",
        False if apart else True if kept and whole else None,
        why if apart else "runs diverged or died, or there is one seed",
    )


def _claim_start(rows: list[Row]) -> Claim:
    above = [r for r in rows if r["c"] > 2]
    lost, runs = sum(r["start_diverged"] for r in above), sum(r["runs"] for r in above)
    return Claim(
        "linearised at the start the same rates diverge",
        "above 2/lambda_0 the model linearised at initialisation diverges",
        f"{lost} of {runs} runs exceeded the cut",
        lost == runs if runs else None,
        "just above 2 the growth per step is too slow for these few steps"
        if runs
        else "no rate above 2",
    )


def _claim_settled(rows: list[Row]) -> Claim:
    worst = max((r["eta_lambda_then_max"] or 0.0 for r in rows), default=None)
    return Claim(
        "settled by then",
        "after of order log n steps lambda is below 2/eta",
        f"largest eta*lambda at the linearisation: {show(worst)}",
        None if not worst else worst < 2,
        "more steps are needed at this width" if worst else "every run diverged or died before",
    )
