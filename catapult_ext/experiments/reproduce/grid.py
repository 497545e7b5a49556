"""Learning rates x seeds of one network, and its table by rate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from catapult_ext.data import Dataset
from catapult_ext.experiments.descent import Recipe, Start, run_record, start
from catapult_ext.experiments.reproduce.brackets import Bracket
from catapult_ext.experiments.reproduce.brackets import brackets as between
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import (
    Row,
    averages,
    mean,
    median,
)
from catapult_ext.experiments.stacked_descent import chunks, descend_runs
from catapult_ext.probes import Verdict, classify

Record = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """The problem that the runs of a grid train: ``network`` of a seed on ``data`` with ``loss``.

    torch's generator has the seed while the network is made, and its own state again afterwards.
    """

    network: Callable[[int], nn.Module]
    data: Dataset
    loss: str

    def start(self, recipe: Recipe, seed: int) -> Start:
        """The network of a seed at its start."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.network(seed)
        return start(network, self.data, self.loss, recipe)

    def lambda0(self, context: Context, **settings: Any) -> float:
        """The first seed's lambda_0, a part of the run; ``settings`` are a recipe's."""
        recipe = Recipe(steps=1, **settings)
        return context.part("lambda0", lambda: {"value": self.start(recipe, 0).lambda0})["value"]


def run_grid(
    context: Context,
    label: str,
    problem: Problem,
    cs: Sequence[float],
    seeds: int,
    recipe: Recipe,
) -> list[Record]:
    """Every rate c / lambda_0 for every seed; each pair is a part of the run, stored when done.

    Small chains of dense layers train together, rates of one seed after those of another (where
    steps are full batches, else of each seed alone): a chunk's parts are stored once all its runs
    are done.

    Args:
        context: context of the experiment.
        label: prefix of the parts' names.
        problem: what is trained; started only where a part is missing, and only the latest seed's
            start is kept.
        cs: learning rates in units of 1 / (lambda_0 + l2), each seed with its own lambda_0.
        seeds: number of seeds.
        recipe: how to train.
    """
    pairs = [(seed, c) for seed in range(seeds) for c in cs]
    names = {pair: f"{label}_s{pair[0]}_c{pair[1]:g}" for pair in pairs}
    if not context.missing(names.values()):
        return context.collect(names.values())
    started = functools.lru_cache(maxsize=1)(functools.partial(problem.start, recipe))

    def compute(chunk: Sequence[tuple[int, float]]) -> list[Record]:
        starts = [started(seed) for seed, _ in chunk]
        etas = [start.eta(c, recipe) for start, (_, c) in zip(starts, chunk, strict=True)]
        runs = descend_runs(list(zip(starts, etas, strict=True)), recipe, seed=chunk[0][0])
        return [
            {
                "seed": seed,
                **run_record(run, start, eta, recipe),
                "c": c,
                "squared": start.loss.squared,
            }
            for run, start, eta, (seed, c) in zip(runs, starts, etas, chunk, strict=True)
        ]

    own = (
        [pairs] if recipe.batch is None else [[p for p in pairs if p[0] == s] for s in range(seeds)]
    )
    jobs = {}
    for group in own:  # runs that may share their batches
        for chunk in chunks(started(0), len(group), recipe):
            chosen = [group[i] for i in chunk]
            jobs[tuple(names[p] for p in chosen)] = functools.partial(compute, chosen)
    return context.parts_together(jobs)


def last(record: Record, key: str, mark: str = "end") -> float | None:
    """A value of the run's last probe with the given mark; None if the run diverged."""
    if record["diverged_at"] >= 0:
        return None
    rows = [r for r in record["probes"] if r["mark"] == mark]
    return rows[-1].get(key) if rows else None


def at_time(record: Record, time: float, key: str) -> float | None:
    """A value at physical time eta * t: of the first probe there; None if diverged before it."""
    for row in record["probes"]:
        if row["time"] >= time * (1 - 1e-9):
            return row.get(key)
    return last(record, key)


def verdict(record: Record) -> Verdict:
    """Phase and flags of a run."""
    return classify(
        record["eta"],
        record["c"] / record["eta"],
        record["loss"],
        lambda_end=last(record, "lambda"),
        diverged_at=record["diverged_at"],
        inactive=last(record, "worst_inactive"),
        squared=record.get("squared", True),
    )


def stable(record: Record) -> bool:
    """Neither diverged nor dead."""
    return verdict(record).stable


def by_rate(records: list[Record], time: float | None = None) -> list[Row]:
    """One row per c over the seeds: means with standard errors (``*_se``), medians of peaks.

    Means are over the runs that neither diverged nor died; ``runs``, ``diverged`` and ``dead`` say
    how many these are.
    """
    rows = []
    for c in sorted({r["c"] for r in records}):
        held = [r for r in records if r["c"] == c]
        live = [r for r in held if stable(r)]
        diverged = sum(r["diverged_at"] >= 0 for r in held)
        ratio = [r["eta"] * v for r in live if (v := last(r, "lambda")) is not None]
        row: Row = {
            "c": c,
            "eta": mean(r["eta"] for r in held),
            "runs": len(held),
            "diverged": diverged,
            "dead": len(held) - len(live) - diverged,
            "loss_rose": sum(r["rose_at"] >= 0 for r in held),
            "loss_peak_ratio": median([r["loss_peak"] / r["loss0"] for r in held]),
            "peak_step": median([r["loss_peak_at"] for r in held]),
            **averages({"eta_lambda_end": ratio}),
            "eta_lambda_end_max": max(ratio, default=None),
            "lambda_ratio": mean(v / r["lambda0"] for r in live if (v := last(r, "lambda"))),
            "train_loss": mean(last(r, "train_loss") for r in live),
            **averages({"test_accuracy": [last(r, "test_accuracy") for r in live]}),
            "inactive": mean(last(r, "inactive") for r in held),
        }
        if time is not None:
            at = [r["eta"] * v for r in live if (v := at_time(r, time, "lambda")) is not None]
            row |= averages({"eta_lambda_at_time": at})
            row["eta_lambda_at_time_max"] = max(at, default=None)
        rows.append(row)
    return rows


def all_live(row: Row) -> bool:
    """Whether no seed of this rate diverged or died."""
    return row["diverged"] == 0 and row["dead"] == 0


def brackets(records: list[Record]) -> list[Bracket]:
    """Between which rates of the grid every seed diverges or dies."""
    return between(records, stable, lambda r: r["diverged_at"] < 0)


def largest_stable(records: list[Record]) -> list[float]:
    """The largest c of the grid, per seed, such that it and all smaller ones are stable."""
    return [found.stable for found in brackets(records)]
