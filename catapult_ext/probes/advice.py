"""A learning-rate window and its words: each sentence says what its numbers rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from catapult_ext.figures.drawn import Drawn
from catapult_ext.figures.runs import window_figure
from catapult_ext.probes.activation_table import IN_PARAMETERS


@dataclass(frozen=True, eq=False, repr=False)
class LearningRateWindow(Drawn, saved=True):
    """Learning rates of one model, loss, data set and optimizer.

    Rates are those of the first parameter group; others keep their ratio to it.

    Attributes:
        lambda0: top eigenvalue of the loss's Gauss-Newton matrix at this point (penalties,
            preconditioner and the ratios of the groups' rates included).
        error: its error bound, backed by ``index_check``.
        index_check: see :class:`~catapult_ext.EigshResult`.
        eta_crit: exact for the model linearised at this point: below it that model's training
            decays, above it grows. Training moves the curvature, so it bounds nothing by itself.
            NaN for an optimizer without a threshold (``evidence["reason"]``).
        eta_crit_error: from ``error``.
        eta_c: rate at which the first step leaves the loss as it was, by forward passes alone.
        eta_max: (low, high), where the largest rate that trains is expected: measured, or from
            short trials, or from the activation table; None where none of them applies.
        eta_max_from: "measured", "trials", "table" or None.
        eta_max_measured: (largest rate that trained, smallest that did not) with ``measure=``.
        start: a rate to start training with; None without trials or measurement.
        rule: optimizer and its factor.
        flags: what makes a number doubtful, in words.
        evidence: everything the numbers rest on.

    Examples:
        >>> data = torch.randn(8, 3), torch.randn(8, 1)
        >>> window = cx.learning_rate_window(nn.Linear(3, 1), "mse", data, trial_steps=0)
        >>> abs(window.eta_crit * window.lambda0 - 2) < 1e-6
        True
    """

    lambda0: float
    error: float
    index_check: str
    eta_crit: float
    eta_crit_error: float
    eta_c: float | None
    eta_max: tuple[float, float] | None
    eta_max_from: str | None
    eta_max_measured: tuple[float, float] | None
    start: float | None
    rule: str
    flags: tuple[str, ...]
    evidence: dict[str, Any]

    def _line(self) -> str:
        begin = "" if self.start is None else f"start with {self.start:.3g}; "
        largest = "unknown"
        if self.eta_max is not None:
            low, high = self.eta_max
            largest = f"{low:.3g} to {high:.3g} ({self.eta_max_from})"
        edge = f"edge at this point {self.eta_crit:.3g} +- {self.eta_crit_error:.1g}"
        return f"learning rates for {self.rule}: {begin}largest that trains {largest}; {edge}"

    def _table(self) -> list[dict[str, Any]]:
        low, high = self.eta_max or (None, None)
        rows = {
            "start": self.start,
            "largest that trains, from": low,
            "largest that trains, to": high,
            "edge of the linearised model": self.eta_crit,
            "first step leaves the loss as it was": self.eta_c,
            "lambda_0": self.lambda0,
        }
        return [{"quantity": name, "value": value} for name, value in rows.items()]

    def _figure(self) -> Any:
        """The rates and the trials on one axis."""
        named = {"start": self.start, "edge now": self.eta_crit, "loss unmoved": self.eta_c}
        marks = {k: rate for k, rate in named.items() if rate is not None and rate > 0}
        trials = [(t.rate, t.failure is None) for t in self.evidence.get("trials") or []]
        return window_figure(marks, self.eta_max, trials)

    def advice(self) -> str:
        """The measurements, then what is exact at the start only, in a few sentences."""
        parts = [_largest(self), _at_the_start(self), _catapult(self), _movement(self)]
        parts += [f"Note: {flag}." for flag in self.flags]
        return " ".join(part for part in parts if part)


def _largest(window: LearningRateWindow) -> str:
    if window.eta_max is None and any("train" in flag for flag in window.flags):
        return f"For {window.rule}, the trials found no largest rate that trains."
    if window.eta_max is None:
        return (
            "Nothing is known about training beyond its start: pass trial_steps= or measure= for "
            "the rates at which it works."
        )
    low, high = window.eta_max
    evidence = window.evidence
    if evidence["table"] == IN_PARAMETERS and window.eta_max_from == "table":
        return (
            f"For {window.rule}, rates below {low:.3g} train and rates above diverge: the loss is "
            "a quadratic of the parameters, and there is no catapult."
        )
    if window.eta_max_from == "measured":
        return (
            f"For {window.rule}, {low:.3g} trained for {evidence['measure']} steps and {high:.3g} "
            f"did not ({_failure(window)}): start with {window.start:.3g}."
        )
    if window.eta_max_from == "table":
        return (
            f"For {window.rule}, expect the largest rate that trains between {low:.3g} and "
            f"{high:.3g}, as estimated for {evidence['table']} (NTK-like initialisation, squared "
            "loss); training itself was not tried."
        )
    return (
        f"For {window.rule}, start with {window.start:.3g} and expect the largest rate that trains "
        f"between {low:.3g} and {high:.3g}: {len(evidence['trials'])} trials, "
        f"{evidence['trial_steps']} steps in all, ended with a rate at which "
        f"{_failure(window)}."
    )


def _failure(window: LearningRateWindow) -> str:
    """Why the smallest rate that failed did."""
    failed = [t for t in window.evidence["trials"] if t.failure is not None]
    least = min(failed, key=lambda t: t.rate)
    return "training diverged" if least.failure == "diverged" else str(least.failure)


def _at_the_start(window: LearningRateWindow) -> str:
    evidence = window.evidence
    if evidence["reason"] is not None:
        return f"It has no stability threshold: {evidence['reason']}."
    if evidence["table"] == IN_PARAMETERS and window.eta_max_from == "table":
        return ""
    text = f"The model linearised at this point has its edge at {window.eta_crit:.3g}"
    measured = window.eta_max_measured
    if measured is not None and measured[1] <= window.eta_crit:
        return f"{text}; the measurement overrules it, as the curvature moves in training."
    return f"{text}, which bounds nothing once the curvature moves."


def _catapult(window: LearningRateWindow) -> str:
    if window.eta_c is None or window.eta_max is None or window.eta_c >= window.eta_max[1]:
        return ""
    if window.evidence["table"] == IN_PARAMETERS:
        return ""
    return f"Above {window.eta_c:.3g} the loss rises at the first step: a catapult, or the end."


def _movement(window: LearningRateWindow) -> str:
    after = window.evidence["lambda_after"]
    if after is None:
        return ""
    passed = [t for t in window.evidence["trials"] if t.failure is None]
    rate = max(t.rate for t in passed)
    lowest = min(passed, key=lambda t: t.end)
    return (
        f"The trial at {rate:.3g} took the top curvature from {window.lambda0:.3g} to {after:.3g}; "
        f"the lowest loss after {lowest.steps} steps was that at {lowest.rate:.3g}."
    )
