"""Seven optimizers at their edge of stability: chi and zeta over a decade of rates (2608.18415)."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from torch.nn import functional

from catapult_ext import _validate as v
from catapult_ext import losses
from catapult_ext.data import Dataset
from catapult_ext.experiments.edge_runs import OPTIMIZERS, Record, follow, near_the_edge
from catapult_ext.experiments.reproduce import edge_claims as judged
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import Outcome, Row, median
from catapult_ext.experiments.reproduce.settings import setting
from catapult_ext.figures.line_panel import Panel, Series, SideBySide
from catapult_ext.models import build

TITLE = "seven optimizers at their edge of stability"
SOURCE = (
    "2608.18415: the realized edge zeta is 1 whatever the optimizer, the spectral position chi is "
    "not; Cohen et al. (2103.00065): sharpness rises to 2/eta and stays"
)
LOSSES = ("half_mse", "cross_entropy")
SHOWN = 4.0  # a picture cuts larger chi
# Largest rate of each decade, for tanh nets of torch's own initialisation: a few hundred steps
# bring its upper half to the edge.
LARGEST = {
    "gd": 0.3,
    "heavy-ball": 0.3,
    "nesterov": 0.3,
    "adam": 3e-3 * 10**0.5,
    "adamw": 3e-3 * 10**0.5,
    "rmsprop": 1e-3,
    "adagrad": 0.1,
}


@dataclass(frozen=True)
class Settings:
    """Settings of edge-of-stability; full batch, torch's own initialisation.

    Attributes:
        data: name of the data set.
        train: training samples.
        width: units of each hidden layer.
        depth: hidden layers.
        activation: name in ``models.ACTIVATIONS``.
        losses: names of losses, ``half_mse`` or ``cross_entropy``.
        optimizers: names, keys of ``experiments.edge_runs.OPTIMIZERS``.
        rates: geometric grid over the decade below each largest rate.
        stretch: factor of all rates.
        steps: gradient steps.
        every: steps from one reading of chi to the next; zeta is read at every step.
        seed: seed of the initialisation.
        pool: side in pixels of the squares over which images are averaged.
    """

    data: str = "digits"
    train: int = 512
    width: int = 100
    depth: int = 3
    activation: str = "tanh"
    losses: tuple[str, ...] = LOSSES
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    rates: int = 3
    stretch: float = 1.0
    steps: int = 300
    every: int = 10
    seed: int = setting(0, least=0)
    pool: int = 1


SETTINGS = {
    "smoke": Settings(
        train=64, width=24, depth=2, optimizers=("gd", "adam"), rates=1, steps=40, every=10
    ),
    "cpu": Settings(),
    "real": Settings("fashion-mnist", 2000, 200, losses=("cross_entropy",), steps=250, pool=2),
    "full": Settings("cifar-10", 50_000, 200, 5, rates=5, steps=10_000, every=50),
}


def run(settings: Settings, context: Context) -> Outcome:
    """Train by every optimizer at every rate, and judge."""
    s = settings
    known = {"losses": (s.losses, LOSSES), "optimizers": (s.optimizers, OPTIMIZERS)}
    for name, (given, held) in known.items():
        text = f"{name} of edge-of-stability must be some of {', '.join(held)}"
        v.require(set(given) <= set(held), "reproduce", text, given)
    data = context.data(s.data, train=s.train, test=0, flatten=s.pool == 1)
    data = data if s.pool == 1 else _pooled(data, s.pool)
    plan = [
        (loss, optimizer, rate)
        for loss in s.losses
        for optimizer in s.optimizers
        for rate in decade(s.stretch * LARGEST[optimizer], s.rates)
    ]
    jobs = {
        f"{loss}_{name}_{rate:.3g}": functools.partial(_run, s, data, loss, name, rate)
        for loss, name, rate in plan
    }
    records = context.parts(jobs)
    runs = [row(*which, record) for which, record in zip(plan, records, strict=True)]
    pooled = [
        pool(loss, name, [r for p, r in zip(plan, records, strict=True) if p[:2] == (loss, name)])
        for loss in s.losses
        for name in s.optimizers
    ]
    claims = [claim for loss in s.losses for claim in judged.claims(loss, runs, pooled)]
    panels: dict[str, Panel | SideBySide] = {}
    for loss in s.losses:
        panels[f"medians_{loss}"] = _panel_medians(loss, s, runs)
        panels[f"course_{loss}"] = _panel_course(loss, plan, records)
    notes = [
        "Medians of chi and zeta from the first reading of chi above 0.75 to the last one.",
        "Pooled: over the readings of all rates. Published values: 50 000 images of CIFAR-10, five "
        "hidden layers of 200.",
    ]
    return Outcome(claims, {"runs": runs, "pooled": pooled}, panels, notes)


def _pooled(data: Dataset, side: int) -> Dataset:
    images, others = data.x_train, data.x_test
    text = f"pool = {side} of edge-of-stability needs images (N, C, S, S), S a multiple of it"
    fits = images.dim() == 4 and all(size % side == 0 for size in images.shape[2:])
    v.require(fits, "reproduce", text, tuple(images.shape))
    small, rest = (functional.avg_pool2d(x, side).flatten(1) for x in (images, others))
    return replace(data, x_train=small, x_test=rest)


def decade(largest: float, count: int) -> list[float]:
    """``count`` rates, geometric, from a tenth of the largest one to it."""
    return [largest * 10 ** (i / (count - 1) - 1) if count > 1 else largest for i in range(count)]


def _run(s: Settings, data: Dataset, loss: str, name: str, rate: float) -> Record:
    model = build(
        "fc",
        tuple(data.x_train.shape[1:]),
        data.outputs,
        width=s.width,
        depth=s.depth,
        activation_name=s.activation,
        parameterisation="standard",
        init="torch",
        seed=s.seed,
    ).to(data.x_train)
    optimizer = OPTIMIZERS[name](model.parameters(), rate)
    return follow(model, losses.resolve(loss), data.train, optimizer, s.steps, s.every)


def row(loss: str, name: str, rate: float, record: Record) -> Row:
    """Behaviour of one run near its edge."""
    chi, zeta = near_the_edge(record)
    ends = [value for value in record["loss"] if value is not None]
    return {
        "loss": loss,
        "optimizer": name,
        "rate": rate,
        "readings": len(chi),
        "chi": median(chi) if chi else None,
        "zeta": median(zeta) if zeta else None,
        "highest_chi": max((c for c in record["chi"] if c is not None), default=None),
        "loss_end": ends[-1] if ends else None,
        "diverged": record["diverged"],
    }


def pool(loss: str, name: str, records: list[Record]) -> Row:
    """One optimizer, all rates; runs that diverged are left out."""
    kept = [near_the_edge(record) for record in records if not record["diverged"]]
    chi = [value for c, _ in kept for value in c]
    zeta = [value for _, z in kept for value in z]
    published = judged.PUBLISHED.get(name) if loss == "cross_entropy" else None
    return {
        "loss": loss,
        "optimizer": name,
        "runs_at_the_edge": sum(bool(c) for c, _ in kept),
        "readings": len(chi),
        "chi": median(chi) if chi else None,
        "zeta": median(zeta) if zeta else None,
        "published_chi": published,
    }


def _panel_medians(loss: str, s: Settings, runs: list[Row]) -> SideBySide:
    """Chi and zeta by rate, as a share of each optimizer's largest one."""
    sides = []
    for key, name in (("chi", "chi = eta S / k*"), ("zeta", "zeta = 1 + dL / (eta g.u)")):
        series = []
        for optimizer in s.optimizers:
            own = [r for r in runs if (r["loss"], r["optimizer"]) == (loss, optimizer)]
            own = [r for r in own if r[key] is not None and not r["diverged"]]
            largest = s.stretch * LARGEST[optimizer]
            at = [r["rate"] / largest for r in own]
            series.append(Series(optimizer, at, [r[key] for r in own]))
        label = "rate / largest rate of the optimizer"
        sides.append(Panel(name, label, "median near the edge", series, True, hlines={"edge": 1.0}))
    return SideBySide(f"Spectral position and realized edge, {loss}", sides[0], sides[1])


def _panel_course(loss: str, plan: list[tuple[str, str, float]], records: list[Record]) -> Panel:
    """Chi along the run of each optimizer that stays near its edge longest."""
    longest: dict[str, tuple[float, Record]] = {}
    for (of, name, rate), record in zip(plan, records, strict=True):
        best = longest.get(name)
        if of == loss and not record["diverged"]:
            longer = best is None or len(near_the_edge(record)[0]) > len(near_the_edge(best[1])[0])
            longest[name] = (rate, record) if longer else longest[name]
    series = []
    for name, (rate, record) in longest.items():
        read = [(a, c) for a, c in zip(record["at"], record["chi"], strict=True) if c is not None]
        at, chi = [float(a) for a, _ in read], [min(c, SHOWN) for _, c in read]
        series.append(Series(f"{name}, {rate:.3g}", at, chi, style="-"))
    return Panel(
        f"chi along the longest stay near the edge, {loss} (cut at {SHOWN:g})",
        "step",
        "chi = eta S / k*",
        series,
        hlines={"edge": 1.0},
    )
