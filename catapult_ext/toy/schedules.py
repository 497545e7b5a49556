"""Learning rates that change from step to step: (R, steps) tensors for ``toy.simulate``."""

from __future__ import annotations

import torch
from torch import Tensor

from catapult_ext import _validate

_MOST_STEPS = 10**9
Rates = float | list[float] | Tensor


def _column(where: str, rates: Rates, steps: int) -> Tensor:
    _validate.integers(where, steps=steps)
    _validate.require(steps >= 0, where, "steps must be >= 0", steps)
    _validate.require(steps <= _MOST_STEPS, where, f"steps must be <= {_MOST_STEPS}", steps)
    return _validate.array(where, "rates", rates, torch.float64).reshape(-1, 1)


def warm_up(rates: Rates, steps: int, over: int) -> Tensor:
    """Linear growth over the first ``over`` steps, then constant: rate * min((t + 1) / over, 1).

    Args:
        rates: (R,) rates to reach, in units of eta or of c.
        steps: columns of the result.
        over: length of the warm-up; 0 for none.

    Raises:
        ValueError: over < 0.

    Examples:
        >>> cx.toy.warm_up(1.0, steps=4, over=2).tolist()
        [[0.5, 1.0, 1.0, 1.0]]
    """
    column = _column("toy.warm_up", rates, steps)
    _validate.integers("toy.warm_up", over=over)
    _validate.require(over >= 0, "toy.warm_up", "over must be >= 0", over)
    t = torch.arange(1, steps + 1, dtype=torch.float64, device="cpu")
    return column * (t / max(over, 1)).clamp(max=1)


def drop(rates: Rates, steps: int, at: int, factor: float) -> Tensor:
    """Rates that are multiplied by ``factor`` from step ``at`` on.

    Raises:
        ValueError: factor not positive.

    Examples:
        >>> cx.toy.drop(1.0, steps=4, at=2, factor=0.5).tolist()
        [[1.0, 1.0, 0.5, 0.5]]
    """
    column = _column("toy.drop", rates, steps)
    _validate.integers("toy.drop", at=at)
    _validate.numbers("toy.drop", factor=factor)
    _validate.require(factor > 0, "toy.drop", "factor must be positive", factor)
    t = torch.arange(steps, device="cpu")
    return column * torch.where(t < at, 1.0, float(factor)).double()


def staircase(rates: Rates, steps: int, every: int, factor: float) -> Tensor:
    """The rates times ``factor`` every ``every`` steps: a persistent catapult.

    A catapult ends with eta * lambda below 2, mostly far below; a stair that lifts it above 2 again
    sets off the next one, so that the curvature falls step by step
    (Kalra and Barkeshli, arXiv 2406.09405).

    Raises:
        ValueError: every < 1, or factor not positive.

    Examples:
        >>> cx.toy.staircase(1.0, steps=4, every=2, factor=2.0).tolist()
        [[1.0, 1.0, 2.0, 2.0]]
    """
    column = _column("toy.staircase", rates, steps)
    _validate.integers("toy.staircase", every=every)
    _validate.numbers("toy.staircase", factor=factor)
    _validate.require(every >= 1, "toy.staircase", "every must be >= 1", every)
    _validate.require(factor > 0, "toy.staircase", "factor must be positive", factor)
    stairs = torch.arange(steps, device="cpu") // every
    return column * torch.as_tensor(float(factor), dtype=torch.float64, device="cpu") ** stairs
