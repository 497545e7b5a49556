"""Heavy ball with a random curvature: where its second moment stops shrinking, exactly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from catapult_ext import _validate

Real = float | Tensor


class NoisyMomentum(NamedTuple):
    """Heavy ball on a quadratic with random curvature, one case per entry; all float64.

    Attributes:
        eta: learning rate.
        beta: momentum.
        variance: variance of the curvature.
        mean: mean of the curvature.
    """

    eta: Tensor
    beta: Tensor
    variance: Tensor
    mean: Tensor


def noisy_momentum(
    where: str, *, beta: Real, variance: Real, mean: Real, eta: Real = 0.0
) -> NoisyMomentum:
    """The checked arguments, broadcast.

    Raises:
        TypeError: not numbers.
        ValueError: shapes that do not broadcast, or eta < 0, beta outside [0, 1), variance < 0,
            mean <= 0, or one of them not finite.
    """
    named = {"eta": eta, "beta": beta, "variance": variance, "mean": mean}
    values = [_validate.array(where, name, value, torch.float64) for name, value in named.items()]
    devices = {value.device for value in values if value.ndim > 0}
    _validate.require(len(devices) <= 1, where, "arguments must be on one device", devices)
    _validate.no_grad_needed(where, dict(zip(named, values, strict=True)))
    values = [value.to(device) for device in devices for value in values] or values
    try:
        cases = NoisyMomentum(*torch.broadcast_tensors(*values))
    except RuntimeError:
        _validate.fail(where, "arguments must broadcast", [tuple(value.shape) for value in values])
    for name, ok, rule in (
        ("eta", cases.eta >= 0, ">= 0"),
        ("beta", (cases.beta >= 0) & (cases.beta < 1), "in [0, 1)"),
        ("variance", cases.variance >= 0, ">= 0"),
        ("mean", cases.mean > 0, "> 0"),
    ):
        value = getattr(cases, name)
        if not bool((ok & value.isfinite()).all()):
            bad = value[~(ok & value.isfinite())][0].item()
            _validate.fail(where, f"{name} must be {rule} and finite", bad)
    return cases


def mean_square_edge(beta: Real, variance: Real, mean: Real = 1.0) -> Tensor:
    """The learning rate below which heavy ball converges in mean square, with a random curvature.

    On the loss h_t x^2 / 2, where h_t is drawn again at every step with mean a and variance s2, as
    mini-batches do, the second moment E x_t^2 of

        x_(t+1) = (1 + beta - eta h_t) x_t - beta x_(t-1)

    decays if and only if 0 < eta < eta_ms, for any distribution of h, where

        1 / eta_ms = a / (2 (1 + beta)) + s2 / (2 a (1 - beta)).

    Without noise eta_ms is 2 (1 + beta) / a, and where noise dominates it is 2 a (1 - beta) / s2.
    These are the two plateaus of arXiv 2604.14108. The formula is the root of det(M - I) = 0 for
    the matrix M of :func:`second_moment_matrix`, which maps a cone into itself, so that its largest
    eigenvalue in magnitude is real and leaves the unit circle at 1.

    Args:
        beta: momentum in [0, 1), as in ``torch.optim.SGD(momentum=)`` without dampening. All
            arguments are numbers or tensors that broadcast.
        variance: s2 >= 0, of the curvature.
        mean: a > 0, of the curvature.

    Returns:
        Float64, of the broadcast shape.

    Raises:
        TypeError: not numbers.
        ValueError: an argument out of its range, or shapes that do not broadcast.

    Cost:
        A few flops per entry.

    Examples:
        >>> round(float(cx.toy.mean_square_edge(0.0, 0.0)), 6)  # without noise: 2 / mean
        2.0
    """
    case = noisy_momentum("toy.mean_square_edge", beta=beta, variance=variance, mean=mean)
    a, s2 = case.mean, case.variance
    return 1 / (a / (2 * (1 + case.beta)) + s2 / a / (2 * (1 - case.beta)))


def second_moment_matrix(eta: Real, beta: Real, variance: Real, mean: Real = 1.0) -> Tensor:
    """Matrix that maps (E x_t^2, E x_t x_(t-1), E x_(t-1)^2) to the next step, exactly.

    With c = 1 + beta - eta a, its rows are (c^2 + eta^2 s2, -2 beta c, beta^2), (c, -beta, 0) and
    (1, 0, 0). See :func:`mean_square_edge`.

    Args:
        eta: learning rate >= 0. All arguments are numbers or tensors that broadcast.
        beta: momentum in [0, 1).
        variance: s2 >= 0, of the curvature.
        mean: a > 0, of the curvature.

    Returns:
        (..., 3, 3) float64.

    Raises:
        TypeError, ValueError: as :func:`mean_square_edge`.

    Examples:
        >>> cx.toy.second_moment_matrix(0.5, 0.9, 1.0).shape
        torch.Size([3, 3])
    """
    where = "toy.second_moment_matrix"
    return _matrix(noisy_momentum(where, eta=eta, beta=beta, variance=variance, mean=mean))


def second_moment_growth(eta: Real, beta: Real, variance: Real, mean: Real = 1.0) -> Tensor:
    """The factor by which E x_t^2 grows per step in the long run.

    It is the spectral radius of :func:`second_moment_matrix`. Below 1 heavy ball converges in mean
    square; half its logarithm is never below the Lyapunov exponent (Jensen's inequality).

    Args:
        eta: learning rate >= 0. All arguments are numbers or tensors that broadcast.
        beta: momentum in [0, 1).
        variance: s2 >= 0, of the curvature.
        mean: a > 0, of the curvature.

    Returns:
        Float64, of the broadcast shape.

    Raises:
        TypeError, ValueError: as :func:`mean_square_edge`, or ValueError where an entry of the
            matrix is beyond float64.

    Cost:
        Eigenvalues of a 3 x 3 matrix per entry.

    Examples:
        >>> round(float(cx.toy.second_moment_growth(0.5, 0.0, 0.0)), 6)  # (1 - 0.5)^2
        0.25
    """
    where = "toy.second_moment_growth"
    matrix = _matrix(noisy_momentum(where, eta=eta, beta=beta, variance=variance, mean=mean))
    fits = bool(matrix.isfinite().all())
    _validate.require(fits, where, "(eta mean)^2 and eta^2 variance must fit float64", "overflow")
    return torch.linalg.eigvals(matrix).abs().amax(-1)


def _matrix(case: NoisyMomentum) -> Tensor:
    c, zero = 1 + case.beta - case.eta * case.mean, torch.zeros_like(case.eta)
    noise = case.eta * case.variance.sqrt()
    rows = [
        [c * c + noise * noise, -2 * case.beta * c, case.beta.square()],
        [c, -case.beta, zero],
        [zero + 1, zero, zero],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
