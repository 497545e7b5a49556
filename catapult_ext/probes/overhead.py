"""Cost of probing relative to training, and whether one more probe fits a budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from catapult_ext._state import attributes, put

_COLD_FORWARDS = 50  # a checked solve in forward passes: about 20 products and the freezing
_FIRST_SHARE = 0.1  # of the budget of a training, for one checked solve
_STATE = ("training", "probing")


class Overhead:
    """Splits wall-clock time between training and probing.

    Args:
        budget: most that probing may take, as a share of training time; None for no limit.
        clock: seconds; for tests.
    """

    def __init__(
        self, budget: float | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.budget, self.clock = budget, clock
        self.training = self.probing = 0.0
        self._mark: float | None = None

    def enter(self) -> None:
        """Training stops here; the first call only starts the clock."""
        now = self.clock()
        if self._mark is not None:
            self.training += now - self._mark
        self._mark = now

    def waited(self) -> None:
        """After :meth:`enter`: a device was waited for, and what it did was training."""
        assert self._mark is not None
        now = self.clock()
        self.training, self._mark = self.training + now - self._mark, now

    def leave(self) -> float:
        """Training continues; returns the seconds since :meth:`enter`."""
        assert self._mark is not None
        now = self.clock()
        spent, self._mark = now - self._mark, now
        self.probing += spent
        return spent

    @property
    def share(self) -> float:
        """Probing over training time; 0 before any training."""
        return self.probing / self.training if self.training > 0 else 0.0

    def affords(self, seconds: float) -> bool:
        """Whether ``seconds`` more of probing keep within the budget."""
        return self.budget is None or self.probing + seconds <= self.budget * self.training

    def share_of_samples(self, forward: float, count: int, planned: int) -> float:
        """Share of the samples on which a checked solve costs a tenth of the budget of a training.

        Args:
            forward: seconds of a forward pass of all samples.
            count: training steps made so far.
            planned: training steps in all.
        """
        assert self.budget is not None
        allowed = _FIRST_SHARE * self.budget * planned * self.training / count
        return min(1.0, allowed / max(_COLD_FORWARDS * forward, 1e-12))

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far."""
        return attributes(self, _STATE)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the seconds; the time between counts as neither."""
        put(self, _STATE, state)
