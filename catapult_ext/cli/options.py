"""How commands describe their parameters, without typer: ``Annotated[int, Option("Steps.")]``.

A command is a plain function of its module, so that it can be imported, called and tested.
:func:`as_command` turns it into what typer understands, where typer is loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_type_hints

DATA_DIR = "Folder of data files; default $CATAPULT_DATA, then installed packages."
STANDARDISE = "Of inputs: global, channel, pixel, image or none; default by the data."
THREADS = "Threads to compute on; default $OMP_NUM_THREADS, else one: the nets are small."
_CONTEXT = "context"  # the parameter in which typer passes what was typed


@dataclass(frozen=True)
class Option:
    """A parameter given by name, as ``--steps 100``.

    Attributes:
        help: one line for ``--help``.
        name: of the option; None takes the parameter's.  A flag has a name, else typer adds its
            negation.
    """

    help: str
    name: str | None = None


@dataclass(frozen=True)
class Argument:
    """A parameter given by its position."""

    help: str


def as_command(
    function: Callable[..., None], typer: Any, *, default_of_group: bool = False
) -> Callable[..., None]:
    """``function`` with its parameters, defaults and help texts where typer looks for them.

    Args:
        function: a command, whose annotations hold an :class:`Option` or :class:`Argument` each.
        typer: the loaded package.
        default_of_group: the command of a group, which runs where no subcommand is named.
    """

    def command(**values: Any) -> None:
        context = values.pop(_CONTEXT, None)
        if context is None or context.invoked_subcommand is None:
            function(**values)

    hints = get_type_hints(function, include_extras=True)
    kinds: dict[str, Any] = {}
    parameters = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind, described = get_args(hints[name])
        if isinstance(described, Argument):
            info = typer.Argument(help=described.help)
        else:
            names = () if described.name is None else (described.name,)
            info = typer.Option(*names, help=described.help)
        kinds[name] = Annotated[kind, info]
        parameters.append(parameter.replace(annotation=kinds[name]))
    if default_of_group:
        kinds[_CONTEXT] = typer.Context
        place = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(_CONTEXT, place, annotation=typer.Context))
    command.__annotations__ = kinds
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    return command
