"""catapult-ext sweep: a learning-rate sweep of a built-in network on any data."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from catapult_ext import _validate as v
from catapult_ext import data, losses, models
from catapult_ext.cli.console import launched_ranks, on_threads, print_result, sweep_progress
from catapult_ext.cli.options import DATA_DIR, STANDARDISE, THREADS, Option
from catapult_ext.experiments import SeedSweeps, SweepResult
from catapult_ext.experiments.sweep import run, run_seeds
from catapult_ext.experiments.sweep_config import SweepConfig


class ModelName(str, Enum):
    """Built-in networks."""

    fc = "fc"
    cnn = "cnn"
    gpt = "gpt"
    vit = "vit"


# Width and depth of the networks where none is given; None for one that has no such setting.
USUAL = {"fc": (512, 3), "cnn": (512, None), "gpt": (32, 2), "vit": (32, 2)}


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
    width: Annotated[
        int | None, Option("Hidden units, channels or features; default 512, of transformers 32.")
    ] = None,
    depth: Annotated[int | None, Option("Hidden layers (3) or blocks (2).")] = None,
    activation: Annotated[
        str | None, Option(", ".join(models.ACTIVATIONS) + "; default relu, of transformers gelu.")
    ] = None,
    parameterisation: Annotated[str, Option("ntk or standard.")] = "ntk",
    init: Annotated[
        str | None, Option("Named initialisation; default normal (ntk), he or lecun (standard).")
    ] = None,
    steps: Annotated[int, Option("Full-batch gradient steps of every learning rate.")] = 200,
    loss: Annotated[
        str, Option(", ".join(losses.NAMED) + "; half_mse: 1/2N sum, half_mse_mean: 1/2NO sum.")
    ] = "half_mse",
    linearised: Annotated[bool, Option("Also sweep the linearised net.", "--linearised")] = False,
    seed: Annotated[int, Option("Of weights and data.")] = 0,
    seeds: Annotated[
        int, Option("Networks to sweep on the same data, with weights of --seed, --seed + 1, ...")
    ] = 1,
    threads: Annotated[int | None, Option(THREADS)] = None,
) -> None:
    """Train one network at many learning rates and follow its curvature.

    Under torchrun, the ranks divide the rates.
    """
    v.require(1 <= seeds <= 1000, "sweep", "--seeds must be 1 to 1000", seeds)
    chosen, plain = rates("sweep", "--c", c), rates("sweep", "--eta", eta)
    config = SweepConfig(c=chosen, eta=plain, steps=steps, linearised=linearised)
    image = model_name in (ModelName.cnn, ModelName.vit)
    drawn: dict[str, Any] = {"seed": seed} if data_name in data.SYNTHETIC else {}
    drawn |= {"data_dir": data_dir, "standardisation": standardise, "where": "sweep"}
    found = data.named(data_name, train=samples, flatten=not image, **drawn)
    v.require(tests >= 0, "sweep", "--tests must be >= 0", tests)
    found = replace(found, x_test=found.x_test[:tests], y_test=found.y_test[:tests])
    kind = model_name.value
    shape = f"{data_name} of shape {tuple(found.x_train.shape)}"
    wanted = f"--model {kind} needs images (N, C, S, S), such as --data digits28 or fashion-mnist"
    v.require(not image or found.x_train.dim() == 4, "sweep", wanted, shape)
    tokens = not found.x_train.is_floating_point()
    wanted = "--model gpt and data of characters, such as --data sums, go together"
    v.require(tokens == (kind == "gpt"), "sweep", wanted, f"{kind} on {shape}")
    usual_width, usual_depth = USUAL[kind]
    settings: dict[str, Any] = {"parameterisation": parameterisation, "init": init}
    settings |= {} if activation is None else {"activation_name": activation}
    settings["channels" if kind == "cnn" else "width"] = usual_width if width is None else width
    if usual_depth is not None:
        settings["depth"] = usual_depth if depth is None else depth
    name_of = "small-cnn" if kind == "cnn" else kind
    nets = [
        models.build(name_of, found.x_train.shape[1:], found.outputs, seed=each, **settings)
        for each in range(seed, seed + seeds)
    ]
    folder = out if out is not None else Path("catapult-runs") / name
    title = f"Learning-rate sweep: {kind} on {found.name}"
    title += f", seeds {seed} to {seed + seeds - 1}" if seeds > 1 else ""
    with launched_ranks() as (group, talks):
        bars = sweep_progress() if talks else nullcontext(None)
        with on_threads(threads, talks=talks), bars as progress:
            options: dict[str, Any] = {"out": folder, "fresh": fresh, "title": title}
            options |= {"progress": progress, "group": group}
            result: SweepResult | SeedSweeps
            if seeds == 1:
                result = run(config, nets[0], found, loss, **options)
            else:
                result = run_seeds(config, nets, found, loss, first_seed=seed, **options)
    if talks:
        print_result(result, title)
