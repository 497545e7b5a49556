"""Jumps of what is free at every step, at which a followed eigenvalue may have been overtaken."""

from __future__ import annotations

from typing import Any

from catapult_ext._state import attributes, put

_FACTOR = 2.0  # over the largest value since the probe before the last one
_STATE = ("_seen", "_range")


class Jumps:
    """Compares free observables with the range that they had around the last probe.

    The range spans at least the steps between two probes, so that the scatter of batches is part of
    it.
    """

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}
        self._range: dict[str, float] = {}

    def follow(self, **observables: float | None) -> bool:
        """Record one step's observables (None: not measured); return whether any has jumped."""
        jumped = False
        for name, value in observables.items():
            if value is None:
                continue
            largest = self._range.get(name)
            jumped |= largest is not None and value > _FACTOR * largest
            self._seen[name] = max(self._seen.get(name, 0.0), abs(value))
        return jumped

    def probed(self) -> None:
        """A probe was made: later steps are compared with those since the one before."""
        self._range |= self._seen
        self._seen = {}

    def state_dict(self) -> dict[str, Any]:
        """Both ranges."""
        return attributes(self, _STATE)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` kept."""
        put(self, _STATE, state)
