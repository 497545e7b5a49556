"""How an operator of one model hands over to the operator of several models."""

from __future__ import annotations

from typing import Any

from torch import nn

_SERVED: dict[type, type] = {}  # by the operator of one model, that of several


def is_several(models: object) -> bool:
    """Whether an operator of several models is asked for: a list or tuple, whatever is in it."""
    return isinstance(models, (list, tuple)) and not isinstance(models, nn.Module)


class TakesSeveral:
    """``Operator(models, ...)`` of a list or tuple makes the operator that serves several."""

    def __new__(cls, models: Any = None, *args: Any, **options: Any) -> Any:
        """An operator of ``cls`` for one model, one of the class registered for several."""
        named = options.get("model", models)  # as an operator of one model calls it
        if is_several(named) and cls in _SERVED:
            options.pop("model", None)
            return _SERVED[cls](named, *args, **options)
        return super().__new__(cls)


def serve_several(one: type, several: type) -> None:
    """Let ``one(models, ...)`` make a ``several(models, ...)``."""
    _SERVED[one] = several
