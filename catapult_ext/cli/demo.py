"""catapult-ext demo: the main job with no argument."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from catapult_ext.cli.console import on_threads, print_result, sweep_progress
from catapult_ext.cli.options import THREADS, Option
from catapult_ext.experiments.demo import TITLE, DemoConfig, run_demo


def demo(
    out: Annotated[Path, Option("Run folder.")] = Path("catapult-runs/demo"),
    fresh: Annotated[bool, Option("Start again in an existing run folder.", "--fresh")] = False,
    seed: Annotated[int, Option("Of the initial weights.")] = 0,
    width: Annotated[int, Option("Units of each of the three hidden layers.")] = 512,
    steps: Annotated[int, Option("Gradient steps of every learning rate.")] = 100,
    threads: Annotated[int | None, Option(THREADS)] = None,
) -> None:
    """Train a ReLU network on handwritten digits at 21 learning rates, lazy to divergent.

    Follows the loss and the curvature at each, prints the table, and leaves pictures and
    report.html in the run folder. The same command resumes an interrupted run.
    """
    config = DemoConfig(width=width, steps=steps, seed=seed)
    with on_threads(threads), sweep_progress() as progress:
        result = run_demo(config, out=out, fresh=fresh, progress=progress)
    print_result(result, TITLE)
