"""Learning rates that change from step to step: (R, steps) tensors for ``toy.simulate``."""

from __future__ import annotations

import torch
from torch import Tensor

from catapult_ext._validate import require

Rates = float | list[float] | Tensor


def _column(rates: Rates) -> Tensor:
    return torch.as_tensor(rates, dtype=torch.float64).reshape(-1, 1)


def warm_up(rates: Rates, steps: int, over: int) -> Tensor:
    """Linear growth over the first ``over`` steps, then constant: rate * min((t + 1) / over, 1).

    Args:
        rates: (R,) rates to reach, in units of eta or of c.
        steps: columns of the result.
        over: length of the warm-up; 0 for none.

    Raises:
        ValueError: over < 0.
    """
    require(over >= 0, "toy.warm_up", "over must be >= 0", over)
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    return _column(rates) * (t / max(over, 1)).clamp(max=1)


def drop(rates: Rates, steps: int, at: int, factor: float) -> Tensor:
    """One drop: the rates times ``factor`` from step ``at`` on.

    Raises:
        ValueError: factor not positive.
    """
    require(factor > 0, "toy.drop", "factor must be positive", factor)
    t = torch.arange(steps)
    return _column(rates) * torch.where(t < at, 1.0, factor).double()


def staircase(rates: Rates, steps: int, every: int, factor: float) -> Tensor:
    """The rates times ``factor`` every ``every`` steps: a persistent catapult.

    A catapult ends with eta * lambda below 2, mostly far below; a stair that lifts it above 2 again
    sets off the next one, so that the curvature falls step by step
    (Kalra and Barkeshli, arXiv 2406.09405).

    Raises:
        ValueError: every < 1, or factor not positive.
    """
    require(every >= 1, "toy.staircase", "every must be >= 1", every)
    require(factor > 0, "toy.staircase", "factor must be positive", factor)
    stairs = torch.arange(steps) // every
    return _column(rates) * torch.as_tensor(factor, dtype=torch.float64) ** stairs
