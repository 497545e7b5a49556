"""Test accuracy of a Wide ResNet after a fixed number of steps (ICLR version, figure 3 c)."""

from __future__ import annotations

from catapult_ext.experiments.reproduce.cnn_fixed_steps import Settings, run

__all__ = ["SETTINGS", "SOURCE", "TITLE", "run"]

TITLE = "Wide ResNet at a fixed number of steps"
SOURCE = (
    "Lewkowycz et al., figure 3 c: Wide ResNet 28-10, CIFAR-10, batch 1024, L2, augmentation, "
    "12k steps"
)
SETTINGS = {
    "smoke": Settings(
        train=32,
        test=32,
        batch=16,
        c=(1, 400),
        seeds=1,
        steps=3,
        probe_samples=16,
        model="wrn-10-1",
        crop=1,
    ),
    "cpu": Settings(
        batch=128,
        c=(0.5, 1, 1.5, 2.5, 4, 6, 8, 12, 24),
        seeds=3,
        steps=400,
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
        steps=12_000,
        probe_samples=512,
        model="wrn-28-10",
        crop=4,
        flip=True,
    ),
}
