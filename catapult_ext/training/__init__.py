"""Gradient descent: one loop, its batches and its recipes."""

from __future__ import annotations

from catapult_ext.training.batches import drawn, epochs, whole
from catapult_ext.training.loop import (
    Descent,
    Gradients,
    Step,
    TorchSteps,
    full_batch,
    has_diverged,
    moved,
    steps,
)
from catapult_ext.training.recipe import Recipe, probe_schedule

__all__ = [
    "Descent",
    "Gradients",
    "Recipe",
    "Step",
    "TorchSteps",
    "drawn",
    "epochs",
    "full_batch",
    "has_diverged",
    "moved",
    "probe_schedule",
    "steps",
    "whole",
]


def __dir__() -> list[str]:
    return __all__
