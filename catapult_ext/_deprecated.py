"""Old public names, which work for one release with a DeprecationWarning."""

from __future__ import annotations

import sys
import warnings

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
