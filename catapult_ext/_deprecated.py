"""Old names of functions and modules, which work for one release with a DeprecationWarning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

_BETWEEN = ("catapult_ext", "contextlib")  # a method may run inside a context used as a decorator


def warn_renamed(old: str, new: str) -> None:
    """Warn the code outside this package that used an old name.

    Args:
        old: the name that was used, as in ``cx.<old>``.
        new: the name that replaces it.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].split(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    message = f"catapult_ext.{old} is deprecated: use catapult_ext.{new}"
    warnings.warn(message, DeprecationWarning, stacklevel=level)


def module(old: str, new: str, public: str | None = None) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module whose names are now in module ``new``.

    Args:
        old: full name of the old module.
        new: full name of the module that holds the names.
        public: module that users should import from; default ``new``.
    """

    def get(name: str) -> Any:
        if name.startswith("__"):  # what the import system asks for
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(new), name)
        text = f"{old}.{name} is deprecated: import {name} from {public or new}"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return value

    return get
