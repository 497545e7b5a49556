"""Which phase a run at one learning rate was in, with the evidence for the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from catapult_ext import _validate as v

PHASES = ("lazy", "flat", "catapult", "divergent")
DEAD_FRACTION = 0.95  # above it a layer is called dead: the net no longer sees its inputs


@dataclass(frozen=True)
class Evidence:
    """Measurements behind a verdict; None for a measurement that was not made.

    Attributes:
        c: eta * lambda_0.
        loss_rose_at: first step whose loss exceeds the initial loss.
        loss_peak: largest loss, divided by the initial loss.
        loss_end: last finite loss, divided by the initial loss.
        projection_grew_at: first step at which the residual's projection exceeds its initial value.
        projection_peak: largest projection, divided by its initial value.
        eta_lambda_end: eta * lambda at the end of the run.
        diverged_at: step at which the run was stopped as divergent.
        inactive: largest fraction, over the layers, of inactive units at the end.
    """

    c: float
    loss_rose_at: int | None
    loss_peak: float
    loss_end: float
    projection_grew_at: int | None
    projection_peak: float | None
    eta_lambda_end: float | None
    diverged_at: int | None
    inactive: float | None


@dataclass(frozen=True)
class Verdict:
    """Phase (one of ``PHASES``, see :func:`classify`), flags and evidence of one run.

    Flags: ``dead`` (a layer with more than 95 % inactive units: its low curvature proves nothing),
    ``unsettled`` (eta * lambda still at or above 2 at the end), ``stalled`` (the loss ends no lower
    than it began).
    """

    phase: str
    flags: tuple[str, ...]
    evidence: Evidence

    @property
    def stable(self) -> bool:
        """Whether the run neither diverged nor died."""
        return self.phase != "divergent" and "dead" not in self.flags

    def explain(self) -> str:
        """The verdict and its reasons in one sentence."""
        e = self.evidence
        parts = [f"eta*lambda_0 = {e.c:.3g}"]
        if e.diverged_at is not None:
            parts.append(f"given up at step {e.diverged_at}")
        if e.loss_rose_at is None:
            parts.append("the loss never rose above its start")
        else:
            parts.append(f"the loss rose at step {e.loss_rose_at}, up to {e.loss_peak:.3g} times")
        if e.projection_grew_at is not None:
            parts.append(
                f"the projection grew at step {e.projection_grew_at}, "
                f"up to {e.projection_peak:.3g} times"
            )
        if e.eta_lambda_end is not None and self.phase != "divergent":
            parts.append(f"eta*lambda ends at {e.eta_lambda_end:.3g}")
        if e.inactive is not None and "dead" in self.flags:
            parts.append(f"{e.inactive:.0%} inactive units in a layer")
        name = " ".join((self.phase, *(f"({flag})" for flag in self.flags)))
        return f"{name}: {', '.join(parts)}"


def divergence_cut(loss0: float, width: int, lambda0: float = 0.0, squared: bool = True) -> float:
    """Loss above which a run counts as divergent.

    Of a squared loss 100 * width * max(loss0, lambda0^2 / 8): the peak of a catapult grows in
    proportion to the width (in the toy model it is at most ``width * lambda0^2 / 8``), so a fixed
    cut would call catapults of wide nets divergent.  Of another loss 100 * sqrt(width) * loss0: it
    grows as the outputs do, not as their square, and its lambda says nothing about its height.

    Args:
        loss0: at the start.
        width: units of a hidden layer.
        lambda0: top eigenvalue of the loss's Gauss-Newton matrix at the start.
        squared: whether this is a squared loss.

    Examples:
        >>> from catapult_ext.probes import divergence_cut
        >>> divergence_cut(1.0, width=512, lambda0=4.0) > 1
        True
    """
    v.numbers("probes.divergence_cut", loss0=loss0, width=width, lambda0=lambda0)
    if not squared:
        return 100.0 * math.sqrt(width) * loss0
    return 100.0 * width * max(loss0, lambda0**2 / 8)


def _floats(where: str, name: str, values: object) -> list[float]:
    """Numbers of a sequence, array or tensor; None, as run folders store NaN and inf, is NaN."""
    if isinstance(values, (Tensor, np.ndarray)):
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, str):
        v.fail(where, f"{name} must be a sequence of numbers", type(values).__name__, TypeError)
    for i, x in enumerate(values):
        if x is not None and not v.is_number(x):
            held = f"{x!r} at {i}"
            v.fail(where, f"{name} must be a sequence of numbers", held, TypeError)
    return [math.nan if x is None else float(x) for x in values]


def first_above(values: Sequence[float], start: float) -> int | None:
    """Index of the first value that exceeds ``start`` by more than rounding (1e-6 of it)."""
    limit = start + 1e-6 * abs(start)
    return next((i for i, value in enumerate(values) if value > limit), None)


def classify(
    eta: float,
    lambda0: float,
    loss: Sequence[float],
    *,
    growth: Sequence[float] | None = None,
    lambda_end: float | None = None,
    diverged_at: int | None = None,
    inactive: float | None = None,
    c: float | None = None,
    squared: bool = True,
) -> Verdict:
    """Phase of one run.

    lazy: eta * lambda0 < 2 and the run stays bounded; catapult: eta * lambda0 >= 2 and it stays
    bounded; divergent: it was given up (see :func:`divergence_cut`) or holds a non-finite loss.
    2 is a threshold of squared losses. Under another loss a run from there on is a catapult only
    where the loss exceeds its start, and ``flat`` where it does not.

    Args:
        eta: learning rate, > 0.
        lambda0: top eigenvalue, at the start, of the GGN of the loss that is trained; >= 0.
        loss: loss at steps 0, 1, ... (at least step 0); None, as JSON stores NaN and infinity,
            counts as not finite, here and in ``growth``.
        growth: the residual's projection on the top eigenspace over its start, per step.
        lambda_end: the same eigenvalue at the end.
        diverged_at: step at which the run was given up; None or -1 if it was not.
        inactive: fraction of inactive units at the end, of the worst layer.
        c: eta * lambda0, where it was given and eta derived from it (spares a rounding at 2).
        squared: whether the loss is a squared one.

    Raises:
        ValueError: eta not positive and finite, lambda0 negative or not finite, or no loss.

    Examples:
        >>> from catapult_ext.probes import classify
        >>> classify(0.1, lambda0=5.0, loss=[1.0, 0.5, 0.2, 0.1], lambda_end=5.0).phase  # c = 0.5
        'lazy'
    """
    where = "probes.classify"
    v.numbers(where, eta=eta, lambda0=lambda0)
    v.numbers(where, lambda_end=lambda_end, inactive=inactive, c=c, optional=True)
    loss = _floats(where, "loss", loss)
    growth = None if growth is None else _floats(where, "growth", growth)
    v.require(math.isfinite(eta) and eta > 0, where, "eta must be finite and > 0", eta)
    v.require(
        math.isfinite(lambda0) and lambda0 >= 0, where, "lambda0 must be finite and >= 0", lambda0
    )
    v.require(len(loss) > 0, where, "loss must hold at least the initial value", "no value")
    if diverged_at is None or diverged_at < 0:
        diverged_at = next((i for i, x in enumerate(loss) if not math.isfinite(x)), None)
    finite = [x for x in loss if math.isfinite(x)] or [math.inf]
    start = finite[0] if finite[0] > 0 else math.ulp(0.0)
    grown = None if growth is None else [g for g in growth if math.isfinite(g)]
    rose_at = first_above(loss, loss[0])
    evidence = Evidence(
        c=eta * lambda0 if c is None else c,
        loss_rose_at=diverged_at if rose_at is None else rose_at,
        loss_peak=max(finite) / start,
        loss_end=finite[-1] / start,
        projection_grew_at=None if grown is None else first_above(grown, 1.0),
        projection_peak=max(grown) if grown else None,
        eta_lambda_end=None if lambda_end is None else eta * lambda_end,
        diverged_at=diverged_at,
        inactive=inactive,
    )
    return Verdict(_phase(evidence, squared), _flags(evidence), evidence)


def _phase(e: Evidence, squared: bool) -> str:
    if e.diverged_at is not None:
        return "divergent"
    if e.c < 2:
        return "lazy"
    return "catapult" if squared or e.loss_rose_at is not None else "flat"


def is_dead(inactive: float | None) -> bool:
    """Whether a net is dead: some layer has more than 95 % inactive units.

    Args:
        inactive: largest fraction, over the layers, of inactive units; None if not measured.
    """
    return inactive is not None and inactive > DEAD_FRACTION


def _flags(e: Evidence) -> tuple[str, ...]:
    if e.diverged_at is not None:
        return ()
    flags = {
        "dead": is_dead(e.inactive),
        "unsettled": e.eta_lambda_end is not None and e.eta_lambda_end >= 2,
        "stalled": e.loss_end >= 1,
    }
    return tuple(name for name, holds in flags.items() if holds)
