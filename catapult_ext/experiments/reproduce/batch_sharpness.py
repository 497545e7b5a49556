"""Stochastic gradient descent at its edge: batch sharpness rises to 2/eta (2412.20553)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from catapult_ext import _validate as v
from catapult_ext import losses
from catapult_ext.data import Dataset
from catapult_ext.experiments.noisy_edge import Record, follow_batches
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import Claim, Outcome, Row, mean, show
from catapult_ext.experiments.reproduce.settings import setting
from catapult_ext.figures.line_panel import Panel, Series, SideBySide
from catapult_ext.models import build

TITLE = "batch sharpness at the edge of stochastic gradient descent"
SOURCE = (
    "Andreyev and Beneventano (2412.20553): with mini-batches E[g.Hg / |g|^2], g and H of the "
    "batch, settles at 2/eta, and the top Hessian eigenvalue lies below"
)
WITHIN = 0.2  # "at 2/eta"
LATE = 0.5  # last share of a run that is judged
RESPONSE = 1.3  # factor by which half the rate, twice the edge, must raise batch sharpness
USUAL = {"loss": "half_mse"}


@dataclass(frozen=True)
class Settings:
    """Settings of batch-sharpness; tanh nets of torch's own initialisation, ``half_mse``.

    Attributes:
        data: name of the data set.
        train: training samples.
        width: units of each hidden layer.
        depth: hidden layers.
        rate: learning rate.
        batches: samples of a step; one of them may be all.
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
    batches: tuple[int, ...] = (4, 16, 64, 512)
    steps: int = 3000
    every: int = 150
    draws: int = 100
    seed: int = setting(0, least=0)


SETTINGS = {
    "smoke": Settings(train=32, width=8, batches=(4, 32), steps=40, every=10, draws=16),
    "cpu": Settings(),
    "full": Settings(
        "cifar-10", 8192, 512, 2, 0.01, (8, 64, 512, 8192), steps=150_000, every=5000, draws=1000
    ),
}


def run(settings: Settings, context: Context) -> Outcome:
    """Train on batches of every size, change the rate or the batch half way, and judge."""
    s = settings
    fits = max(s.batches) <= s.train
    v.require(fits, "reproduce", "batches of batch-sharpness must be <= train", max(s.batches))
    data = context.data(s.data, train=s.train, test=0, flatten=True)
    small, half = min(s.batches), s.steps // 2
    plan: dict[str, tuple[int, Mapping[str, float] | None]] = {
        f"batch_{b}": (b, None) for b in s.batches
    }
    plan["half_rate"] = (small, {"lr": s.rate / 2})
    plan["four_batches"] = (small, {"batch": 4 * small})
    jobs = {}
    for name, (batch, options) in plan.items():
        change = None if options is None else (half, options)
        jobs[name] = functools.partial(_run, s, data, batch, change)
    records = dict(zip(plan, context.parts(jobs), strict=True))
    rows = [row(s.rate, b, records[f"batch_{b}"]) for b in s.batches]
    changed = {
        name: response(s.every, half, records[name]) for name in ("half_rate", "four_batches")
    }
    changes: list[Row] = [{"change": name} | found for name, found in changed.items()]
    claims = [
        *(claim_hovers(r, s.train) for r in rows),
        claim_below(rows),
        claim_flatter(rows),
        claim_response(changed["half_rate"]),
    ]
    notes = [f"Means over the last {LATE:.0%} of {s.steps} steps, in units of 2/eta."]
    panels: dict[str, Panel | SideBySide] = {"batches": _panel(s, records)}
    panels["changes"] = _panel_changes(s, half, records)
    return Outcome(claims, {"batches": rows, "changes": changes}, panels, notes)


def network(data: Dataset, width: int, depth: int, seed: int) -> nn.Module:
    """A tanh net of torch's own initialisation."""
    return build(
        "fc",
        tuple(data.x_train.shape[1:]),
        data.outputs,
        width=width,
        depth=depth,
        activation_name="tanh",
        parameterisation="standard",
        init="torch",
        seed=seed,
    ).to(data.x_train)


def _run(
    s: Settings, data: Dataset, batch: int, change: tuple[int, Mapping[str, float]] | None
) -> Record:
    model = network(data, s.width, s.depth, s.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=s.rate)
    loss = losses.resolve("half_mse")
    given = (batch, s.steps, s.every, s.seed)
    return follow_batches(model, loss, data.train, optimizer, *given, draws=s.draws, change=change)


def late(record: Record, key: str, scale: float) -> float | None:
    """Mean of a column over the last part of a run, times ``scale``; None where it diverged."""
    if record["diverged"]:
        return None
    values = record[key][int((1 - LATE) * len(record[key])) :]
    found = mean(values)
    return None if found is None else scale * found


