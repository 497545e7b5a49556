"""Test accuracy of a CNN after a fixed number of steps (ICLR version, figure 3 a)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from catapult_ext.experiments.descent import Recipe
from catapult_ext.experiments.reproduce import grid, grid_claims, grid_panels
from catapult_ext.experiments.reproduce.accuracy import AccuracySettings
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import Claim, Outcome, Row, median, show

TITLE = "CNN at a fixed number of steps"
SOURCE = "Lewkowycz et al., figure 3 a: CNN, CIFAR-10, batch 256, L2, 437k steps"
LEARNT = 0.5  # best accuracy of the stable rates below which a drop says nothing


@dataclass(frozen=True)
class Settings(AccuracySettings):
    """Settings of cnn-fixed-steps: those of :class:`AccuracySettings` and one more.

    Attributes:
        steps: gradient steps of every rate.
    """

    steps: int = 1500


SETTINGS = {
    "smoke": Settings(
        train=48, test=64, width=0.03, batch=16, c=(1, 3, 300), seeds=1, steps=8, probe_samples=16
    ),
    "cpu": Settings(),
    "real": Settings(
        "fashion-mnist", 2000, 1000, c=(0.5, 1, 1.5, 3, 6, 12, 24, 32, 48), steps=1000
    ),
    "full": Settings("cifar-10", None, None, 1.0, 256, seeds=1, steps=437_000, probe_samples=1024),
}


def run(settings: Settings, context: Context) -> Outcome:
    """Train the grid and judge the claims of the figure."""
    s = settings
    data = s.load(context)
    recipe = Recipe(
        steps=s.steps,
        batch=s.batch,
        l2=s.l2,
        augment=s.augmentation,
        probe_factor=4.0,
        probe_samples=s.probe_samples,
    )
    problem = grid.Problem(functools.partial(s.network, data), data, s.loss)
    records = grid.run_grid(context, s.model, problem, s.c, s.seeds, recipe)
    rows = grid.by_rate(records)
    stable = median(grid.largest_stable(records))
    claims = [
        grid_claims.claim_best(rows, stable),
        _claim_drop(rows, stable),
        grid_claims.claim_bound(rows),
    ]
    claims = grid_claims.for_loss(claims, records)
    panels = {
        "accuracy": grid_panels.panel_accuracy(rows, f"Test accuracy after {s.steps} steps"),
        "curvature": grid_panels.panel_lambda(rows, "eta_lambda_end", "eta * lambda at the end"),
        "loss": grid_panels.panel_losses(records, "Early loss of the first seed's batches"),
    }
    notes = [f"lambda_0 = {records[0]['lambda0']:.4g} (first seed)."]
    if s.model == "cnn":
        notes.append(
            "The CNN's layers are a remembered candidate (see models.paper_cnn), scaled by "
            f"{s.width:g}."
        )
    return Outcome(claims, {"rates": rows}, panels, notes)


def _claim_drop(rows: list[Row], stable: float) -> Claim:
    """Sharp drop of the accuracy beyond eta_max."""
    above = [r for r in rows if r["c"] > stable]
    lost = [r for r in above if not grid.all_live(r)]
    weak = [r["test_accuracy"] for r in above if r not in lost and r["test_accuracy"]]
    reached = [r["test_accuracy"] for r in rows if r["c"] <= stable and r["test_accuracy"]]
    # Nets that learnt nothing have no accuracy to lose.
    learnt = max(reached, default=0.0) >= LEARNT
    why = "the largest rate of the grid was stable"
    if above:
        why = "some seeds train on where others diverge" if learnt else "the nets learnt too little"
    return Claim(
        "sharp drop after eta_max",
        "beyond eta_max training fails at once rather than degrading slowly",
        f"largest stable c {stable:g}; of the {len(above)} larger rates {len(lost)} diverge or die "
        f"for some seed; best accuracy of the others {show(max(weak, default=None))}",
        len(lost) == len(above) if above and learnt else None,
        why,
    )
