"""The paper's experiments, each as one command with a report claim by claim."""

from __future__ import annotations

from catapult_ext.experiments.descent import Recipe
from catapult_ext.experiments.reproduce.brackets import Bracket, listed, within
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.grid import Problem, brackets, by_rate, run_grid
from catapult_ext.experiments.reproduce.grid_panels import (
    panel_accuracy,
    panel_lambda,
    panel_losses,
    panel_peak,
)
from catapult_ext.experiments.reproduce.outcome import Claim, Experiment, Outcome, Reproduction
from catapult_ext.experiments.reproduce.registry import (
    SCALES,
    experiment,
    names,
    reproduce,
)
from catapult_ext.experiments.reproduce.report import claim_rows, compare

__all__ = [
    "SCALES",
    "Bracket",
    "Claim",
    "Context",
    "Experiment",
    "Outcome",
    "Problem",
    "Recipe",
    "Reproduction",
    "brackets",
    "by_rate",
    "claim_rows",
    "compare",
    "experiment",
    "listed",
    "names",
    "panel_accuracy",
    "panel_lambda",
    "panel_losses",
    "panel_peak",
    "reproduce",
    "run_grid",
    "within",
]


def __dir__() -> list[str]:
    return __all__
