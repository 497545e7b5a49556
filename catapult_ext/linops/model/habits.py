"""Observations of a model's first pass, and random numbers that are not torch's."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from catapult_ext import _validate as v


@dataclass
class Habits:
    """Observations of a model's first pass, which later passes need not repeat; None: not known.

    Attributes:
        writes_inputs: it writes its inputs in place.
        draws: it draws random numbers of Python or NumPy.
        takes_channels_last: it gives the outputs of the plain layout with channels last.
        repeats: a second pass was seen to give the outputs of the first one.
    """

    writes_inputs: bool | None = None
    draws: bool | None = None
    takes_channels_last: bool | None = None
    repeats: bool | None = None


class WrittenParameters:
    """Records, in the first pass, whether the model writes its parameters; shared by parts.

    It is found again for every freeze: some models write in one state and not in another.
    """

    def __init__(self) -> None:
        self.known: bool | None = None

    def see(self, names: list[str], where: str) -> bool:
        """Whether the pass that wrote parameters ``names`` has to run again, on copies.

        Raises:
            ValueError: passes before did not write them.
        """
        v.require(
            not names or self.known is None,
            where,
            "the model must write its parameters in place in every pass or in none (run it once "
            "under torch.no_grad() before)",
            f"a pass that wrote {', '.join(names[:4])} after one that wrote none",
        )
        self.known = bool(names) or bool(self.known)
        return bool(names)


def _moved(now: Any, before: Any) -> bool:
    """Whether the state of NumPy's generator changed: its position, its key or a kept Gaussian."""
    return now[2:] != before[2:] or bool((now[1] != before[1]).any())


@contextmanager
def other_generators(habits: Habits | None = None) -> Iterator[None]:
    """The random numbers of Python and NumPy, as they were after.

    ``habits`` notes whether any were drawn; where it knows that none are, nothing is saved.
    """
    if habits is not None and habits.draws is False:
        yield
        return
    numpy = sys.modules.get("numpy")
    python = random.getstate()
    others = None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        moved = random.getstate() != python
        if moved:
            random.setstate(python)
        if numpy is not None and _moved(numpy.random.get_state(), others):
            numpy.random.set_state(others)
            moved = True
        if habits is not None:
            habits.draws = bool(habits.draws) or moved


@contextmanager
def later_random_numbers(habits: Habits) -> Iterator[None]:
    """Other random numbers of Python and NumPy inside, for models that draw any."""
    if not habits.draws:
        yield
        return
    with other_generators():
        random.random()
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.random()
        yield
