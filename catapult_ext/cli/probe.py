"""catapult-ext probe and max-lr: the curvature of a model, and its learning rates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from catapult_ext import losses
from catapult_ext.cli import probed
from catapult_ext.cli.console import console, picture_path
from catapult_ext.cli.options import DATA_DIR, STANDARDISE, Argument, Option
from catapult_ext.experiments import probing
from catapult_ext.experiments.named_optimizer import load_optimizer
from catapult_ext.probes import by_layer as layers_of
from catapult_ext.probes import learning_rate_window
from catapult_ext.probes.problem import Problem

OPTIMIZER = (
    "A class of torch.optim, with settings: adamw or 'SGD(lr=0.1, momentum=0.9)'; or "
    "package.module:function of the model. Default: gradient descent."
)


def probe(
    model: Annotated[str, Argument(probed.MODEL)],
    data: Annotated[
        str,
        Option("A name, FILE.npz or FILE.pt (x, y), or module:function of a batch or loader."),
    ] = "digits",
    data_dir: Annotated[Path | None, Option(DATA_DIR)] = None,
    standardise: Annotated[str | None, Option(STANDARDISE)] = None,
    loss: Annotated[str, Option(", ".join(losses.NAMED))] = "half_mse",
    checkpoint: Annotated[Path | None, Option(probed.CHECKPOINT)] = None,
    k: Annotated[int, Option("Eigenvalues of each operator.")] = 3,
    by_layer: Annotated[
        bool, Option("Also the top of every layer's block of the GGN.", "--by-layer")
    ] = False,
    samples: Annotated[int, Option("Number of samples to use, the first ones.")] = 512,
    tol: Annotated[float, Option("Relative error of the eigenvalues.")] = 1e-3,
    out: Annotated[
        Path | None, Option("Write the spectrum's picture here (PNG); of the last checkpoint.")
    ] = None,
    as_json: Annotated[bool, Option(probed.JSON, "--json")] = False,
    seed: Annotated[int, Option(probed.SEED)] = 0,
    device: Annotated[str, Option(probed.DEVICE)] = "cpu",
    forward: Annotated[str | None, Option(probed.FORWARD)] = None,
    params: Annotated[str | None, Option(probed.PARAMS)] = None,
    dropout: Annotated[str | None, Option(probed.DROPOUT)] = None,
    batch_stats: Annotated[str | None, Option(probed.BATCH_STATS)] = None,
    memory_budget: Annotated[str | None, Option(probed.BUDGET)] = None,
) -> None:
    """Show how curved a model is: top of NTK, GGN and Hessian, and its learning rates."""
    problem = probed.problem_of(
        probed.Given(
            *("probe", model, data, loss, samples, seed, device, checkpoint, data_dir, standardise),
            *(forward, params, dropout, memory_budget),
        )
    )
    if out is not None:
        picture_path("probe", out)
    options = problem.options | {"k": k, "tol": tol, "density": out is not None, "seed": seed}
    start = None
    for name in problem.each():
        result = probing.probe(
            problem.net,
            problem.loss,
            problem.data,
            batch_stats=batch_stats,
            start=start,
            progress=True,
            **options,
        )
        start = result.vectors
        layers = _layers(problem, batch_stats, seed) if by_layer else None
        if as_json:
            found: dict[str, Any] = {"model": model, "checkpoint": name, "seed": seed}
            found["rows"] = result.rows
            found["window"] = probed.window_facts(result.window)
            probed.print_json(found if layers is None else found | {"layers": layers.rows})
        else:
            probed.print_rows(result.rows, model if name is None else f"{model}, {name}")
            if layers is not None:
                probed.print_rows(layers._table(), "Blocks of the GGN")
            probed.print_seed(seed)
            probed.print_window(result.window)
        if out is not None and result.density is not None:
            result.density.plot(out, name="Hessian")
    if out is not None and not as_json:
        print(f"\nPicture: {out}")


def _layers(problem: probed.Problem, batch_stats: str | None, seed: int) -> Any:
    """Blocks of the GGN to 1 %, with batch norm as the window takes it."""
    known = Problem.of(problem.loss, problem.data, "probe", seed=seed, **problem.options)
    with probing.held(problem.net, batch_stats, known) as (still, policy):
        options = {**known.options, "batch_stats": policy}
        return layers_of(still, problem.loss, known.data, **options)


def max_lr(
    model: Annotated[str, Argument(probed.MODEL)],
    data: Annotated[str, Option("As of catapult-ext probe.")] = "digits",
    data_dir: Annotated[Path | None, Option(DATA_DIR)] = None,
    standardise: Annotated[str | None, Option(STANDARDISE)] = None,
    loss: Annotated[str, Option(", ".join(losses.NAMED))] = "half_mse",
    checkpoint: Annotated[Path | None, Option(probed.CHECKPOINT)] = None,
    samples: Annotated[int, Option("Number of samples to use, the first ones.")] = 512,
    optimizer: Annotated[str | None, Option(OPTIMIZER)] = None,
    burn_in: Annotated[
        int,
        Option("Steps of the optimizer before curvature is taken; Adam and the like need some."),
    ] = 0,
    measure: Annotated[
        int, Option("Steps of training runs that measure eta_max; 0: short trials.")
    ] = 0,
    trial_steps: Annotated[int, Option("Steps of each trial; 0: none.")] = 32,
    as_json: Annotated[bool, Option(probed.JSON, "--json")] = False,
    seed: Annotated[int, Option(probed.SEED)] = 0,
    device: Annotated[str, Option(probed.DEVICE)] = "cpu",
    forward: Annotated[str | None, Option(probed.FORWARD)] = None,
    params: Annotated[str | None, Option(probed.PARAMS)] = None,
    dropout: Annotated[str | None, Option(probed.DROPOUT)] = None,
    batch_stats: Annotated[str | None, Option(probed.BATCH_STATS)] = None,
    memory_budget: Annotated[str | None, Option(probed.BUDGET)] = None,
) -> None:
    """Show how large a learning rate a model stands, and what happens above which rate."""
    problem = probed.problem_of(
        probed.Given(
            *("max-lr", model, data, loss, samples, seed, device, checkpoint, data_dir),
            *(standardise, forward, params, dropout, memory_budget),
        )
    )
    trained_by = load_optimizer(optimizer, problem.net)
    options = problem.options | {"burn_in": burn_in}
    if batch_stats is not None:
        options["batch_stats"] = batch_stats
    for name in problem.each():
        window = learning_rate_window(
            problem.net,
            problem.loss,
            problem.data,
            trained_by,
            trial_steps=trial_steps,
            measure=measure,
            seed=seed,
            progress=True,
            **options,
        )
        if as_json:
            found = {"model": model, "checkpoint": name, "seed": seed, "optimizer": optimizer}
            probed.print_json(found | {"window": probed.window_facts(window)})
            continue
        if name is not None:
            console().print(f"\n{name}", style="bold", highlight=False, markup=False)
        probed.print_seed(seed)
        probed.print_window(window)
