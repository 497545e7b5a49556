"""How a sweep's loss is identified in its run folder."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor

from catapult_ext import losses
from catapult_ext._store import update_digest


def describe_loss(loss: Any) -> Any:
    """A loss as JSON values: its name, or the class and every setting of a loss module."""
    if isinstance(loss, str):
        return loss
    settings: dict[str, Any] = {"type": getattr(loss, "name", type(loss).__name__)}
    for name, value in sorted(getattr(loss, "__dict__", {}).items()):
        if isinstance(value, (bool, int, float, str)):
            settings[name] = value
    for name, value in getattr(loss, "_buffers", {}).items():
        if isinstance(value, Tensor):
            digest = hashlib.sha256()
            update_digest(digest, name, value)
            settings[name] = digest.hexdigest()[:16]
    inner = getattr(loss, "module", None)
    if isinstance(loss, losses.Loss) and inner is not None:
        settings["module"] = describe_loss(inner)
    return settings
