"""Phases and observables of training."""

from __future__ import annotations

from catapult_ext.probes.by_layer import ByLayer, by_layer
from catapult_ext.probes.checkpoints import CheckpointError
from catapult_ext.probes.edge_meter import EdgeMeter
from catapult_ext.probes.edge_row import EdgeRow
from catapult_ext.probes.observables import (
    Activity,
    accuracy,
    activity,
    hidden_width,
    weight_norm,
)
from catapult_ext.probes.phases import PHASES, Evidence, Verdict, classify, divergence_cut
from catapult_ext.probes.stacked_tracker import StackedCurvatureTracker, StackedRow
from catapult_ext.probes.threshold import StabilityThreshold, stability_threshold
from catapult_ext.probes.track import Track, track
from catapult_ext.probes.tracker import CurvatureTracker
from catapult_ext.probes.window import LearningRateWindow, learning_rate_window

__all__ = [
    "PHASES",
    "Activity",
    "ByLayer",
    "CheckpointError",
    "CurvatureTracker",
    "EdgeMeter",
    "EdgeRow",
    "Evidence",
    "LearningRateWindow",
    "StabilityThreshold",
    "StackedCurvatureTracker",
    "StackedRow",
    "Track",
    "Verdict",
    "accuracy",
    "activity",
    "by_layer",
    "classify",
    "divergence_cut",
    "hidden_width",
    "learning_rate_window",
    "stability_threshold",
    "track",
    "weight_norm",
]


def __dir__() -> list[str]:
    return __all__
