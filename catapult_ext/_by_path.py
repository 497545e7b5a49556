"""Objects of the user's own modules, named as ``package.module:object``."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

from catapult_ext import _validate as v


def is_path_of_object(text: str) -> bool:
    """Whether ``text`` names an object of a module, and no file."""
    return ":" in text and not Path(text).exists()


def named_object(where: str, kind: str, spec: str) -> Any:
    """The object ``package.module:object`` or ``FILE.py:object``; the working folder is importable.

    Args:
        where: the function named in errors.
        kind: what is named, for errors, such as ``MODEL``.
        spec: the name.

    Raises:
        ValueError: a spec without colon, a module that is not there or fails when it is imported
            (the error names the fault and its line), or an object that is not there.
    """
    place, _, name = spec.partition(":")
    folder = Path.cwd()
    if place.endswith(".py"):
        folder, place = (folder / place).parent, Path(place).stem
    named = all(part.isidentifier() for part in (*place.split("."), name))
    v.require(named, where, f"{kind} must be package.module:factory", spec)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(place)
    except Exception as error:  # whatever the user's module does
        if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
            v.fail(where, f"{kind} must name a module that can be imported", place)
        wanted = f"{kind}: module {place} must import without an error"
        raise ValueError(f"catapult_ext.{where}: {wanted}, got {fault(error)}") from error
    if not hasattr(module, name):
        near = v.nearest(name, [n for n in vars(module) if not n.startswith("_")])
        v.fail(where, f"{kind}: module {place} must have a function {name}", f"no such name{near}")
    return getattr(module, name)


def named_function(where: str, kind: str, spec: str) -> Any:
    """:func:`named_object` that can be called.

    Raises:
        ValueError: as there, or an object that cannot be called.
    """
    found = named_object(where, kind, spec)
    if not callable(found):
        place, _, name = spec.partition(":")
        text = f"{kind}: module {place.removesuffix('.py')} must have a function {name}"
        v.fail(where, text, type(found).__name__)
    return found


def fault(error: BaseException) -> str:
    """An error of the user's own code in one line: its type, what it says and where it arose."""
    said = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {said}"
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {said}{at}"
