"""The record that an :class:`~catapult_ext.EdgeMeter` makes of one step."""

from __future__ import annotations

import math
from typing import TypedDict


class EdgeRow(TypedDict):
    """One step.  What was not measured is NaN.

    Attributes:
        step: calls of :meth:`EdgeMeter.step` before it.
        loss: at the parameters theta where the step began.
        change: dL = L(theta_+) - L(theta) on the same batch.
        descent: eta g.u = g.(theta - theta_+), what the step would gain to first order.
        zeta: the realized edge, 1 + change / descent.
        rounding: rounding of zeta, eps |L| / descent with eps of the parameters' dtype.
        curvature: u.H u / |u|^2, H averaged along the step; Euclidean norm.
        eta_sharpness: eta S, the top eigenvalue of the preconditioned Hessian at theta times the
            learning rate, to compare with ``threshold``.
        eta_sharpness_error: its error bound.
        eta_curvature: eta u.H u / |u|^2 in the preconditioner's metric.
        eta_batch_sharpness: eta g.H g / |g|^2 of this batch at theta, in that metric.
        threshold: k* of the optimizer.
        chi: eta S / k*.
        varsigma: u.H u / (S |u|^2), at most 1 on a quadratic.
        tau: (2 / k*) g.u / |u|^2.
        flags: why zeta is NaN; empty where it is a number.
        reason: why chi, varsigma and tau are NaN; None where they are numbers or not asked for.
    """

    step: int
    loss: float
    change: float
    descent: float
    zeta: float
    rounding: float
    curvature: float
    eta_sharpness: float
    eta_sharpness_error: float
    eta_curvature: float
    eta_batch_sharpness: float
    threshold: float
    chi: float
    varsigma: float
    tau: float
    flags: list[str]
    reason: str | None


def empty_row(step: int, loss: float) -> EdgeRow:
    """A row in which nothing but the loss is measured yet."""
    return {
        "step": step,
        "loss": loss,
        "change": math.nan,
        "descent": math.nan,
        "zeta": math.nan,
        "rounding": math.nan,
        "curvature": math.nan,
        "eta_sharpness": math.nan,
        "eta_sharpness_error": math.nan,
        "eta_curvature": math.nan,
        "eta_batch_sharpness": math.nan,
        "threshold": math.nan,
        "chi": math.nan,
        "varsigma": math.nan,
        "tau": math.nan,
        "flags": [],
        "reason": None,
    }
