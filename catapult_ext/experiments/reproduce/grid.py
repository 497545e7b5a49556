"""Learning rates x seeds of one network, its table by rate, and the claims such a grid decides."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from catapult_ext.data import Dataset
from catapult_ext.experiments.descent import Recipe, Start, start, train
from catapult_ext.experiments.reproduce.brackets import Bracket
from catapult_ext.experiments.reproduce.brackets import brackets as between
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import (
    Claim,
    Row,
    averages,
    line,
    mean,
    median,
    show,
    with_error,
)
from catapult_ext.figures.line_panel import Panel, Series
from catapult_ext.probes import Verdict, classify

Record = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """What the runs of a grid train: ``network`` of a seed on ``data`` with ``loss``."""

    network: Callable[[int], nn.Module]
    data: Dataset
    loss: str

    def start(self, recipe: Recipe, seed: int) -> Start:
        """The network of a seed at its start."""
        return start(self.network(seed), self.data, self.loss, recipe)

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

    Args:
        context: of the experiment.
        label: prefix of the parts' names.
        problem: what is trained; started only where a part is missing, and only the latest seed's
            start is kept.
        cs: learning rates in units of 1 / (lambda_0 + l2), each seed with its own lambda_0.
        seeds: number of seeds.
        recipe: how to train.
    """
    started = functools.lru_cache(maxsize=1)(functools.partial(problem.start, recipe))

    def compute(seed: int, c: float) -> Record:
        start = started(seed)
        record = train(start, start.eta(c, recipe), recipe, seed=seed)
        return {"seed": seed, **record, "c": c}

    return context.parts(
        {
            f"{label}_s{seed}_c{c:g}": functools.partial(compute, seed, c)
            for seed in range(seeds)
            for c in cs
        }
    )


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
    )


def stable(record: Record) -> bool:
    """Neither diverged nor dead."""
    return verdict(record).stable


def by_rate(records: list[Record], time: float | None = None) -> list[Row]:
    """One row per c over the seeds: means with standard errors (``*_se``), medians of peaks."""
    rows = []
    for c in sorted({r["c"] for r in records}):
        held = [r for r in records if r["c"] == c]
        good = [r for r in held if r["diverged_at"] < 0]
        ratio = [r["eta"] * v for r in good if (v := last(r, "lambda")) is not None]
        row: Row = {
            "c": c,
            "eta": mean(r["eta"] for r in held),
            "runs": len(held),
            "diverged": len(held) - len(good),
            "dead": sum("dead" in verdict(r).flags for r in good),
            "loss_rose": sum(r["rose_at"] >= 0 for r in held),
            "loss_peak_ratio": median([r["loss_peak"] / r["loss0"] for r in held]),
            "peak_step": median([r["loss_peak_at"] for r in held]),
            **averages({"eta_lambda_end": ratio}),
            "eta_lambda_end_max": max(ratio, default=None),
            "lambda_ratio": mean(v / r["lambda0"] for r in good if (v := last(r, "lambda"))),
            "train_loss": mean(last(r, "train_loss") for r in good),
            **averages({"test_accuracy": [last(r, "test_accuracy") for r in good]}),
            "inactive": mean(last(r, "inactive") for r in good),
        }
        if time is not None:
            at = [r["eta"] * v for r in good if (v := at_time(r, time, "lambda")) is not None]
            row |= averages({"eta_lambda_at_time": at})
            row["eta_lambda_at_time_max"] = max(at, default=None)
        rows.append(row)
    return rows


def claim_lazy(records: list[Record], slack: float = 0.0) -> Claim:
    """Below 2 no seed's loss exceeds its start (by more than the share ``slack``, for SGD)."""
    lazy = [r for r in records if r["c"] < 2]
    worst: dict[float, float] = {}
    for r in lazy:
        peak = math.inf if r["diverged_at"] >= 0 else r["loss_peak"] / r["loss0"]
        if r["diverged_at"] >= 0 or (r["rose_at"] >= 0 and peak > 1 + slack):
            worst[r["c"]] = max(peak, worst.get(r["c"], 0.0))
    named = ", ".join(f"{c:g} (x{peak:.3g})" for c, peak in sorted(worst.items()))
    margin = f" by more than {slack:.0%} (batches differ)" if slack else ""
    rates = len({r["c"] for r in lazy})
    return Claim(
        "lazy below 2/lambda_0",
        f"for c = eta*lambda_0 < 2 the loss never exceeds its start{margin}",
        f"it rose at c = {named}" if worst else f"it never did, at {rates} rates",
        not worst if lazy else None,
        "finite width or mini-batch noise moves the threshold" if lazy else "no rate below 2",
    )


