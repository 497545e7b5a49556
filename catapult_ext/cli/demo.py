"""catapult-ext demo: the main job with no argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from catapult_ext.cli.console import print_result, sweep_progress
from catapult_ext.experiments.demo import TITLE, DemoConfig, run_demo


def register(app: Any, typer: Any) -> None:
    """Add the command."""

    @app.command()
    def demo(
        out: Path = typer.Option(Path("catapult-runs/demo"), help="Run folder."),  # noqa: B008
        fresh: bool = typer.Option(False, "--fresh", help="Start anew in an existing run folder."),
        seed: int = typer.Option(0, help="Of the initial weights."),
        width: int = typer.Option(512, help="Units of each of the three hidden layers."),
        steps: int = typer.Option(100, help="Gradient steps of every learning rate."),
    ) -> None:
        """Train a ReLU network on handwritten digits at 21 learning rates, lazy to divergent.

        Follows the loss and the curvature at each, prints the table, and leaves pictures and
        report.html in the run folder. The same command again goes on where it was interrupted.
        """
        config = DemoConfig(width=width, steps=steps, seed=seed)
        with sweep_progress() as progress:
            result = run_demo(config, out=out, fresh=fresh, progress=progress)
        print_result(result, TITLE)
