"""Experiments: each a config dataclass, a function that runs it, and a result dataclass."""

from __future__ import annotations

from catapult_ext.experiments.demo import DemoConfig, run_demo
from catapult_ext.experiments.result import SweepResult
from catapult_ext.experiments.seed_sweeps import SeedSweeps
from catapult_ext.experiments.sweep import run, sweep
from catapult_ext.experiments.sweep_config import SweepConfig
from catapult_ext.experiments.sweeping import Progress
from catapult_ext.experiments.toy_phases import ToyConfig, ToyResult, run_toy

__all__ = [
    "DemoConfig",
    "Progress",
    "SeedSweeps",
    "SweepConfig",
    "SweepResult",
    "ToyConfig",
    "ToyResult",
    "run",
    "run_demo",
    "run_toy",
    "sweep",
]


def __dir__() -> list[str]:
    return __all__
