"""The demonstration: a three-hidden-layer ReLU network on handwritten digits, lazy to divergent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from catapult_ext import models
from catapult_ext.data import digits
from catapult_ext.experiments.result import SweepResult
from catapult_ext.experiments.sweep import run
from catapult_ext.experiments.sweep_config import SweepConfig
from catapult_ext.experiments.sweeping import Progress

TITLE = "The catapult: a ReLU network on handwritten digits"

# Dense where the thresholds lie (2 to 3 and 8 to 12), and on into divergence.
_LAZY = (0.5, 1.0, 1.5, 1.95)
_ONSET = (2.05, 2.2, 2.3, 2.4, 2.5, 2.75)
_BEYOND = (3.25, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 16.0, 24.0)
RATES = (*_LAZY, *_ONSET, *_BEYOND)


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demonstration; the defaults are what the command runs.

    Attributes:
        width: units of each of the three hidden layers (NTK parameterisation, sigma_w^2 = 2).
        samples: training images of the 1797; the others are the test set.
        steps: full-batch gradient steps of every rate.
        c: learning rates in units of 1 / lambda_0.
        seed: seed of the initial weights.

    Examples:
        >>> from catapult_ext.experiments import DemoConfig
        >>> DemoConfig(width=64, steps=20).samples
        512
    """

    width: int = 512
    samples: int = 512
    steps: int = 100
    c: tuple[float, ...] = RATES
    seed: int = 0


def run_demo(
    config: DemoConfig | None = None,
    *,
    out: Path | str | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> SweepResult:
    """Sweep the demonstration's network, and the same network linearised at its start.

    Args:
        config: settings; default :class:`DemoConfig`.
        out: run folder, or None for memory only.
        fresh: start again in a folder that holds an earlier run.
        progress: called with what happens.

    Returns:
        The sweep's result; ``.closing()`` says what was found.

    Raises:
        ValueError: for a setting the data or the network does not allow.
        RuntimeError: without the extra ``experiments``, or a run folder that cannot be used.

    Examples:
        >>> from catapult_ext.experiments import DemoConfig, run_demo
        >>> config = DemoConfig(width=8, samples=32, steps=2, c=(0.5, 1.0))
        >>> result = run_demo(config)
        >>> len(result.records)
        2
    """
    config = config or DemoConfig()
    if progress is not None:
        progress.stage("the handwritten digits")
    settings = SweepConfig(c=config.c, steps=config.steps, probe_factor=2.5, linearised=True)
    data = digits(8, train=config.samples)
    model = models.fully_connected(64, 10, width=config.width, depth=3, seed=config.seed)
    return run(settings, model, data, out=out, fresh=fresh, title=TITLE, progress=progress)
