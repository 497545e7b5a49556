"""catapult-ext toy: the two-layer linear model of the paper, exact at any width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from catapult_ext.cli import toy_figures
from catapult_ext.cli.console import print_result
from catapult_ext.cli.sweep import rates
from catapult_ext.experiments.toy_phases import TITLE, ToyConfig, run_toy
from catapult_ext.toy.problem import check_width


def register(app: Any, typer: Any) -> None:
    """Add the group: the command itself, and its subcommands diagram and figure."""
    option = typer.Option
    group = typer.Typer(invoke_without_command=True)

    def toy(
        context: Any,
        c: str = option(None, help="Learning rates in units of 1/lambda_0: 0.5,2.1,3,4.1"),
        width: float = option(1e6, help="Hidden units; the exact form costs the same at any."),
        samples: int = option(20, help="Training samples."),
        in_features: int = option(5, help="Input dimension."),
        steps: int = option(300, help="Gradient steps."),
        seed: int = option(0, help="Of data and weights."),
        out: Path = option(Path("catapult-runs/toy"), help="Run folder."),  # noqa: B008
        fresh: bool = option(False, "--fresh", help="Start anew in an existing run folder."),
    ) -> None:
        """Show the lazy, catapult and divergent phases of f(x) = v.Ux / sqrt(width)."""
        if context.invoked_subcommand is not None:
            return
        chosen = rates("toy", "--c", c) or ToyConfig.c
        units = int(check_width("toy", width))
        config = ToyConfig(chosen, units, samples, in_features, steps, seed)
        print_result(run_toy(config, out=out, fresh=fresh), TITLE)

    toy.__annotations__["context"] = typer.Context  # typer is known at run time only
    group.callback()(toy)
    toy_figures.register(group, typer)
    app.add_typer(group, name="toy")
