"""The paper's experiments, each as one command with a report claim by claim."""

from __future__ import annotations

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
    "Claim",
    "Experiment",
    "Outcome",
    "Reproduction",
    "claim_rows",
    "compare",
    "experiment",
    "names",
    "reproduce",
]


def __dir__() -> list[str]:
    return __all__
