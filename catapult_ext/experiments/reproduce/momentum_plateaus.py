"""Momentum has two plateaus: 2 (1 - beta)/eta in small batches, 2 (1 + beta)/eta in large ones."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from catapult_ext import _validate as v
from catapult_ext import losses
from catapult_ext.data import Dataset
from catapult_ext.experiments.noisy_edge import Record, follow_batches
from catapult_ext.experiments.reproduce.batch_sharpness import LATE, late, network
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import Claim, Outcome, Row, show
from catapult_ext.experiments.reproduce.settings import setting
from catapult_ext.figures.line_panel import Panel, Series

TITLE = "two plateaus of momentum"
SOURCE = (
    "2604.14108: in small batches momentum acts like a rate eta / (1 - beta): batch sharpness "
    "settles at 2 (1 - beta)/eta; in large ones its own filter counts, 2 (1 + beta)/eta, with "
    "Nesterov's 2 (1 + beta)/(eta (1 + 2 beta))"
)
SMALL, LARGE = 0.25, 0.1  # "at its plateau": relative distance
EQUAL = 0.15  # "the same plateau"
USUAL = {"loss": "half_mse"}


@dataclass(frozen=True)
class Settings:
    """Settings of momentum-plateaus; tanh nets of torch's own initialisation, ``half_mse``.

    Attributes:
        data: name of the data set.
        train: training samples.
        width: units of each hidden layer.
        depth: hidden layers.
        rate: rate of gradient descent in batches; momentum uses it times 1 - beta.
        full_rate: rate of gradient descent on the full batch; momentum uses it times 1 + beta,
            Nesterov times (1 + beta) / (1 + 2 beta).
        beta: momentum.
        batches: samples of a step of the runs on the first plateau.
        steps: gradient steps.
        every: steps from reading to reading.
        draws: most batches of a reading.
        seed: seed of initialisation and batches.
    """

    data: str = "digits"
    train: int = 512
    width: int = 32
    depth: int = 2
    rate: float = 0.4
    full_rate: float = 0.2
    beta: float = setting(0.9, above=0, below=1)
    batches: tuple[int, ...] = setting((4, 16, 64), least=1, ascending=True)
    steps: int = 3000
    every: int = 150
    draws: int = 100
    seed: int = setting(0, least=0)


SETTINGS = {
    "smoke": Settings(train=32, width=8, batches=(4, 8), steps=40, every=10, draws=16),
    "cpu": Settings(),
    "full": Settings(
        "cifar-10", 8192, 512, rate=0.01, full_rate=0.01, batches=(4, 16, 64, 256), steps=150_000,
        every=5000, draws=1000,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Plateau:
    """One run: optimizer, batch, and its predicted plateau times eta."""

    name: str
    optimizer: str
    batch: int
    edge: float


def plan(s: Settings) -> list[Plateau]:
    """The runs."""
    low, high = 2 * (1 - s.beta), 2 * (1 + s.beta)
    runs = [Plateau(f"heavy-ball_batch_{b}", "heavy-ball", b, low) for b in s.batches]
    runs += [Plateau(f"gd_batch_{min(s.batches)}", "gd", min(s.batches), 2.0)]
    runs += [Plateau("gd_full", "gd", s.train, 2.0)]
    runs += [Plateau("heavy-ball_full", "heavy-ball", s.train, high)]
    return [*runs, Plateau("nesterov_full", "nesterov", s.train, high / (1 + 2 * s.beta))]


def run(settings: Settings, context: Context) -> Outcome:
    """Train by every optimizer on every batch, and judge."""
    s = settings
    fits = max(s.batches) < s.train
    v.require(fits, "reproduce", "batches of momentum-plateaus must be < train", max(s.batches))
    data = context.data(s.data, train=s.train, test=0, flatten=True)
    runs = plan(s)
    records = context.parts({p.name: functools.partial(_run, s, data, p) for p in runs})
    rows = [row(s, p, record) for p, record in zip(runs, records, strict=True)]
    by_name = {r["run"]: r for r in rows}
    small = by_name[f"heavy-ball_batch_{min(s.batches)}"]
    claims = [
        claim_plateau("small batches", "2 (1 - beta)/eta", small, "batch_sharpness", SMALL),
        claim_equal(small, by_name[f"gd_batch_{min(s.batches)}"]),
        claim_leaves([by_name[f"heavy-ball_batch_{b}"] for b in s.batches]),
        claim_plateau(
            "full batch", "2 (1 + beta)/eta", by_name["heavy-ball_full"], "sharpness", LARGE
        ),
        claim_plateau(
            "Nesterov, full batch",
            "2 (1 + beta)/(eta (1 + 2 beta))",
            by_name["nesterov_full"],
            "sharpness",
            LARGE,
        ),
    ]
    notes = [f"Means over the last {LATE:.0%} of {s.steps} steps, in units of the plateau."]
    panel = _panel(s, runs, records)
    return Outcome(claims, {"runs": rows}, {"plateaus": panel}, notes)


def _run(s: Settings, data: Dataset, p: Plateau) -> Record:
    model = network(data, s.width, s.depth, s.seed)
    beta = 0.0 if p.optimizer == "gd" else s.beta
    optimizer = torch.optim.SGD(
        model.parameters(), lr=_rate(s, p), momentum=beta, nesterov=p.optimizer == "nesterov"
    )
    loss = losses.resolve("half_mse")
    given = (p.batch, s.steps, s.every, s.seed)
    return follow_batches(model, loss, data.train, optimizer, *given, draws=s.draws)


def _rate(s: Settings, p: Plateau) -> float:
    return (s.full_rate if p.batch >= s.train else s.rate) * p.edge / 2


def row(s: Settings, p: Plateau, record: Record) -> Row:
    """One run in units of its plateau."""
    scale = _rate(s, p) / p.edge
    found: Row = {"run": p.name, "optimizer": p.optimizer, "batch": p.batch, "rate": _rate(s, p)}
    for key in ("batch_sharpness", "weighted", "sharpness"):
        found[key] = late(record, key, scale)
    return found | {"loss_end": record["loss"][-1], "diverged": record["diverged"]}


def claim_plateau(name: str, edge: str, r: Row, key: str, within: float) -> Claim:
    """The sharpness is at the plateau."""
    found = r[key]
    what = "batch sharpness" if key == "batch_sharpness" else "top sharpness"
    return Claim(
        f"plateau, {name}",
        f"{what} settles at {edge} (within {within:.0%})",
        f"{show(found)} times {edge}" if found is not None else "the run diverged",
        abs(found - 1) <= within if found is not None else None,
        "the data are fitted before the plateau is reached" if found is not None else "diverged",
    )


def claim_equal(ball: Row, plain: Row) -> Claim:
    """Momentum in small batches is gradient descent at eta / (1 - beta)."""
    one, two = ball["batch_sharpness"], plain["batch_sharpness"]
    decided = one is not None and two is not None
    return Claim(
        "the same plateau",
        "in small batches momentum at eta and SGD at eta / (1 - beta) settle alike (within 15 %)",
        f"batches of {ball['batch']}: {show(one)} with momentum, {show(two)} without it",
        abs(one / two - 1) <= EQUAL if one is not None and two is not None else None,
        "noise of one seed" if decided else "one of them diverged",
    )


def claim_leaves(rows: list[Row]) -> Claim:
    """Larger batches leave the first plateau upwards."""
    kept = [r for r in rows if r["sharpness"] is not None]
    return Claim(
        "leaving the first plateau",
        "at the same rate the top eigenvalue grows with the batch, towards the second plateau",
        ", ".join(f"{r['batch']}: {r['sharpness']:.3g}" for r in kept) or "all diverged",
        kept[-1]["sharpness"] > kept[0]["sharpness"] if len(kept) > 1 else None,
        "the batches are too alike" if len(kept) > 1 else "the others diverged",
    )


def _panel(s: Settings, runs: list[Plateau], records: list[Record]) -> Panel:
    series = []
    for p, record in zip(runs, records, strict=True):
        whole = p.batch >= s.train
        key = "sharpness" if whole else "batch_sharpness"
        read = [
            (float(a), b) for a, b in zip(record["at"], record[key], strict=True) if b is not None
        ]
        label = f"{p.optimizer}, {'full batch' if whole else 'batches of ' + str(p.batch)}"
        scale = _rate(s, p) / p.edge
        series.append(Series(label, [a for a, _ in read], [scale * b for _, b in read], style="-"))
    title = "Batch sharpness (full batch: top eigenvalue) over its predicted plateau"
    return Panel(title, "step", "units of the plateau", series, hlines={"plateau": 1.0})
