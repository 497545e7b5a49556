"""Phases and observables of training."""

from __future__ import annotations

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
from catapult_ext.probes.threshold import StabilityThreshold, stability_threshold
from catapult_ext.probes.tracker import CurvatureTracker
from catapult_ext.probes.window import LearningRateWindow, learning_rate_window

__all__ = [
    "PHASES",
    "Activity",
    "CurvatureTracker",
    "EdgeMeter",
    "EdgeRow",
    "Evidence",
    "LearningRateWindow",
    "StabilityThreshold",
    "Verdict",
    "accuracy",
    "activity",
    "classify",
    "divergence_cut",
    "hidden_width",
    "learning_rate_window",
    "stability_threshold",
    "weight_norm",
]


def __dir__() -> list[str]:
    return __all__
