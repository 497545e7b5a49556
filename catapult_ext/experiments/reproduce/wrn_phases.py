"""Lazy, catapult and divergent phase of a Wide ResNet (ICLR version, figure 2 d-f)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from catapult_ext.experiments.descent import Recipe
from catapult_ext.experiments.reproduce import grid, grid_claims, grid_panels
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import Claim, Outcome, median
from catapult_ext.experiments.reproduce.settings import setting
from catapult_ext.figures.line_panel import Panel, Series
from catapult_ext.models import build

TITLE = "three phases of a Wide ResNet"
SOURCE = "Lewkowycz et al., figure 2 d-f: Wide ResNet 28-10, CIFAR-10, batch 128"
FEW = 3  # live runs that decide


@dataclass(frozen=True)
class Settings:
    """Settings of wrn-phases.

    Attributes:
        data: name of the data set.
        train: training samples; None for all.
        test: test samples; None for all.
        model: ``wrn-d-k``.
        norm: ``"batch"`` or ``"none"``.
        batch: samples of a step.
        c: learning rates in units of 1 / lambda_0.
        seeds: number of initialisations.
        steps: gradient steps of every rate.
        read_at: eta * t, in units of eta_crit of the first seed, at which lambda is read.
        probe_samples: training samples that the curvature is measured on.
        loss: trained, by its name (``losses.resolve``); default 1/(2 N O) sum |f - y|^2.
        batch_stats: treatment of batch normalisation in the curvature (``models.BATCH_STATS``).
    """

    data: str = "digits"
    train: int | None = 512
    test: int | None = setting(500, least=0)
    model: str = "wrn-10-1"
    norm: str = "batch"
    batch: int = 128
    c: tuple[float, ...] = (0.5, 1, 1.5, 3, 4, 6, 8, 12, 24)
    seeds: int = 2
    steps: int = 60
    read_at: float = 60.0
    probe_samples: int = 64
    loss: str = "half_mse_mean"
    batch_stats: str = "coupled"


SETTINGS = {
    "smoke": Settings(
        train=32,
        test=32,
        batch=16,
        c=(1, 4, 400),
        seeds=1,
        steps=4,
        read_at=2.0,
        probe_samples=16,
    ),
    "cpu": Settings(),
    "real": Settings("fashion-mnist", 2000, 1000, c=(0.5, 1, 1.5, 2.5, 3, 4, 5, 6, 8), seeds=2),
    "full": Settings(
        "cifar-10", None, None, "wrn-28-10", seeds=1, steps=50_000, read_at=167.0, probe_samples=512
    ),
}


def run(settings: Settings, context: Context) -> Outcome:
    """Train the grid and judge the claims of the figure."""
    s = settings
    data = context.data(s.data, train=s.train, test=s.test)

    def network(seed: int) -> Any:
        return build(s.model, data.x_train.shape[1:], data.outputs, norm=s.norm, seed=seed)

    problem, held = grid.Problem(network, data, s.loss), s.batch_stats
    first = problem.lambda0(context, probe_samples=s.probe_samples, batch_stats=held)
    time = s.read_at * 2 / first
    recipe = Recipe(
        steps=s.steps,
        batch=s.batch,
        probe_times=(time,),
        probe_samples=s.probe_samples,
        batch_stats=s.batch_stats,
    )
    records = grid.run_grid(context, "wrn", problem, s.c, s.seeds, recipe)
    rows = grid.by_rate(records, time)
    stable = grid.largest_stable(records)
    middle = median(stable)
    claims = [
        grid_claims.claim_lazy(records, slack=0.25),
        _claim_rise(records),
        grid_claims.claim_bound(rows, "eta_lambda_at_time", f"at eta*t = {s.read_at:g} eta_crit"),
        grid_claims.claim_bound(rows),
        grid_claims.claim_best(rows, middle),
    ]
    claims = grid_claims.for_loss(claims, records)
    panels = {
        "loss": grid_panels.panel_losses(records, "Early loss of the first seed's batches"),
        "early_curvature": _panel_early(records),
        "curvature": grid_panels.panel_lambda(
            rows, "eta_lambda_at_time", f"eta * lambda at eta * t = {s.read_at:g} eta_crit"
        ),
        "accuracy": grid_panels.panel_accuracy(rows, f"Test accuracy after {s.steps} steps"),
    }
    notes = [
        f"{s.model}, norm {s.norm}: lambda_0 = {first:.4g} on {s.probe_samples} training "
        f"samples with {s.batch_stats} batch statistics. Largest stable c of the seeds: "
        + ", ".join(f"{c:g}" for c in stable)
        + "."
    ]
    return Outcome(claims, {"rates": rows}, panels, notes)


def _claim_rise(records: list[grid.Record]) -> Claim:
    """In the WRN lambda first rises, then settles."""
    live = [r for r in records if r["c"] > 2 and grid.stable(r)]
    both = sum(_rose_and_fell(r) for r in live)
    few = len(live) < FEW
    return Claim(
        "lambda first rises, then settles",
        "in the Wide ResNet lambda rises in the first steps before it comes down",
        f"in {both} of {len(live)} runs above 2/lambda_0 that end with a live net lambda rose by "
        "more than 5 % and came down again",
        None if few else 2 * both > len(live),
        f"fewer than {FEW} such runs"
        if few
        else "smaller net and images: the reduction starts at once, or sharpening goes on to the "
        "end of these few steps",
    )


def _rose_and_fell(record: grid.Record) -> bool:
    """Whether lambda rose by more than 5 % and came down again, among the probes that have it."""
    known = [p["lambda"] for p in record["probes"] if p["lambda"] is not None]
    return max(known[1:], default=0.0) > 1.05 * record["lambda0"] and known[-1] < max(known)


def _panel_early(records: list[grid.Record]) -> Panel:
    held = sorted((r for r in records if r["seed"] == 0), key=lambda r: r["c"])
    held = [r for r in held if grid.stable(r)]
    stride = max(1, -(-len(held) // 7))
    series = [
        Series(
            f"c = {r['c']:g}",
            [float(p["step"]) for p in r["probes"] if p["lambda"] is not None],
            [p["lambda"] / r["lambda0"] for p in r["probes"] if p["lambda"] is not None],
        )
        for r in held[::stride]
    ]
    return Panel("Curvature along the way", "step", "lambda / lambda_0", series)
