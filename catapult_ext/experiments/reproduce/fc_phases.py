"""Lazy, catapult and divergent phase of a fully connected net (ICLR version, figure 2 a-c)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from catapult_ext.experiments.descent import Recipe
from catapult_ext.experiments.reproduce import grid
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import Claim, Outcome, Row, median, show
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
    probe_samples: int | None = None


SETTINGS = {
    "smoke": Settings(
        train=48, test=100, width=48, c=(1, 3, 6, 40), seeds=2, steps=20, read_at=20.0
    ),
    "cpu": Settings(),
    "full": Settings("mnist", 60_000, 10_000, 512, 2048, seeds=5, steps=2000, probe_samples=1024),
}


def run(settings: Settings, context: Context) -> Outcome:
    """Train the grid and judge the claims of the figure."""
    s = settings
    data = context.data(s.data, train=s.train, test=s.test, flatten=True)
    recipe = Recipe(
        steps=s.steps, batch=s.batch, probe_times=(s.read_at,), probe_samples=s.probe_samples
    )

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
    records = grid.run_grid(context, "fc", problem, s.c, s.seeds, recipe)
    rows = grid.by_rate(records, s.read_at)
    stable = grid.largest_stable(records)
    claims = [
        grid.claim_lazy(records),
        _claim_rise(rows),
        grid.claim_bound(rows, "eta_lambda_at_time", f"at eta*t = {s.read_at:g}"),
        grid.claim_bound(rows),
        _claim_eta_max(stable, max(s.c)),
        grid.claim_best(rows, median(stable)),
    ]
    panels = {
        "loss": grid.panel_losses(records, "Early training loss of the first seed"),
        "peak": grid.panel_peak(rows),
        "curvature": grid.panel_lambda(
            rows, "eta_lambda_at_time", f"eta * lambda at eta * t = {s.read_at:g}"
        ),
        "accuracy": grid.panel_accuracy(rows, f"Test accuracy after {s.steps} steps"),
    }
    lambda0 = sorted({r["lambda0"] for r in records})
    notes = [
        f"lambda_0 = {lambda0[0]:.4g} to {lambda0[-1]:.4g} over the seeds "
        f"(eta_crit = {2 / lambda0[-1]:.4g} to {2 / lambda0[0]:.4g}; the paper's net on MNIST: "
        "0.32 and 6.25). Equal numbers of steps favour large rates."
    ]
    return Outcome(claims, {"rates": rows}, panels, notes)


def _claim_rise(rows: list[Row]) -> Claim:
    """The peak of the loss takes off a little above 2."""
    rose = [r for r in rows if 2 * r["loss_rose"] > r["runs"]]
    first = rose[0]["c"] if rose else None
    below = max((r["c"] for r in rows if first is not None and r["c"] < first), default=None)
    return Claim(
        "loss takes off above 2/lambda_0",
        "the largest loss exceeds the initial one from c = 2 on (at finite width a little later)",
        f"first c at which the loss rose in most seeds: {show(first)} (rate below: {show(below)})",
        None if first is None else first > 2 and (below or 0) < 3.5,
        "no rate made the loss rise"
        if first is None
        else "narrow nets rise later, and the grid of rates is coarse",
    )


def _claim_eta_max(stable: list[float], highest: float) -> Claim:
    middle = median(stable)
    text = ", ".join(f"{c:g}" for c in stable)
    open_ = middle >= highest
    return Claim(
        "eta_max of a deep ReLU net",
        "the largest stable c is about 12 (7 to 16)",
        f"largest stable c of the seeds: {text}; median {middle:g}",
        None if open_ else 7 <= middle <= 16,
        "the largest rate of the grid was stable"
        if open_
        else "the boundary is fractal and moves with width, data and the grid of rates",
    )
