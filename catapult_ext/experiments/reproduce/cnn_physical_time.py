"""The CNN at equal eta * t, without and with a common final rate (ICLR version, figure 3 b)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from catapult_ext.experiments.descent import Recipe
from catapult_ext.experiments.reproduce import grid, grid_panels
from catapult_ext.experiments.reproduce.accuracy import AccuracySettings
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import (
    Claim,
    Outcome,
    Row,
    averages,
    correlation,
    mean,
    median,
    show,
    standard_error,
)
from catapult_ext.figures.line_panel import Panel

TITLE = "CNN at equal physical time"
SOURCE = (
    "Lewkowycz et al., figure 3 b: the CNN of 3 a for 475/eta steps, then 50k steps at 2e-5 "
    "(a fifth of eta_crit)"
)

UNEVEN = "the few large steps through the catapult cost accuracy on so small a task"
LEARNT = 0.3  # accuracy below which flatness says nothing
FEW = 6  # live runs below which a correlation says nothing


@dataclass(frozen=True)
class Settings(AccuracySettings):
    """Settings of cnn-physical-time: those of :class:`AccuracySettings` and three more.

    Attributes:
        time: eta * t of every run, in units of eta_crit of the first seed.
        final: rate of the common last stage in units of that eta_crit.
        final_steps: its steps.
    """

    c: tuple[float, ...] = (1.5, 3, 6, 12, 16, 24)
    seeds: int = 3
    time: float = 16_000.0
    final: float = 0.2
    final_steps: int = 300


SETTINGS = {
    "smoke": Settings(
        train=48,
        test=64,
        width=0.03,
        batch=16,
        c=(1, 3, 300),
        seeds=1,
        time=6.0,
        final_steps=4,
        probe_samples=16,
    ),
    "cpu": Settings(),
    "full": Settings(
        "cifar-10",
        None,
        None,
        1.0,
        256,
        seeds=1,
        time=4.75e6,
        final_steps=50_000,
        probe_samples=1024,
    ),
}


def run(settings: Settings, context: Context) -> Outcome:
    """Train the grid and judge the claims of the figure."""

    def judge(rows: list[Row], records: list[grid.Record]) -> list[Claim]:
        return [
            _claim_flat(rows, "test_accuracy", "before the common final rate"),
            _claim_flat(rows, "final_accuracy", "after it"),
            _claim_decay(records),
            _claim_no_correlation(records),
        ]

    return judged(settings, context, judge)


def judged(
    settings: Settings,
    context: Context,
    judge: Callable[[list[Row], list[grid.Record]], list[Claim]],
) -> Outcome:
    """Train the grid at equal eta * t; ``judge`` gets the rows by rate and all records."""
    s = settings
    data = s.load(context)
    problem = grid.Problem(functools.partial(s.network, data), data, s.loss)
    critical = 2 / (problem.lambda0(context, probe_samples=s.probe_samples) + s.l2)
    recipe = Recipe(
        time=s.time * critical,
        batch=s.batch,
        l2=s.l2,
        augment=s.augmentation,
        final_rate=s.final * critical,
        final_steps=s.final_steps,
        probe_factor=8.0,
        probe_samples=s.probe_samples,
    )
    records = grid.run_grid(context, s.model, problem, s.c, s.seeds, recipe)
    rows = grid.by_rate(records)
    for row in rows:
        held = [r for r in records if r["c"] == row["c"]]
        row["steps"] = held[0]["steps"]
        after = [grid.last(r, "test_accuracy", "final") for r in held if grid.stable(r)]
        row |= averages({"final_accuracy": after})
    both = [
        grid_panels.by_c("at equal eta * t", rows, "test_accuracy"),
        grid_panels.by_c("after the common final rate", rows, "final_accuracy"),
    ]
    panels = {
        "accuracy": Panel(
            f"Test accuracy at eta * t = {s.time:g} eta_crit",
            "c = eta * (lambda_0 + l2)",
            "test accuracy",
            both,
            xlog=True,
            vlines=grid_panels.marks(rows),
        ),
        "curvature": grid_panels.panel_lambda(
            rows, "eta_lambda_end", "eta * lambda at equal eta * t"
        ),
    }
    notes = [f"eta_crit = {critical:.4g} (first seed); every run covers the same eta * t."]
    return Outcome(judge(rows, records), {"rates": rows}, panels, notes)


def _claim_flat(rows: list[Row], key: str, when: str) -> Claim:
    kept = [r for r in rows if r[key] is not None and grid.all_live(r)]
    predicted = "at equal eta * t the accuracy is flat up to eta_max"
    if len(kept) < 2:
        return Claim(f"flat {when}", predicted, "fewer than two stable rates", None, "grid")
    best, worst = max(kept, key=lambda r: r[key]), min(kept, key=lambda r: r[key])
    spread = best[key] - worst[key]
    noise = median([r[f"{key}_se"] or 0.0 for r in kept])  # one wild rate must not excuse all
    allowed = max(0.02, 3 * noise)
    learnt = best[key] >= LEARNT
    why = UNEVEN if learnt else "the nets have not learnt the task in this time"
    if learnt and worst["train_loss"] > 2 * best["train_loss"]:
        why = (
            f"c = {worst['c']:g} has not converged at this eta * t: training loss "
            f"{worst['train_loss']:.2g} against {best['train_loss']:.2g} at c = {best['c']:g}"
        )
    return Claim(
        f"flat {when}",
        predicted,
        f"accuracies of the stable rates span {worst[key]:.4f} (c = {worst['c']:g}) to "
        f"{best[key]:.4f} (c = {best['c']:g}); allowed {allowed:.3f}",
        spread <= allowed if learnt else None,
        why,
    )


def _claim_decay(records: list[grid.Record]) -> Claim:
    gains = [
        b - a
        for r in records
        if grid.stable(r)
        and (a := grid.last(r, "test_accuracy")) is not None
        and (b := grid.last(r, "test_accuracy", "final")) is not None
    ]
    gain, error = mean(gains), standard_error(gains)
    holds = None if error is None or gain is None else abs(gain) <= max(0.01, 2 * error)
    why = "mini-batch noise at the end differs with the rate on so small a set"
    return Claim(
        "decay makes no difference",
        "further steps at a small common rate change the accuracy insignificantly",
        f"mean change {show(gain, '+.4f')} (standard error {show(error, '.2g')}, "
        f"{len(gains)} runs)",
        holds,
        "fewer than two live runs" if holds is None else why,
    )


def _claim_no_correlation(records: list[grid.Record]) -> Claim:
    pairs = [
        (a, b)
        for r in records
        if grid.stable(r)
        and (a := grid.last(r, "lambda")) is not None
        and (b := grid.last(r, "test_accuracy")) is not None
    ]
    r = correlation([a for a, _ in pairs], [b for _, b in pairs])
    few = r is None or len(pairs) < FEW
    why = "near eta_max lambda is lowest and the few steps left cost accuracy"
    return Claim(
        "no correlation of lambda and accuracy",
        "at equal eta * t the final lambda does not predict the accuracy",
        f"Pearson r = {show(r, '.2f')} over {len(pairs)} live runs",
        None if few or r is None else abs(r) < 0.5,
        f"fewer than {FEW} live runs" if few else why,
    )
