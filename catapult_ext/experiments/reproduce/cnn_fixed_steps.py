"""Test accuracy of a CNN after a fixed number of steps (ICLR version, figure 3 a)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from catapult_ext.data import Augment
from catapult_ext.experiments.descent import Recipe, Start, start
from catapult_ext.experiments.reproduce import grid
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import Claim, Outcome, Row, median, show
from catapult_ext.models import build

TITLE = "CNN at a fixed number of steps"
SOURCE = "Lewkowycz et al., figure 3 a: CNN, CIFAR-10, batch 256, L2, 437k steps"


@dataclass(frozen=True)
class Settings:
    """Settings of cnn-fixed-steps; the loss is 1/(2 N O) sum |f - y|^2 plus l2/2 |theta|^2.

    Attributes:
        data: name of the data set.
        train: training samples; None for all.
        test: test samples; None for all others.
        width: factor on the layers of ``models.paper_cnn``.
        batch: samples of a step.
        l2: alpha; c counts lambda_0 + alpha.
        c: learning rates in units of 1 / (lambda_0 + l2).
        seeds: number of initialisations.
        steps: gradient steps of every rate.
        probe_samples: training samples that the curvature is measured on.
        model: name in ``models.build``.
        crop: largest random shift of the training images, in pixels.
        flip: mirror training images at random.
    """

    data: str = "digits"
    train: int | None = 512
    test: int | None = None
    width: float = 0.1
    batch: int = 128
    l2: float = 5e-4
    c: tuple[float, ...] = (0.5, 1, 1.5, 2.5, 3, 4, 6, 8, 12, 16, 24)
    seeds: int = 2
    steps: int = 120
    probe_samples: int = 128
    model: str = "cnn"
    crop: int = 0
    flip: bool = False


SETTINGS = {
    "smoke": Settings(
        train=48, test=64, width=0.03, batch=16, c=(1, 3, 300), seeds=1, steps=8, probe_samples=16
    ),
    "cpu": Settings(),
    "full": Settings("cifar-10", None, None, 1.0, 256, seeds=1, steps=437_000, probe_samples=1024),
}


def image_data(settings: Any, context: Context) -> Any:
    """The data set as images."""
    shape = {"flatten": False} if settings.data == "digits" else {}
    return context.data(settings.data, train=settings.train, test=settings.test, **shape)


def network(settings: Any, data: Any, seed: int) -> Any:
    """The network of an accuracy experiment; ``width`` scales the CNN only."""
    shape, outputs = data.x_train.shape[1:], data.outputs
    scaled = {"width": settings.width} if settings.model == "cnn" else {}
    return build(settings.model, shape, outputs, seed=seed, **scaled)


def augmentation(settings: Any) -> Augment | None:
    """Random crops and flips as the settings ask for."""
    wanted = settings.crop > 0 or settings.flip
    return Augment(settings.crop, settings.flip) if wanted else None


def run(settings: Settings, context: Context) -> Outcome:
    """Train the grid and judge the claims of the figure."""
    s = settings
    data = image_data(s, context)
    recipe = Recipe(
        steps=s.steps,
        batch=s.batch,
        l2=s.l2,
        augment=augmentation(s),
        probe_factor=4.0,
        probe_samples=s.probe_samples,
    )

    def make(seed: int) -> Start:
        return start(network(s, data, seed), data, "half_mse_mean", recipe)

    records = grid.run_grid(context, s.model, make, s.c, s.seeds, recipe)
    rows = grid.by_rate(records)
    stable = median(grid.largest_stable(records))
    claims = [
        grid.claim_best(rows, stable),
        _claim_drop(rows, stable),
        grid.claim_bound(rows),
    ]
    panels = {
        "accuracy": grid.panel_accuracy(rows, f"Test accuracy after {s.steps} steps"),
        "curvature": grid.panel_lambda(rows, "eta_lambda_end", "eta * lambda at the end"),
        "loss": grid.panel_losses(records, "Early loss of the first seed's batches"),
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
    lost = [r for r in above if r["diverged"] or r["dead"]]
    weak = [r["test_accuracy"] for r in above if r not in lost and r["test_accuracy"]]
    return Claim(
        "sharp drop after eta_max",
        "beyond eta_max training fails at once rather than degrading slowly",
        f"largest stable c {stable:g}; of the {len(above)} larger rates {len(lost)} diverge or die "
        f"for some seed; best accuracy of the others {show(max(weak, default=None))}",
        None if not above else len(lost) == len(above),
        "the largest rate of the grid was stable" if not above else "",
    )
