"""Phase diagrams of real networks: the learning rate against width, depth, batch and scale."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from catapult_ext.data import Dataset
from catapult_ext.experiments.descent import Recipe, Run, Start, start
from catapult_ext.experiments.reproduce import phase_plane_claims as claims
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import Claim, Outcome, Row
from catapult_ext.experiments.reproduce.phase_plane_table import boundaries, cells, picture
from catapult_ext.experiments.reproduce.settings import setting
from catapult_ext.experiments.stacked_descent import descend_all
from catapult_ext.models import NTKLinear, build
from catapult_ext.probes import classify

TITLE = "phase diagrams of real networks"
SOURCE = "Lewkowycz et al., the phases of figure 1 and App. B as planes of a trained ReLU net"
LOSS = "half_mse_mean"
USUAL = {"loss": LOSS}
TOL_AT_START = 1e-3  # of lambda_0, which sets the rates
# 24 rates, evenly spaced on a logarithmic scale, none of them at 2.
RATES = (
    *(0.5, 0.6, 0.75, 0.9, 1.1, 1.35, 1.6, 1.9, 2.1, 2.4, 2.8, 3.3),
    *(4.0, 4.8, 5.7, 6.8, 8.0, 9.6, 11.5, 13.8, 16.5, 20.0, 24.0, 29.0),
)
WIDTHS = (
    *(16, 18, 20, 23, 26, 29, 33, 37, 42, 47, 53, 60),
    *(68, 77, 87, 98, 110, 124, 140, 158, 179, 202, 227, 256),
)
PLANES = ("width", "depth", "batch", "scale")
LABELS = {
    "width": "width",
    "depth": "hidden layers",
    "batch": "samples of a step",
    "scale": "output scale",
}


@dataclass(frozen=True)
class Settings:
    """Settings of phase-plane; NTK parameterisation, sigma_w^2 = 2, loss 1/(2 N O) sum |f - y|^2.

    Attributes:
        planes: the axes drawn against c, of width, depth, batch and scale.
        data: name of the data set.
        train: training samples.
        test: test samples; None for all others.
        c: learning rates in units of 1 / lambda_0.
        widths: units of each hidden layer, on the plane of widths.
        depths: hidden layers, on the plane of depths.
        batches: samples of a step, on the plane of batches; ``train`` and more for all of them.
        scales: factors of the outputs, on the plane of scales.
        width: units on the other planes.
        depth: hidden layers on the other planes.
        activation: between the layers.
        seeds: number of initialisations of every row.
        steps: gradient steps of every run.
        tol: relative error of the curvature at the end.
    """

    planes: tuple[str, ...] = PLANES
    data: str = "digits"
    train: int = 512
    test: int | None = setting(None, least=0)
    c: tuple[float, ...] = setting(RATES, ascending=True)
    widths: tuple[int, ...] = setting(WIDTHS, ascending=True)
    depths: tuple[int, ...] = setting((1, 2, 3, 4, 5, 6, 8), ascending=True)
    batches: tuple[int, ...] = setting((8, 16, 32, 64, 128, 256, 512), ascending=True)
    scales: tuple[float, ...] = setting((0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0), ascending=True)
    width: int = 64
    depth: int = 3
    activation: str = "relu"
    seeds: int = 3
    steps: int = 100
    tol: float = setting(1e-2, above=0, below=1)


SETTINGS = {
    "smoke": Settings(
        train=48,
        test=60,
        c=(1, 3, 9, 60),
        widths=(8, 24),
        depths=(1, 2),
        batches=(16, 48),
        scales=(0.5, 2.0),
        width=16,
        depth=2,
        seeds=2,
        steps=12,
    ),
    "cpu": Settings(),
    "full": Settings(
        data="mnist", train=2048, test=10_000, width=512, steps=500, seeds=5,
        widths=(64, 128, 256, 512, 1024, 2048), batches=(16, 32, 64, 128, 256, 512, 1024, 2048),
    ),
}  # fmt: skip


def run(settings: Settings, context: Context) -> Outcome:
    """Train every plane, draw it with its boundaries and judge the claims."""
    s = settings
    unknown = [name for name in s.planes if name not in PLANES]
    if unknown:
        raise ValueError(
            f"catapult_ext.reproduce: planes of phase-plane must be of {', '.join(PLANES)}, got "
            f"{', '.join(unknown)}"
        )
    data = context.data(s.data, train=s.train, test=s.test, flatten=True)
    jobs = {
        _name(plane, value, seed): functools.partial(_row, s, data, plane, value, seed)
        for plane in s.planes
        for value in axis(s, plane)
        for seed in range(s.seeds)
    }
    records = context.parts(jobs)
    found: list[Claim] = []
    tables: dict[str, list[Row]] = {}
    panels = {}
    for plane in s.planes:
        held = [r for r in records if r["plane"] == plane]
        table, lines = cells(held), boundaries(held)
        tables |= {f"{plane}_boundaries": lines, plane: table}
        title = f"Phases of a real net: c against {LABELS[plane]}"
        drawn = picture(title, LABELS[plane], table, lines)
        panels[plane] = dataclasses.replace(drawn, note=_note(s, plane))
        found += claims.of(plane, held, table, lines)
    notes = [
        f"Each row has {s.seeds} initialisations and each its own lambda_0; means with standard "
        "errors over them. c_max is the largest rate up to which no rate of the seed diverged or "
        "left a layer with more than 95 % inactive units; c_loss the first rate whose loss rose.",
        "Equal numbers of steps favour large rates.",
    ]
    return Outcome(found, tables, panels, notes)


def axis(s: Settings, plane: str) -> tuple[float, ...]:
    """The values of a plane's rows."""
    return {"width": s.widths, "depth": s.depths, "batch": s.batches, "scale": s.scales}[plane]


