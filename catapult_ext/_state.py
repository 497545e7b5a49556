"""State dictionaries: what ``torch.save`` keeps of an object that is resumed later."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from catapult_ext import _validate as v


def attributes(owner: object, names: Sequence[str]) -> dict[str, Any]:
    """Copies of the attributes ``names``, without the underscores that some begin with."""
    return {name.lstrip("_"): copy.deepcopy(getattr(owner, name)) for name in names}


def put(owner: object, names: Sequence[str], state: dict[str, Any]) -> None:
    """Set the attributes ``names`` to copies of what :func:`attributes` found."""
    for name in names:
        setattr(owner, name, copy.deepcopy(state[name.lstrip("_")]))


def check_state(
    where: str, state: object, known: dict[str, Any], names: Sequence[str] = ()
) -> None:
    """Raise unless ``state`` is a dictionary with the entries ``known`` and the keys ``names``.

    Raises:
        TypeError: no dictionary.
        ValueError: an entry differs, as in the state of another kind of object, or is missing.
    """
    if not isinstance(state, dict):
        v.fail(where, "state must be what state_dict() returned", type(state).__name__, TypeError)
    for name, value in known.items():
        same = state.get(name) == value
        v.require(same, where, f"state must have {name} = {value!r}", repr(state.get(name)))
    missing = [name for name in names if name.lstrip("_") not in state]
    v.require(not missing, where, "state must be whole", f"one without {', '.join(missing)}")