def claim_bound(rows: list[Row], key: str = "eta_lambda_end", where: str = "at the end") -> Claim:
    """Test eta * lambda below 2 after the catapult, for every seed of every rate that converged."""
    caught = [r for r in rows if r["c"] > 2 and r[f"{key}_max"] is not None]
    over = [r for r in caught if r[f"{key}_max"] > 2]
    worst = max((r[f"{key}_max"] for r in caught), default=None)
    found = f"largest eta*lambda {where} over all rates and seeds: {show(worst)}"
    if over:
        found += "; above 2 at c = " + ", ".join(f"{r['c']:g}" for r in over)
    why = (
        "those runs have not settled yet or sharpen again towards the edge"
        if caught
        else "no rate above 2 converged"
    )
    return Claim(
        f"lambda <= 2/eta {where}",
        "in the catapult phase lambda drops until it is below 2/eta",
        found,
        not over if caught else None,
        why,
    )


def brackets(records: list[Record]) -> list[Bracket]:
    """Between which rates of the grid every seed diverges or dies."""
    return between(records, stable)


def largest_stable(records: list[Record]) -> list[float]:
    """Of every seed: the largest c of the grid such that this and all smaller ones are stable."""
    return [found.stable for found in brackets(records)]


def claim_best(
    rows: list[Row], largest: float | None, mark: str = "", key: str = "test_accuracy"
) -> Claim:
    """The best test accuracy lies above 2, by more than two standard errors of the difference."""
    name = f"best accuracy{mark}"
    predicted = "the best test accuracy lies in the catapult phase, often near its upper end"
    scored = [r for r in rows if r[key] is not None and r["diverged"] == 0]
    if not scored:
        return Claim(name, predicted, "no accuracies", None, "no class labels")
    above = max((r for r in scored if r["c"] > 2), key=lambda r: r[key], default=None)
    below = max((r for r in scored if r["c"] < 2), key=lambda r: r[key], default=None)
    found = [
        f"best {side} 2: {with_error(r[key], r[f'{key}_se'])} at c = {r['c']:g}"
        for side, r in (("above", above), ("below", below))
        if r is not None
    ]
    found += [] if largest is None else [f"largest stable c {largest:g}"]
    text = "; ".join(found)
    if above is None or below is None:
        return Claim(name, predicted, text, None, "rates on one side of 2 only")
    errors = (above[f"{key}_se"], below[f"{key}_se"])
    if None in errors:
        return Claim(name, predicted, text, None, "one seed: no error to compare with")
    gap, noise = above[key] - below[key], 2 * math.hypot(*errors)
    if abs(gap) < noise:
        why = f"the difference, {gap:+.4f}, lies within the seeds' noise ({noise:.4f})"
        return Claim(name, predicted, text, None, why)
    why = "the task is learnt as well by small rates, or the grid is too coarse"
    return Claim(name, predicted, text, gap > 0, why)


def marks(rows: list[Row]) -> dict[str, float]:
    """Vertical lines of every picture against c: the transition and where divergence begins."""
    lost = [r["c"] for r in rows if r["diverged"]]
    return {"eta_crit": 2.0} | ({"first divergence": min(lost)} if lost else {})


def panel_lambda(rows: list[Row], key: str, title: str) -> Panel:
    """Draw eta * lambda against c with the bound 2."""
    return Panel(
        title,
        "c = eta * lambda_0",
        "eta * lambda",
        [line("mean over seeds", rows, key)],
        xlog=True,
        vlines=marks(rows),
        hlines={"lambda = 2/eta": 2.0},
    )


def panel_peak(rows: list[Row]) -> Panel:
    """Largest loss over the initial one against c, of the rates that never diverged."""
    kept = [r for r in rows if r["diverged"] == 0]
    return Panel(
        "Largest loss of the run over the initial loss",
        "c = eta * lambda_0",
        "peak / start",
        [line("median over seeds", kept, "loss_peak_ratio")],
        xlog=True,
        ylog=True,
        vlines=marks(rows),
    )


def panel_accuracy(rows: list[Row], title: str, label: str = "test accuracy") -> Panel:
    """Test accuracy against c."""
    return Panel(
        title,
        "c = eta * lambda_0",
        "test accuracy",
        [line(label, rows, "test_accuracy")],
        xlog=True,
        vlines=marks(rows),
    )


def panel_losses(records: list[Record], title: str, seed: int = 0, steps: int = 60) -> Panel:
    """Early loss curves of one seed, up to seven rates."""
    held = sorted((r for r in records if r["seed"] == seed), key=lambda r: r["c"])
    stride = max(1, -(-len(held) // 7))
    caught = [r["loss_peak"] for r in held if r["diverged_at"] < 0]
    limit = 1e3 * max(caught, default=held[0]["loss0"])  # a divergence would hide all else
    series = []
    for r in held[::stride]:
        kept = [(s, v) for s, v in zip(r["loss_steps"], r["loss"], strict=True) if s <= steps]
        kept = [(s, v) for s, v in kept if v is not None and 0 < v <= limit]
        name = f"c = {r['c']:g}" + (" (diverged)" if r["diverged_at"] >= 0 else "")
        series.append(Series(name, [float(s) for s, _ in kept], [v for _, v in kept], style="-"))
    return Panel(title, "step", "training loss", series, ylog=True)