def row(rate: float, batch: int, record: Record) -> Row:
    """One batch size, in units of 2/eta."""
    found: Row = {"batch": batch, "diverged": record["diverged"]}
    for key in ("batch_sharpness", "weighted", "sharpness"):
        found[key] = late(record, key, rate / 2)
    return found | {"loss_end": record["loss"][-1]}


def response(every: int, half: int, record: Record) -> Row:
    """Both sharpnesses before the change and at the end: means of a quarter of the run each."""
    found: Row = {}
    at, count = half // every, max(1, half // every // 2)
    for key in ("batch_sharpness", "sharpness"):
        lost = record["diverged"] or len(record[key]) <= at
        found[f"{key}_before"] = None if lost else mean(record[key][at - count : at])
        found[f"{key}_after"] = None if lost else mean(record[key][-count:])
    return found


def claim_hovers(r: Row, train: int) -> Claim:
    """Batch sharpness is at 2/eta."""
    found = r["batch_sharpness"]
    whole = r["batch"] >= train
    text = f"{show(found)} times 2/eta (weighted by the gradient {show(r['weighted'])})"
    return Claim(
        f"batch sharpness at 2/eta, {'full batch' if whole else 'batches of ' + str(r['batch'])}",
        "batch sharpness settles at 2/eta (within 20 %)",
        text if found is not None else "the run diverged",
        abs(found - 1) <= WITHIN if found is not None else None,
        "the data are fitted before the sharpness has risen" if found is not None else "diverged",
    )


def claim_below(rows: list[Row]) -> Claim:
    """The top eigenvalue lies below batch sharpness in the smallest batches."""
    r = rows[0]
    top, batch = r["sharpness"], r["batch_sharpness"]
    return Claim(
        "top eigenvalue below",
        "with small batches the top Hessian eigenvalue stays below batch sharpness and 2/eta",
        f"batches of {r['batch']}: {show(top)} and {show(batch)} times 2/eta",
        top < min(1.0, batch) if top is not None and batch is not None else None,
        "the run diverged" if top is None else "the batches hold most of the data",
    )


def claim_flatter(rows: list[Row]) -> Claim:
    """Smaller batches end in flatter places."""
    kept = [r for r in rows if r["sharpness"] is not None]
    tops = [r["sharpness"] for r in kept]
    return Claim(
        "smaller batches are flatter",
        "the top Hessian eigenvalue grows with the batch",
        ", ".join(f"{r['batch']}: {r['sharpness']:.3g}" for r in kept) or "all runs diverged",
        all(a < b for a, b in itertools.pairwise(tops)) if len(tops) > 1 else None,
        "neighbouring batches cannot be told apart" if len(tops) > 1 else "the others diverged",
    )


def claim_response(found: Row) -> Claim:
    """Half the rate doubles the edge, and batch sharpness follows."""
    before, after = found["batch_sharpness_before"], found["batch_sharpness_after"]
    decided = before is not None and after is not None
    return Claim(
        "half the rate",
        f"half the rate in mid-run lets batch sharpness rise again (by {RESPONSE:g} at least)",
        f"{show(before)} before, {show(after)} after" if decided else "the run diverged",
        after >= RESPONSE * before if before is not None and after is not None else None,
        "little progressive sharpening is left once the data are fitted" if decided else "diverged",
    )


def _panel(s: Settings, records: Mapping[str, Record]) -> SideBySide:
    sides = []
    for key, title in (("batch_sharpness", "batch sharpness"), ("sharpness", "top eigenvalue")):
        series = [_series(f"batches of {b}", records[f"batch_{b}"], key, s.rate) for b in s.batches]
        sides.append(Panel(title, "step", "units of 2/eta", series, hlines={"2/eta": 1.0}))
    return SideBySide(f"Stochastic gradient descent, eta = {s.rate:g}", sides[0], sides[1])


def _series(name: str, record: Record, key: str, rate: float) -> Series:
    read = [(float(a), b) for a, b in zip(record["at"], record[key], strict=True) if b is not None]
    return Series(name, [a for a, _ in read], [rate / 2 * b for _, b in read], style="-")


def _panel_changes(s: Settings, half: int, records: Mapping[str, Record]) -> Panel:
    names = {f"batch_{min(s.batches)}": "no change", "half_rate": "half the rate"}
    names["four_batches"] = "four times the batch"
    series = [_series(label, records[n], "batch_sharpness", s.rate) for n, label in names.items()]
    title = f"Batch sharpness around a change, batches of {min(s.batches)}"
    marks = {"edge of the first rate": 1.0, "edge of half the rate": 2.0}
    return Panel(title, "step", "units of 2/eta", series, vlines={"change": half}, hlines=marks)
