"""catapult-ext sweep: a learning-rate sweep of a built-in network on built-in data."""

from __future__ import annotations

from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import Any

from catapult_ext import _validate as v
from catapult_ext import data, losses, models
from catapult_ext.cli.console import launched_ranks, print_result, sweep_progress
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


def register(app: Any, typer: Any) -> None:
    """Add the command."""
    option = typer.Option

    @app.command()
    def sweep(
        c: str = option(None, help="Learning rates in units of 1/lambda_0: 0.5,1,2.1,3"),
        eta: str = option(None, help="Learning rates as they are (instead of --c)."),
        name: str = option("sweep", help="Run folder under ./catapult-runs."),
        out: Path = option(None, help="Run folder (instead of --name)."),  # noqa: B008
        fresh: bool = option(False, "--fresh", help="Start anew in an existing run folder."),
        data_name: str = option("digits", "--data", help=", ".join(data.NAMES)),
        samples: int = option(512, help="Training samples."),
        model_name: ModelName = option(ModelName.fc, "--model", help="Network."),  # noqa: B008
        width: int = option(512, help="Hidden units, or channels of the CNN."),
        depth: int = option(3, help="Hidden layers of the fully connected network."),
        activation: str = option("relu", help=", ".join(models.ACTIVATIONS)),
        parameterisation: str = option("ntk", help="ntk or standard."),
        init: str = option(None, help="Named initialisation; default normal (ntk), he (standard)."),
        steps: int = option(200, help="Full-batch gradient steps of every learning rate."),
        loss: str = option(
            "half_mse",
            help=", ".join(losses.NAMED) + "; half_mse: 1/2N sum, half_mse_mean: 1/2NO sum.",
        ),
        linearised: bool = option(False, "--linearised", help="Also sweep the linearised net."),
        seed: int = option(0, help="Of weights and data."),
    ) -> None:
        """Train one network at many learning rates and follow its curvature.

        Started by torchrun, the ranks share out the rates.
        """
        chosen, plain = rates("sweep", "--c", c), rates("sweep", "--eta", eta)
        config = SweepConfig(c=chosen, eta=plain, steps=steps, linearised=linearised)
        image = model_name is ModelName.cnn
        drawn: dict[str, Any] = {"seed": seed} if data_name in data.SYNTHETIC else {}
        found = data.named(data_name, train=samples, flatten=not image, **drawn)
        fits = not image or (found.x_train.dim() == 4 and found.x_train.shape[1] == 1)
        wanted = "--model cnn needs images of one channel, as --data digits or digits28"
        v.require(fits, "sweep", wanted, data_name)
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
