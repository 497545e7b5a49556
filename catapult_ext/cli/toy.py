"""catapult-ext toy: the two-layer linear model of the paper, exact at any width."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from catapult_ext.cli.console import print_result
from catapult_ext.cli.options import Option
from catapult_ext.cli.sweep import rates
from catapult_ext.experiments.toy_phases import TITLE, ToyConfig, run_toy
from catapult_ext.toy.problem import check_width


def toy(
    c: Annotated[str | None, Option("Learning rates in units of 1/lambda_0: 0.5,2.1,3,4.1")] = None,
    width: Annotated[float, Option("Hidden units; the exact form costs the same at any.")] = 1e6,
    samples: Annotated[int, Option("Training samples.")] = 20,
    in_features: Annotated[int, Option("Input dimension.")] = 5,
    steps: Annotated[int, Option("Gradient steps.")] = 300,
    seed: Annotated[int, Option("Of data and weights.")] = 0,
    out: Annotated[Path, Option("Run folder.")] = Path("catapult-runs/toy"),
    fresh: Annotated[bool, Option("Start again in an existing run folder.", "--fresh")] = False,
) -> None:
    """Show the lazy, catapult and divergent phases of f(x) = v.Ux / sqrt(width)."""
    chosen = rates("toy", "--c", c) or ToyConfig.c
    units = int(check_width("toy", width))
    config = ToyConfig(chosen, units, samples, in_features, steps, seed)
    print_result(run_toy(config, out=out, fresh=fresh), TITLE)