def _note(s: Settings, plane: str) -> str:
    """Data, net, loss and seeds of a plane in one line."""
    net = {"width": f"width {s.width}", "depth": f"{s.depth} hidden layers"}
    held = [f"{s.data}, {s.train} samples", *(text for k, text in net.items() if k != plane)]
    return ", ".join([*held, s.activation, LOSS, f"{s.seeds} seeds", f"{s.steps} steps"])


def _name(plane: str, value: float, seed: int) -> str:
    return f"{plane}_{value:g}_s{seed}"


def _row(s: Settings, data: Dataset, plane: str, value: float, seed: int) -> dict[str, Any]:
    """All rates of one initialisation on one row of a plane: one part of the run."""
    problem, recipe = problem_of(s, data, plane, value, seed)
    etas = [problem.eta(c, recipe) for c in s.c]
    made = descend_all(problem, etas, recipe, seed=seed)
    return {
        "plane": plane,
        "value": value,
        "seed": seed,
        "lambda0": problem.lambda0,
        "lambda0_error": problem.top.error,
        "loss0": problem.loss0,
        "runs": [
            _cell(c, eta, problem.lambda0, run) for c, eta, run in zip(s.c, etas, made, strict=True)
        ],
    }


def problem_of(
    s: Settings, data: Dataset, plane: str, value: float, seed: int
) -> tuple[Start, Recipe]:
    """The network of a seed at its start on one row of a plane, and how it trains."""
    at = {"width": s.width, "depth": s.depth, "batch": s.train, "scale": 1.0, plane: value}
    batch = None if at["batch"] >= len(data.x_train) else int(at["batch"])
    recipe = Recipe(steps=s.steps, batch=batch, probe_factor=math.inf, tol=s.tol)
    net = build(
        "fc",
        data.x_train.shape[1:],
        data.outputs,
        width=int(at["width"]),
        depth=int(at["depth"]),
        activation_name=s.activation,
        seed=seed,
    )
    _scaled(net, at["scale"])
    return start(net, data, LOSS, recipe, tol=TOL_AT_START), recipe


def _scaled(net: nn.Module, scale: float) -> None:
    """Multiply the outputs: the last layer's products by ``scale``."""
    last = [m for m in net.modules() if isinstance(m, NTKLinear)][-1]
    last.sigma_w *= scale


def _cell(c: float, eta: float, lambda0: float, run: Run) -> dict[str, Any]:
    """The stored record of one run."""
    row: Any = run.rows[-1] if run.diverged_at < 0 else {}
    verdict = classify(
        eta,
        lambda0,
        run.losses,
        lambda_end=row.get("lambda"),
        diverged_at=run.diverged_at,
        inactive=row.get("worst_inactive"),
        c=c,
    )
    e = verdict.evidence
    return {
        "c": c,
        "eta": eta,
        "phase": verdict.phase,
        "flags": list(verdict.flags),
        "stable": verdict.stable,
        "rose_at": e.loss_rose_at,
        "peak": e.loss_peak,
        "diverged_at": run.diverged_at,
        "eta_lambda_end": e.eta_lambda_end,
        "lambda_error": row.get("lambda_error"),
        "train_loss": row.get("train_loss"),
        "test_loss": row.get("test_loss"),
        "test_accuracy": row.get("test_accuracy"),
        "inactive": row.get("worst_inactive"),
    }
