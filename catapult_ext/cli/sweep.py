"""catapult-ext sweep: a learning-rate sweep of a built-in network on any data."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from catapult_ext import _validate as v
from catapult_ext import data, losses, models
from catapult_ext.cli.console import launched_ranks, print_result, sweep_progress
from catapult_ext.cli.options import DATA_DIR, STANDARDISE, Option
from catapult_ext.experiments.sweep import SweepConfig, run


class ModelName(str, Enum):
    """Built-in networks."""

    fc = "fc"
    cnn = "cnn"


def rates(command: str, option: str, text: str | None) -> tuple[float, ...] | None:
    """Comma-separated numbers, at least one; None where the option is not given."""
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = ()
    v.require(bool(found), command, f"{option} must be numbers separated by commas", repr(text))
    return found


def sweep(
    c: Annotated[str | None, Option("Learning rates in units of 1/lambda_0: 0.5,1,2.1,3")] = None,
    eta: Annotated[str | None, Option("Learning rates as they are (instead of --c).")] = None,
    name: Annotated[str, Option("Run folder under ./catapult-runs.")] = "sweep",
    out: Annotated[Path | None, Option("Run folder (instead of --name).")] = None,
    fresh: Annotated[bool, Option("Start again in an existing run folder.", "--fresh")] = False,
    data_name: Annotated[str, Option(", ".join(data.NAMES), "--data")] = "digits",
    data_dir: Annotated[Path | None, Option(DATA_DIR)] = None,
    standardise: Annotated[str | None, Option(STANDARDISE)] = None,
    samples: Annotated[int, Option("Training samples.")] = 512,
    tests: Annotated[int, Option("Test samples at most, the first ones.")] = 2000,
    model_name: Annotated[ModelName, Option("Network.", "--model")] = ModelName.fc,
    width: Annotated[int, Option("Hidden units, or channels of the CNN.")] = 512,
    depth: Annotated[int, Option("Hidden layers of the fully connected network.")] = 3,
    activation: Annotated[str, Option(", ".join(models.ACTIVATIONS))] = "relu",
    parameterisation: Annotated[str, Option("ntk or standard.")] = "ntk",
    init: Annotated[
        str | None, Option("Named initialisation; default normal (ntk), he (standard).")
    ] = None,
    steps: Annotated[int, Option("Full-batch gradient steps of every learning rate.")] = 200,
    loss: Annotated[
        str, Option(", ".join(losses.NAMED) + "; half_mse: 1/2N sum, half_mse_mean: 1/2NO sum.")
    ] = "half_mse",
    linearised: Annotated[bool, Option("Also sweep the linearised net.", "--linearised")] = False,
    seed: Annotated[int, Option("Of weights and data.")] = 0,
) -> None:
    """Train one network at many learning rates and follow its curvature.

    Started by torchrun, the ranks share out the rates.
    """
    chosen, plain = rates("sweep", "--c", c), rates("sweep", "--eta", eta)
    config = SweepConfig(c=chosen, eta=plain, steps=steps, linearised=linearised)
    image = model_name is ModelName.cnn
    drawn: dict[str, Any] = {"seed": seed} if data_name in data.SYNTHETIC else {}
    drawn |= {"data_dir": data_dir, "standardisation": standardise, "where": "sweep"}
    found = data.named(data_name, train=samples, flatten=not image, **drawn)
    v.require(tests >= 0, "sweep", "--tests must be >= 0", tests)
    found = replace(found, x_test=found.x_test[:tests], y_test=found.y_test[:tests])
    fits = not image or (found.x_train.dim() == 4 and found.x_train.shape[1] == 1)
    wanted = "--model cnn needs images (N, 1, S, S), such as --data digits28 or fashion-mnist"
    v.require(fits, "sweep", wanted, f"{data_name} of shape {tuple(found.x_train.shape)}")
    settings: dict[str, Any] = {
        "activation_name": activation,
        "parameterisation": parameterisation,
        "init": init,
        "seed": seed,
    }
    if image:
        side = found.x_train.shape[-1]
        model = models.small_cnn(side, found.outputs, channels=width, **settings)
    else:
        features = found.x_train.shape[1]
        model = models.fully_connected(
            features, found.outputs, width=width, depth=depth, **settings
        )
    folder = out if out is not None else Path("catapult-runs") / name
    title = f"Learning-rate sweep: {model_name.value} on {found.name}"
    with launched_ranks() as (group, talks):
        bars = sweep_progress() if talks else nullcontext(None)
        with bars as progress:
            result = run(
                config,
                model,
                found,
                loss,
                out=folder,
                fresh=fresh,
                title=title,
                progress=progress,
                group=group,
            )
    if talks:
        print_result(result, title)
