"""catapult-ext track: the top eigenvalues along the checkpoints of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from catapult_ext import _validate as v
from catapult_ext import losses
from catapult_ext._shown import number
from catapult_ext.cli import probed
from catapult_ext.cli.console import console, picture_path
from catapult_ext.cli.options import DATA_DIR, STANDARDISE, Argument, Option
from catapult_ext.probes import CheckpointError
from catapult_ext.probes import track as follow


def track(
    model: Annotated[str, Argument(probed.MODEL)],
    checkpoint: Annotated[
        Path | None, Option("A folder of state dicts or safetensors, in natural order; or a file.")
    ] = None,
    data: Annotated[str, Option("As of catapult-ext probe.")] = "digits",
    data_dir: Annotated[Path | None, Option(DATA_DIR)] = None,
    standardise: Annotated[str | None, Option(STANDARDISE)] = None,
    loss: Annotated[str, Option(", ".join(losses.NAMED))] = "half_mse",
    quantity: Annotated[str, Option("ggn, hessian or ntk.")] = "ggn",
    k: Annotated[int, Option("Eigenvalues.")] = 1,
    samples: Annotated[int, Option("Number of samples to use, the first ones.")] = 512,
    tol: Annotated[float, Option("Relative error of the eigenvalues.")] = 1e-3,
    out: Annotated[Path | None, Option("Write the picture here (PNG).")] = None,
    as_json: Annotated[bool, Option(probed.JSON, "--json")] = False,
    seed: Annotated[int, Option(probed.SEED)] = 0,
    device: Annotated[str, Option(probed.DEVICE)] = "cpu",
    forward: Annotated[str | None, Option(probed.FORWARD)] = None,
    params: Annotated[str | None, Option(probed.PARAMS)] = None,
    dropout: Annotated[str | None, Option(probed.DROPOUT)] = None,
    batch_stats: Annotated[str | None, Option("Batch normalisation: coupled or frozen.")] = None,
    memory_budget: Annotated[str | None, Option(probed.BUDGET)] = None,
) -> None:
    """Follow the top eigenvalues through the checkpoints of a model, with warm-started solves.

    The line of each checkpoint is printed at once. A checkpoint that does not fit the model stops
    the command; earlier results are kept.
    """
    v.require(checkpoint is not None, "track", "--checkpoint must name a file or a folder", None)
    problem = probed.problem_of(
        probed.Given(
            *("track", model, data, loss, samples, seed, device, checkpoint, data_dir),
            *(standardise, forward, params, dropout, memory_budget),
        )
    )
    if out is not None:
        picture_path("track", out)
    files = [file for file in problem.checkpoints if file is not None]
    width = max(len(probed.name_of(file)) for file in files)
    if not as_json:
        probed.print_seed(seed)

    def tell(row: dict[str, Any]) -> None:
        if as_json:
            probed.print_json({"model": model, "seed": seed, "quantity": quantity, **row})
        else:
            console().print(_line(row, min(width, 30)), highlight=False, markup=False)

    options = {**problem.options, "batch_stats": batch_stats, "seed": seed}
    try:
        found = follow(
            problem.net,
            files,
            problem.loss,
            problem.data,
            k,
            quantity=quantity,
            tol=tol,
            tell=tell,
            **options,
        )
    except CheckpointError as error:
        if out is not None and error.found is not None and len(error.found):
            error.found.plot(out)
        raise
    if not as_json:
        console().print(f"\n{found!r}", highlight=False, markup=False)
    if out is not None:
        found.plot(out)
        if not as_json:
            print(f"\nPicture: {out}")


def _line(row: dict[str, Any], width: int) -> str:
    name = row["checkpoint"]
    name = name if len(name) <= width else "..." + name[3 - width :]
    pairs = zip(row["values"], row["errors"], strict=True)
    values = ", ".join(f"{number(value)} +- {error:.1g}" for value, error in pairs)
    return f"{name:<{width}}  {values}  ({row['products']} products, {row['index_check']})"
