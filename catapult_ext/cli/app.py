"""The typer application; typer is an optional package and is loaded when a command is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from catapult_ext import __version__
from catapult_ext.cli import demo, info, probe, reproduce, sweep, table, toy, toy_figures, track
from catapult_ext.cli.console import load
from catapult_ext.cli.options import Option, as_command

COMMANDS: tuple[Callable[..., None], ...] = (
    demo.demo,
    probe.probe,
    probe.max_lr,
    track.track,
    sweep.sweep,
    reproduce.reproduce,
    reproduce.compare,
    table.table,
    info.info,
)
TOY_COMMANDS: tuple[Callable[..., None], ...] = (
    toy_figures.diagram,
    toy_figures.bifurcation,
    toy_figures.noise,
    toy_figures.figure,
)


def build_app() -> Any:
    """All commands in one typer application.

    Raises:
        MissingExtra: typer or rich is not installed; the message names the extra.
    """
    typer = load("typer")
    load("rich")
    app = typer.Typer(
        help="Curvature of neural networks and the catapult phase of large learning rates.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        invoke_without_command=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(as_command(_version, typer, default_of_group=True))
    for function in COMMANDS:
        app.command()(as_command(function, typer))
    group = typer.Typer(invoke_without_command=True)
    group.callback()(as_command(toy.toy, typer, default_of_group=True))
    for function in TOY_COMMANDS:
        group.command()(as_command(function, typer))
    app.add_typer(group, name="toy")
    return app


def _version(
    version: Annotated[bool, Option("Show the version and exit.", "--version")] = False,
) -> None:
    """Curvature of neural networks and the catapult phase of large learning rates."""
    if version:
        print(f"catapult_ext {__version__}")
