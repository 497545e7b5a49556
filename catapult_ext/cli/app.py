"""The typer application; typer is an optional package and is loaded when a command is run."""

from __future__ import annotations

from typing import Any

from catapult_ext.cli import demo, info, probe, reproduce, sweep, toy
from catapult_ext.cli.console import load


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
    )
    for command in (demo, toy, probe, sweep, reproduce, info):
        command.register(app, typer)
    return app
