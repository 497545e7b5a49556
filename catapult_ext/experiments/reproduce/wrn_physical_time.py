"""The Wide ResNet at equal eta * t, then a common final rate (ICLR version, figure 3 d)."""

from __future__ import annotations

from catapult_ext.experiments.reproduce import grid, grid_claims
from catapult_ext.experiments.reproduce.cnn_physical_time import Settings, judged
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import Claim, Outcome, Row, median

TITLE = "Wide ResNet at equal physical time"
SOURCE = (
    "Lewkowycz et al., figure 3 d: the net of 3 c for 3360/eta steps (eta_crit about 0.14), then "
    "4800 steps at 0.035"
)
SETTINGS = {
    "smoke": Settings(
        train=32,
        test=32,
        batch=16,
        c=(1, 400),
        seeds=1,
        time=2.0,
        final_steps=2,
        probe_samples=16,
        model="wrn-10-1",
        crop=1,
    ),
    "cpu": Settings(
        batch=128,
        c=(1.5, 2.5, 4, 6, 8, 12),
        time=400.0,
        seeds=3,
        final=0.25,
        final_steps=100,
        probe_samples=64,
        model="wrn-10-1",
        crop=1,
    ),
    "full": Settings(
        "cifar-10",
        None,
        None,
        1.0,
        1024,
        seeds=1,
        time=24_000.0,
        final=0.25,
        final_steps=4800,
        probe_samples=512,
        model="wrn-28-10",
        crop=4,
        flip=True,
    ),
}


def run(settings: Settings, context: Context) -> Outcome:
    """Train the grid and judge the claims of the figure."""

    def judge(rows: list[Row], records: list[grid.Record]) -> list[Claim]:
        stable = median(grid.largest_stable(records))
        claims = [
            grid_claims.claim_best(rows, stable, " before the common final rate"),
            grid_claims.claim_best(rows, stable, " after it", "final_accuracy"),
            grid_claims.claim_bound(rows),
        ]
        return grid_claims.for_loss(claims, records)

    return judged(settings, context, judge)
