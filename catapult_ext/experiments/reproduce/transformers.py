"""Catapult, edge and largest working rate of a character-level GPT and a ViT, cross entropy."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext import losses
from catapult_ext.data import Dataset
from catapult_ext.experiments.descent import Recipe, Start, train
from catapult_ext.experiments.edge_runs import BETA, OPTIMIZERS, Record, follow
from catapult_ext.experiments.reproduce import grid
from catapult_ext.experiments.reproduce import transformers_claims as judged
from catapult_ext.experiments.reproduce.brackets import brackets
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.edge_of_stability import row as edge_row
from catapult_ext.experiments.reproduce.outcome import Outcome, Row, averages, line, median
from catapult_ext.experiments.reproduce.settings import setting
from catapult_ext.figures.line_panel import Panel, Series
from catapult_ext.models import build

TITLE = "catapults and edges of small transformers"
SOURCE = (
    "Lewkowycz et al. (2003.02218) for other nets and squared loss; Cohen et al. (2207.14484) and "
    "2608.18415 for momentum and Adam; here cross entropy, a GPT on characters and a ViT on images"
)
USUAL = {"loss": "cross_entropy"}
NETS = ("gpt", "vit")
# Thresholds of a quadratic in units of 1/lambda_0; None: the rates are no multiples of 1/lambda_0.
EDGES = {"gd": 2.0, "heavy-ball": 2 * (1 + BETA), "adam": None, "adamw": None}


@dataclass(frozen=True)
class Settings:
    """Settings of transformers; full batch, cross entropy.

    Attributes:
        data: name of the images of the ViT; the GPT reads ``data.sums``.
        train: training samples of either.
        width: width of the residual stream.
        depth: blocks.
        parameterisation: ``"standard"`` or ``"ntk"``.
        nets: ``gpt`` and ``vit``, or one of them.
        optimizers: names, some of gd, heavy-ball, adam and adamw.
        c: rates of gd and heavy-ball in units of 1 / lambda_0.
        rates: those of adam and adamw.
        seeds: number of initialisations.
        steps: gradient steps of every run.
        edge_steps: steps of a run per optimizer at half its largest working rate, for chi and zeta.
        every: steps from one reading of chi to the next.
        probe_samples: training samples that the curvature is measured on.
    """

    data: str = "digits"
    train: int = 256
    width: int = 32
    depth: int = 2
    parameterisation: str = "standard"
    nets: tuple[str, ...] = NETS
    optimizers: tuple[str, ...] = tuple(EDGES)
    c: tuple[float, ...] = setting((1, 1.5, 2.5, 4, 6, 8, 12, 16), ascending=True)
    rates: tuple[float, ...] = setting((3e-3, 1e-2, 3e-2, 1e-1, 3e-1), ascending=True)
    seeds: int = 2
    steps: int = 60
    edge_steps: int = 150
    every: int = 10
    probe_samples: int = 128

    @property
    def described(self) -> str:
        """Nets and data, for claims and pictures; the two nets read different data."""
        read = {"gpt": "gpt on sums", "vit": f"vit on {Path(self.data).name}"}
        nets = " and ".join(read[net] for net in self.nets)
        return (
            f"{nets}, {self.train} samples, width {self.width}, {self.depth} blocks, "
            f"cross_entropy, {self.seeds} seeds"
        )


SETTINGS = {
    "smoke": Settings(
        train=24, width=8, depth=1, optimizers=("gd", "adam"), c=(1, 4, 400), rates=(1e-2, 1e3),
        seeds=1, steps=6, edge_steps=8, every=4, probe_samples=8,
    ),
    "cpu": Settings(),
    "real": Settings("fashion-mnist", 1000, steps=100),
    "full": Settings("cifar-10", 50_000, 256, 8, seeds=5, steps=5000, edge_steps=10_000, every=50),
}  # fmt: skip


def run(settings: Settings, context: Context) -> Outcome:
    """Every net with every optimizer at every rate, one run each near its edge, and judge."""
    s = settings
    for name, given, held in (("nets", s.nets, NETS), ("optimizers", s.optimizers, EDGES)):
        text = f"{name} of transformers must be some of {', '.join(held)}"
        v.require(set(given) <= set(held), "reproduce", text, given)
    problems = {net: _problem(s, context, net) for net in s.nets}
    plan = [
        (net, optimizer, seed, rate)
        for net in s.nets
        for optimizer in s.optimizers
        for seed in range(s.seeds)
        for rate in _rates(s, optimizer)
    ]
    starts = functools.lru_cache(maxsize=1)(lambda net, seed: problems[net].start(_recipe(s), seed))
    jobs = {
        f"{net}_{optimizer}_s{seed}_{rate:g}": functools.partial(
            _run, s, starts, net, optimizer, seed, rate
        )
        for net, optimizer, seed, rate in plan
    }
    records = context.parts(jobs)
    kept = {
        (net, name): [r for p, r in zip(plan, records, strict=True) if p[:2] == (net, name)]
        for net in s.nets
        for name in s.optimizers
    }
    rows = [row for (net, name), held in kept.items() for row in _rows(net, name, held)]
    edges = _near_the_edge(s, context, problems, kept)
    claims = [claim for net in s.nets for claim in judged.claims(net, kept, edges, EDGES)]
    panels = {f"rates_{net}": _panel(net, rows) for net in s.nets}
    notes = [
        "gd and heavy-ball: rates in units of 1/lambda_0, lambda_0 the top eigenvalue of the "
        "Gauss-Newton matrix; adam and adamw: as they are. A run works that does not diverge and "
        "ends with a lower loss and no dead layer.",
    ]
    return Outcome(claims, {"rates": rows, "edges": edges}, panels, notes)


def _rates(s: Settings, optimizer: str) -> tuple[float, ...]:
    return s.rates if EDGES[optimizer] is None else s.c


def _problem(s: Settings, context: Context, net: str) -> grid.Problem:
    if net == "gpt":
        data = context.data("sums", train=s.train, test=0)
    else:
        data = context.data(s.data, train=s.train, test=0)

    def network(seed: int) -> Any:
        shape = tuple(data.x_train.shape[1:])
        how: dict[str, Any] = {"width": s.width, "depth": s.depth}
        how["parameterisation"] = s.parameterisation
        return build(net, shape, data.outputs, seed=seed, **how).to(data.y_train)

    return grid.Problem(network, data, "cross_entropy")


def _recipe(
    s: Settings, optimizer: Callable[[list[Tensor], float], torch.optim.Optimizer] | None = None
) -> Recipe:
    shared: dict[str, Any] = {"probe_factor": math.inf, "probe_samples": s.probe_samples}
    return Recipe(steps=s.steps, optimizer=optimizer, tol=1e-2, **shared)


def _run(
    s: Settings, starts: Callable[[str, int], Start], net: str, name: str, seed: int, rate: float
) -> dict[str, Any]:
    """One run; ``c`` is the rate as the settings give it."""
    begun = starts(net, seed)
    eta = rate if EDGES[name] is None else rate / begun.lambda0
    record = train(begun, eta, _recipe(s, OPTIMIZERS[name]), seed=seed)
    return {"seed": seed, **record, "c": rate, "squared": False}


def _rows(net: str, optimizer: str, records: list[dict[str, Any]]) -> list[Row]:
    rows = []
    for c in sorted({r["c"] for r in records}):
        held = [r for r in records if r["c"] == c]
        good = [r for r in held if judged.works(r)]
        row: Row = {"net": net, "optimizer": optimizer, "rate": c, "runs": len(held)}
        row |= {"work": len(good), "diverged": sum(r["diverged_at"] >= 0 for r in held)}
        row |= {"loss_rose": sum(r["rose_at"] >= 0 for r in held)}
        row |= {"loss_peak_ratio": median([r["loss_peak"] / r["loss0"] for r in held])}
        row |= averages({"loss_end": [grid.last(r, "train_loss") for r in good]})
        rows.append(row | averages({"lambda_end": [grid.last(r, "lambda") for r in good]}))
    return rows


def _near_the_edge(
    s: Settings,
    context: Context,
    problems: dict[str, grid.Problem],
    kept: dict[tuple[str, str], list[dict[str, Any]]],
) -> list[Row]:
    """Chi and zeta of the first seed at half the largest working rate of every optimizer."""
    jobs, names = {}, []
    for (net, name), records in kept.items():
        largest = brackets([r for r in records if r["seed"] == 0], judged.works)[0].stable
        eta = next((r["eta"] / 2 for r in records if r["seed"] == 0 and r["c"] == largest), None)
        if eta is not None:
            names.append((net, name, eta))
            follow_it = functools.partial(_follow, s, problems[net], name, eta)
            jobs[f"edge_{net}_{name}_{eta:.3g}"] = follow_it
    records = context.parts(jobs)
    return [
        {"net": net} | edge_row("cross_entropy", name, eta, record)
        for (net, name, eta), record in zip(names, records, strict=True)
    ]


def _follow(s: Settings, problem: grid.Problem, name: str, eta: float) -> Record:
    data: Dataset = problem.data
    model = problem.network(0)
    optimizer = OPTIMIZERS[name](model.parameters(), eta)
    loss = losses.resolve("cross_entropy")
    return follow(model, loss, data.train, optimizer, s.edge_steps, s.every)


def _panel(net: str, rows: list[Row]) -> Panel:
    """Loss at the end by the rate, of every optimizer as a share of its largest working one."""
    series: list[Series] = []
    for name in EDGES:
        own = [r for r in rows if (r["net"], r["optimizer"]) == (net, name)]
        largest = max((r["rate"] for r in own if r["work"]), default=None)
        if largest is not None:
            shown = [r | {"share": r["rate"] / largest} for r in own]
            drawn = line(f"{name} (1 is {largest:g})", shown, "loss_end", "share")
            lost = [r["work"] < r["runs"] for r in shown if r["loss_end"] is not None]
            series.append(replace(drawn, hollow=lost))
    return Panel(
        f"Loss at the end, {net}",
        "rate / largest working rate",
        "training loss",
        series,
        xlog=True,
        ylog=True,
    )
