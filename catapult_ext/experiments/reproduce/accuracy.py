"""Settings, data and network of the experiments on test accuracy (figure 3 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from catapult_ext.data import Augment, Dataset
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.settings import setting
from catapult_ext.models import build


@dataclass(frozen=True)
class AccuracySettings:
    """Settings of training with l2/2 |theta|^2 added to the loss.

    Attributes:
        data: name of the data set.
        train: training samples; None for all.
        test: test samples; None for all others.
        width: factor on the layers of ``models.paper_cnn``.
        batch: samples of a step.
        l2: alpha; c counts lambda_0 + alpha.
        c: learning rates in units of 1 / (lambda_0 + l2).
        seeds: number of initialisations.
        probe_samples: training samples that the curvature is measured on.
        model: name in ``models.build``.
        crop: largest random shift of the training images, in pixels.
        flip: mirror training images at random.
        loss: trained, by its name (``losses.resolve``); default 1/(2 N O) sum |f - y|^2.
    """

    data: str = "digits"
    train: int | None = 512
    test: int | None = setting(None, least=0)
    width: float = 0.1
    batch: int = 32
    l2: float = setting(5e-4, least=0)
    c: tuple[float, ...] = (0.5, 1, 1.5, 2.5, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
    seeds: int = 2
    probe_samples: int = 128
    model: str = "cnn"
    crop: int = setting(0, least=0)
    flip: bool = False
    loss: str = "half_mse_mean"

    def load(self, context: Context) -> Dataset:
        """The data set as images."""
        return context.data(self.data, train=self.train, test=self.test)

    def network(self, data: Dataset, seed: int) -> Any:
        """The network of a seed; ``width`` scales the CNN only."""
        scaled = {"width": self.width} if self.model == "cnn" else {}
        return build(self.model, data.x_train.shape[1:], data.outputs, seed=seed, **scaled)

    @property
    def augmentation(self) -> Augment | None:
        """Random crops and flips as the settings ask for."""
        wanted = self.crop > 0 or self.flip
        return Augment(self.crop, self.flip) if wanted else None
