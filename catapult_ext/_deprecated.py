"""Old names of public functions, which work for one release with a DeprecationWarning."""

from __future__ import annotations

import warnings


def warn_renamed(old: str, new: str) -> None:
    """Warn whoever called the public function that calls this one.

    Args:
        old: the name that was used, as in ``cx.<old>``.
        new: the name that replaces it.
    """
    message = f"catapult_ext.{old} is deprecated: use catapult_ext.{new}"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
