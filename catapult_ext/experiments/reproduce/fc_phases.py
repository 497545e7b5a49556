"""Lazy, catapult and divergent phase of a fully connected net (ICLR version, figure 2 a-c)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from catapult_ext.experiments.descent import Recipe
from catapult_ext.experiments.reproduce import grid, grid_claims, grid_panels
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import Outcome, Row, averages, median
from catapult_ext.experiments.reproduce.settings import setting
from catapult_ext.models import build

TITLE = "three phases of a fully connected ReLU net"
SOURCE = "Lewkowycz et al., figure 2 a-c: 3 hidden layers, ReLU, width 2048, MNIST"


@dataclass(frozen=True)
class Settings:
    """Settings of fc-phases; the loss is 1/(2 N O) sum |f - y|^2, lambda that of its GGN.

    Attributes:
        data: name of the data set.
        train: training samples.
        test: test samples; None for all others.
        batch: samples of a step; None for all.
        width: units of each hidden layer.
        depth: hidden layers.
        activation: between them.
        c: learning rates in units of 1 / lambda_0.
        seeds: number of initialisations.
        steps: gradient steps of every rate.
        loss: trained, by its name (``losses.resolve``); lambda is that of its Gauss-Newton matrix.
        read_at: eta * t at which lambda is compared with 2/eta (or the end, if that is sooner).
        equal_time: eta * t, in eta_crit of the first seed, at which accuracies are compared.
        probe_samples: training samples that the curvature is measured on; None for all.
    """

    data: str = "digits"
    train: int = 256
    test: int | None = setting(None, least=0)
    batch: int | None = None
    width: int = 512
    depth: int = 3
    activation: str = "relu"
    c: tuple[float, ...] = (0.5, 1, 1.5, 2.25, 2.5, 3, 4, 6, 8, 10, 12, 14, 16, 20)
    seeds: int = 5
    steps: int = 60
    loss: str = "half_mse_mean"
    read_at: float = 250.0
    equal_time: float = 60.0
    probe_samples: int | None = None


SETTINGS = {
    "smoke": Settings(
        train=48,
        test=100,
        width=48,
        c=(1, 3, 6, 40),
        seeds=2,
        steps=20,
        read_at=20.0,
        equal_time=5.0,
    ),
    "cpu": Settings(),
    "real": Settings("fashion-mnist", 2000, 2000, width=256, seeds=3),
    "full": Settings(
        "mnist",
        60_000,
        10_000,
        512,
        2048,
        seeds=5,
        steps=2000,
        equal_time=2000.0,
        probe_samples=1024,
    ),
}


def run(settings: Settings, context: Context) -> Outcome:
    """Train the grid and judge the claims of the figure."""
    s = settings
    data = context.data(s.data, train=s.train, test=s.test, flatten=True)

    def network(seed: int) -> Any:
        return build(
            "fc",
            data.x_train.shape[1:],
            data.outputs,
            width=s.width,
            depth=s.depth,
            activation_name=s.activation,
            seed=seed,
        )

    problem = grid.Problem(network, data, s.loss)
    time = s.equal_time * 2 / problem.lambda0(context, probe_samples=s.probe_samples)
    recipe = Recipe(
        steps=s.steps,
        batch=s.batch,
        probe_times=(s.read_at, time),
        probe_samples=s.probe_samples,
    )
    records = grid.run_grid(context, "fc", problem, s.c, s.seeds, recipe)
    rows = grid.by_rate(records, s.read_at)
    stable = grid.largest_stable(records)
    later = at_equal_time(context, problem, records, s, time)
    claims = [
        grid_claims.claim_lazy(records),
        grid_claims.claim_stays(records),
        grid_claims.claim_rise(records),
        grid_claims.claim_bound(rows, "eta_lambda_at_time", f"at eta*t = {s.read_at:g}"),
        grid_claims.claim_bound(rows),
        grid_claims.claim_c_max(grid.brackets(records)),
        grid_claims.claim_best(rows, median(stable)),
        grid_claims.claim_best(later, median(stable), " at equal eta t"),
    ]
    claims = grid_claims.for_loss(claims, records)
    panels = {
        "loss": grid_panels.panel_losses(records, "Early training loss of the first seed"),
        "peak": grid_panels.panel_peak(rows),
        "curvature": grid_panels.panel_lambda(
            rows, "eta_lambda_at_time", f"eta * lambda at eta * t = {s.read_at:g}"
        ),
        "accuracy": grid_panels.panel_accuracy(rows, f"Test accuracy after {s.steps} steps"),
        "accuracy_at_time": grid_panels.panel_accuracy(
            later, f"Test accuracy at eta * t = {s.equal_time:g} eta_crit"
        ),
    }
    lambda0 = sorted({r["lambda0"] for r in records})
    notes = [
        f"lambda_0 = {lambda0[0]:.4g} to {lambda0[-1]:.4g} over the seeds "
        f"(eta_crit = {2 / lambda0[-1]:.4g} to {2 / lambda0[0]:.4g}; the paper's net on MNIST: "
        "0.32 and 6.25, see paper-fc). Equal numbers of steps favour large rates, so accuracies "
        f"are also read at equal eta * t, {s.equal_time:g} eta_crit of the first seed."
    ]
    return Outcome(claims, {"rates": rows, "equal_time": later}, panels, notes)


def at_equal_time(
    context: Context,
    problem: grid.Problem,
    records: list[grid.Record],
    s: Settings,
    time: float,
) -> list[Row]:
    """Accuracies by rate at one eta * t: of the runs themselves, or of longer ones at small rates.

    Every record has a probe there, if it goes so far.
    """
    short = {r["c"] for r in records if r["diverged_at"] < 0 and r["eta"] * s.steps < time}
    recipe = Recipe(time=time, batch=s.batch, probe_factor=1e9, probe_samples=s.probe_samples)
    longer = grid.run_grid(context, "time", problem, sorted(short), s.seeds, recipe)
    rows = []
    for c in s.c:
        held = [r for r in (longer if c in short else records) if r["c"] == c]
        live = [r for r in held if grid.stable(r)]
        diverged = sum(r["diverged_at"] >= 0 for r in held)
        found = [grid.at_time(r, time, "test_accuracy") for r in live]
        row: Row = {"c": c, "runs": len(held), "diverged": diverged}
        row |= {"dead": len(held) - len(live) - diverged, **averages({"test_accuracy": found})}
        rows.append(row)
    return rows
