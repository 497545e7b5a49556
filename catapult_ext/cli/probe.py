"""catapult-ext probe and max-lr: the curvature of a model, and its learning rates."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any

from catapult_ext import losses
from catapult_ext.cli.console import console, load, picture_path
from catapult_ext.cli.options import DATA_DIR, STANDARDISE, Argument, Option
from catapult_ext.experiments import probing
from catapult_ext.models.registry import NAMES, is_name
from catapult_ext.probes import LearningRateWindow, learning_rate_window

_MODEL = "package.module:factory, called without arguments, or " + ", ".join(NAMES) + "."
_FORWARD = "package.module:function of (model, x) that returns the outputs."
_PARAMS = "Names or patterns of the parameters to take, separated by commas."
_DROPOUT = "fixed: one fixed mask, with the model in the factory's mode; else dropout is off."
_BATCH_STATS = "Batch normalisation: coupled, frozen or running."
_BUDGET = "Memory of the operators, as '512 MiB'."


def _problem(
    model: str,
    data: str,
    loss: str,
    samples: int | None,
    forward: str | None,
    params: str | None,
    dropout: str | None,
    memory_budget: str | None,
    data_dir: Path | None,
    standardise: str | None,
) -> tuple[Any, Any, Any, dict[str, Any]]:
    known = losses.resolve(loss)
    by_name = is_name(model)  # built by the shapes of the data
    how: dict[str, Any] = {"data_dir": data_dir, "standardise": standardise}
    how |= {"flatten": False} if by_name else {}
    read = functools.partial(probing.load_data, data, samples, **how)
    held = read() if by_name else None
    net = probing.load_model(model, held)
    options = {
        "forward": probing.load_function("--forward", forward),
        "params": None if params is None else [name.strip() for name in params.split(",")],
        "dropout": dropout,
        "memory_budget": memory_budget,
    }
    if dropout is None:
        net.eval()
    held = held if by_name else read()
    found = probing.in_dtype_of(net, probing.as_targets(known, held))
    return net, known, found, options


def _print_window(window: LearningRateWindow) -> None:
    shown = console()
    lines = [
        f"lambda_0  {window.lambda0:.5g} +- {window.error:.2g} ({window.index_check})",
        f"eta_crit  {window.eta_crit:.5g} +- {window.eta_crit_error:.2g} "
        f"({window.rule}, the model linearised at its start)",
        "eta_c     none found"
        if window.eta_c is None
        else f"eta_c     {window.eta_c:.4g} (first step leaves the loss as it was)",
    ]
    if window.eta_max is None:
        lines.append("eta_max   not known")
    else:
        low, high = window.eta_max
        steps = window.evidence["trial_steps"]
        source = {
            "measured": f"measured in {steps} steps",
            "trials": f"trials of {steps} steps in all",
            "table": f"estimate: {window.evidence['table']}",
        }[window.eta_max_from or ""]
        lines.append(f"eta_max   {low:.4g} to {high:.4g} ({source})")
    if window.start is not None:
        lines.append(f"start     {window.start:.4g}")
    for line in lines:
        shown.print(line, highlight=False, soft_wrap=True)
    shown.print("\n" + window.advice(), highlight=False)


def probe(
    model: Annotated[str, Argument(_MODEL)],
    data: Annotated[
        str,
        Option("A name, FILE.npz or FILE.pt (x, y), or module:function of a batch or loader."),
    ] = "digits",
    data_dir: Annotated[Path | None, Option(DATA_DIR)] = None,
    standardise: Annotated[str | None, Option(STANDARDISE)] = None,
    loss: Annotated[str, Option(", ".join(losses.NAMED))] = "half_mse",
    k: Annotated[int, Option("Eigenvalues of each operator.")] = 3,
    samples: Annotated[int, Option("First so many samples.")] = 512,
    tol: Annotated[float, Option("Relative error of the eigenvalues.")] = 1e-3,
    out: Annotated[Path | None, Option("Write the spectrum's picture here (PNG).")] = None,
    seed: Annotated[int, Option("Of random vectors.")] = 0,
    forward: Annotated[str | None, Option(_FORWARD)] = None,
    params: Annotated[str | None, Option(_PARAMS)] = None,
    dropout: Annotated[str | None, Option(_DROPOUT)] = None,
    batch_stats: Annotated[str | None, Option(_BATCH_STATS)] = None,
    memory_budget: Annotated[str | None, Option(_BUDGET)] = None,
) -> None:
    """Show how curved a model is: top of NTK, GGN and Hessian, and its learning rates."""
    net, known, found, options = _problem(
        *(model, data, loss, samples, forward, params, dropout, memory_budget),
        *(data_dir, standardise),
    )
    if out is not None:
        picture_path("probe", out)
    options |= {"k": k, "tol": tol, "density": out is not None, "seed": seed}
    result = probing.probe(net, known, found, batch_stats=batch_stats, **options)
    box = load("rich.box").SIMPLE_HEAD
    table = load("rich.table").Table(title=model, header_style="bold", box=box)
    for name in result.rows[0]:
        table.add_column(name, justify="right")
    for row in result.rows:
        table.add_row(*(f"{v:.5g}" if isinstance(v, float) else str(v) for v in row.values()))
    console().print(table)
    _print_window(result.window)
    if out is not None and result.density is not None:
        result.density.plot(out, name="Hessian")
        print(f"\nPicture: {out}")


def max_lr(
    model: Annotated[str, Argument(_MODEL)],
    data: Annotated[str, Option("As of catapult-ext probe.")] = "digits",
    data_dir: Annotated[Path | None, Option(DATA_DIR)] = None,
    standardise: Annotated[str | None, Option(STANDARDISE)] = None,
    loss: Annotated[str, Option(", ".join(losses.NAMED))] = "half_mse",
    samples: Annotated[int, Option("First so many samples.")] = 512,
    measure: Annotated[
        int, Option("Steps of training runs that measure eta_max; 0: short trials.")
    ] = 0,
    trial_steps: Annotated[int, Option("Steps of each trial; 0: none.")] = 32,
    seed: Annotated[int, Option("Of random vectors.")] = 0,
    forward: Annotated[str | None, Option(_FORWARD)] = None,
    params: Annotated[str | None, Option(_PARAMS)] = None,
    dropout: Annotated[str | None, Option(_DROPOUT)] = None,
    batch_stats: Annotated[str | None, Option(_BATCH_STATS)] = None,
    memory_budget: Annotated[str | None, Option(_BUDGET)] = None,
) -> None:
    """Show how large a learning rate a model stands, and what happens above which rate."""
    net, known, found, options = _problem(
        *(model, data, loss, samples, forward, params, dropout, memory_budget),
        *(data_dir, standardise),
    )
    if batch_stats is not None:
        options["batch_stats"] = batch_stats
    window = learning_rate_window(
        net, known, found, trial_steps=trial_steps, measure=measure, seed=seed, **options
    )
    _print_window(window)
