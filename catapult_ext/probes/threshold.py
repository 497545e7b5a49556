"""The stability threshold of any optimizer that filters its gradients linearly.

A mode of curvature lambda has k = lr * lambda (of the preconditioned Hessian, where there is a
preconditioner), and its multipliers z solve k = (1 - z) / Q(z) with the filter Q that impulses
show (:mod:`catapult_ext.probes.step_filter`).  From k = 0 upwards the mode is stable until a
multiplier reaches the unit circle: the threshold k* is the least positive real value of
(1 - e^(i omega)) / Q(e^(i omega)) over omega in (0, pi] (arXiv 2608.18415).
"""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._shown import Shown
from catapult_ext.probes.step_filter import NoFilter, StepFilter, settings, step_filter

_WHERE = "stability_threshold"
_LEAST_GRID = 4096
_BISECTIONS = 60
_KEPT = 64  # settings whose threshold is remembered


@dataclass(frozen=True, eq=False, repr=False)
class StabilityThreshold(Shown, saved=True):
    """Threshold at which the linearised dynamics of an optimizer lose stability.

    Attributes:
        k: learning rate times lambda at the threshold, where lambda is the top curvature
            (preconditioned if the optimizer is); NaN if there is no threshold.
        omega: angle in (0, pi] of the multiplier e^(i omega) that reaches the unit circle; NaN
            if there is no threshold.
        response: (T,) float64, the filter's impulse response; None without a linear filter.
        preconditioned: whether lambda is the top eigenvalue of P^-1 H; None without a filter.
        reason: why there is no threshold; None if there is one.

    Examples:
        >>> found = cx.stability_threshold(torch.optim.SGD(nn.Linear(3, 1).parameters(), lr=0.1))
        >>> found.k, found.preconditioned
        (2.0, False)
    """

    k: float
    omega: float
    response: Tensor | None
    preconditioned: bool | None
    reason: str | None

    def _line(self) -> str:
        if self.reason is not None:
            return f"no stability threshold: {self.reason}"
        of = "preconditioned curvature" if self.preconditioned else "curvature"
        return f"unstable above lr * lambda = {self.k:.6g} (lambda: top {of})"

    @property
    def gamma(self) -> float:
        """2 / k, the factor Gamma of arXiv 2608.18415: 1 for gradient descent."""
        return 2 / self.k


def stability_threshold(
    optimizer: torch.optim.Optimizer, *, group: int | None = None
) -> StabilityThreshold:
    """k* = lr * lambda at which an optimizer's linearised dynamics become unstable.

    No class is known by name: the filter is read from a small copy's answer to an impulse, with
    second moments held constant.  Gradient descent gives 2, heavy ball 2 (1 + beta), Adam with its
    preconditioner held 2 (1 + beta1) / (1 - beta1).  Weight decay is left out: a penalty alpha in
    the gradient adds to lambda.

    Args:
        optimizer: any torch optimizer, or a subclass; it is left as it is.
        group: index of a parameter group; None: all, which must share their filter.

    Returns:
        The threshold, or its reason: ``reason`` is set and ``k`` is NaN for optimizers that are no
        linear filter (Rprop, Muon, Adafactor, LBFGS), and for groups of different filters.

    Raises:
        TypeError: no torch.optim.Optimizer.
        ValueError: no such group.

    Cost:
        Two or three impulse responses of a 2 x 2 copy: about 20 ms for beta = 0.9.

    Examples:
        >>> import torch, catapult_ext as cx
        >>> w = torch.nn.Parameter(torch.zeros(3))
        >>> round(cx.stability_threshold(torch.optim.SGD([w], lr=0.1, momentum=0.9)).k, 9)
        3.8
        >>> round(cx.stability_threshold(torch.optim.Adam([w])).k, 9)
        38.0
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer).__name__
        v.fail(_WHERE, "optimizer must be a torch.optim.Optimizer", kind, TypeError)
    v.integers(_WHERE, group=group, optional=True)
    count = len(optimizer.param_groups)
    inside = group is None or 0 <= group < count
    v.require(inside, _WHERE, f"group must be one of {count} parameter groups", group)
    if group is not None:
        return _of_group(optimizer, group)
    first: dict[str, int] = {}
    for index, held in enumerate(optimizer.param_groups):
        first.setdefault(settings(held), index)
    found = [_of_group(optimizer, index) for index in first.values()]
    missing = next((t for t in found if t.reason is not None), None)
    if missing is not None:
        return missing
    if any(not math.isclose(t.k, found[0].k, rel_tol=1e-9) for t in found):
        listed = ", ".join(f"{t.k:.6g}" for t in found)
        return _none(f"the parameter groups have different thresholds ({listed}): pass group=")
    return found[0]


def _of_group(optimizer: Any, index: int) -> StabilityThreshold:
    try:
        filtered = step_filter(optimizer, index)
    except NoFilter as error:
        return _none(str(error))
    if not float(filtered.response.sum()) > 0:
        return _none("the filter's gain at omega = 0 is not positive: it does not descend")
    k, omega = least_crossing(filtered)
    if not math.isfinite(k):
        return _none("no positive k reaches the unit circle", filtered)
    return StabilityThreshold(k, omega, filtered.response, filtered.preconditioned, None)


def _none(reason: str, filtered: StepFilter | None = None) -> StabilityThreshold:
    if filtered is None:
        return StabilityThreshold(math.nan, math.nan, None, None, reason)
    response, preconditioned = filtered.response, filtered.preconditioned
    return StabilityThreshold(math.nan, math.nan, response, preconditioned, reason)


class ThresholdCache:
    """Thresholds of one optimizer by its settings; a schedule of the rate does not change them."""

    def __init__(self) -> None:
        self._known: dict[str, StabilityThreshold] = {}

    def of(self, optimizer: torch.optim.Optimizer) -> StabilityThreshold:
        """Threshold of the optimizer with its present settings."""
        key = "".join(settings(group) for group in optimizer.param_groups)
        if key not in self._known:
            if len(self._known) >= _KEPT:  # a schedule of the momentum
                self._known.clear()
            self._known[key] = stability_threshold(optimizer)
        return self._known[key]


def least_crossing(filtered: StepFilter) -> tuple[float, float]:
    """(k, omega) of the least positive real (1 - e^(i omega)) / Q(e^(i omega)); inf without one.

    With F = (1 - e^(i omega)) conj(Q), real values of the quotient are the zeros of Im F, and they
    are positive where Re F > 0.  A grid of eight points for each lag of the response brackets them.
    """
    size = 2 ** math.ceil(math.log2(max(_LEAST_GRID, 8 * len(filtered.response))))
    omega = torch.arange(1, size // 2, dtype=torch.float64, device="cpu") * (2 * math.pi / size)
    gain = torch.fft.rfft(filtered.response, n=size)[1:-1]
    grid = ((1 - torch.polar(torch.ones_like(omega), omega)) * gain.conj()).imag
    roots = [math.pi]
    for i in (grid[:-1] * grid[1:] <= 0).nonzero()[:, 0].tolist():
        roots.append(_bisected(filtered, omega[i].item(), omega[i + 1].item()))
    found = [(k, at) for at in roots if (k := _quotient(filtered, at).real) > 0]
    return min(found, default=(math.inf, math.nan))


def _quotient(filtered: StepFilter, omega: float) -> complex:
    gain = filtered.at(omega)
    return (1 - cmath.exp(1j * omega)) / gain if gain else complex(math.inf)


def _bisected(filtered: StepFilter, low: float, high: float) -> float:
    left = _quotient(filtered, low).imag
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        value = _quotient(filtered, middle).imag
        if left * value > 0:
            low, left = middle, value
        else:
            high = middle
    return (low + high) / 2
