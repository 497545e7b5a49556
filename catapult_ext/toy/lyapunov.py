"""Heavy ball with a random curvature: where a typical path stops shrinking, by sampled paths."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from catapult_ext import _validate, ops
from catapult_ext._progress import Counter, Progress, check_progress, counted
from catapult_ext.ops.toy_lyapunov import NOISES, Noise
from catapult_ext.toy.mean_square import NoisyMomentum, Real, mean_square_edge, noisy_momentum

SCAN = 1.25  # ratio of the rates among which the first sign change is looked for
LEAST_STEPS = 256
LARGEST_BETA = 1 - 1e-6  # a burn-in of 2e7 steps
REPORTS = 20  # of progress, of some cases each
LEAST_CASES = 16  # of one call: fewer leave vectors empty
AT_ONCE = 1 << 20  # growths of one call: 8 MB
LARGEST_RATE = 1e30  # times |h|: what ``ops.toy_lyapunov`` can follow


@dataclass(frozen=True)
class LyapunovEstimate:
    """A sampled value and its error bar.

    Attributes:
        value: float64.
        error: two standard errors (95 %), of the same shape.

    Examples:
        >>> found = cx.toy.lyapunov_exponent(0.5, 0.0, 0.01, steps=1000)
        >>> bool(found.error < abs(found.value))
        True
    """

    value: Tensor
    error: Tensor


def lyapunov_exponent(
    eta: Real,
    beta: Real,
    variance: Real,
    mean: Real = 1.0,
    *,
    noise: Noise = "normal",
    steps: int = 10_000,
    paths: int = 64,
    seed: int = 0,
    progress: Progress = None,
) -> LyapunovEstimate:
    """Growth rate per step of a typical path of heavy ball with a random curvature.

    The top Lyapunov exponent lim log |x_t| / t of the recursion of :func:`mean_square_edge`; almost
    every path converges where it is negative. Unlike the second moment it depends on the
    distribution of the curvature. At beta = 0 it is E log |1 - eta h|.

    Sampled by ``ops.toy_lyapunov``: the mean over paths of the growth after a burn-in, in which the
    direction forgets its start (20 / -log beta steps, at least 16: the two exponents add up to
    log beta). Cases of one call share their draws, so their errors are correlated.

    Args:
        eta: learning rate >= 0; this, beta, variance and mean: numbers or tensors, they broadcast.
        beta: momentum, 0 or in [1e-30, 1 - 1e-6].
        variance: s2 >= 0, of the curvature.
        mean: a > 0, of the curvature.
        noise: distribution of the curvature: "normal", "uniform" or "two-point" (a + s or a - s).
        steps: number of steps per path, without the burn-in.
        paths: independent paths, at least 8.
        seed: seed of the draws.
        progress: True for a bar, or a function of (cases done, cases), which is called after every
            16 cases or a twentieth of them; see :mod:`catapult_ext._progress`.

    Returns:
        A :class:`LyapunovEstimate` of the broadcast shape: exponents, and two standard errors over
        the paths; -inf with error 0 where a path ends in the origin.

    Raises:
        TypeError: arguments of the wrong type.
        ValueError: an argument out of its range, or shapes that do not broadcast.

    Cost:
        5 flops per case, path and step: about 6e9 of these a second on one core with AVX-512.

    Examples:
        >>> found = cx.toy.lyapunov_exponent(0.5, 0.0, 0.01, steps=1000)
        >>> bool(found.value < 0)  # eta times the mean curvature is 0.5: it converges
        True
    """
    where = "toy.lyapunov_exponent"
    check_progress(where, progress)
    case = noisy_momentum(where, eta=eta, beta=beta, variance=variance, mean=mean)
    _check_sampling(where, case, noise, paths, seed, steps=steps)
    shape = case.eta.shape
    flat = NoisyMomentum(*(t.flatten() for t in case))
    value, error = torch.empty_like(flat.eta), torch.empty_like(flat.eta)
    with counted(progress, where, len(value), "cases") as counter:
        for momentum, mine in _parts(flat.beta, counter):
            sampler = _Sampler(momentum, noise, paths, seed)
            some = NoisyMomentum(*(t[mine] for t in flat))
            value[mine], error[mine] = sampler.exponent(some.eta, some, steps)
            counter.add(len(mine))
    return LyapunovEstimate(value.reshape(shape), error.reshape(shape))


def lyapunov_edge(
    beta: Real,
    variance: Real,
    mean: Real = 1.0,
    *,
    noise: Noise = "normal",
    tolerance: float = 0.02,
    paths: int = 64,
    max_steps: int = 1 << 20,
    seed: int = 0,
    progress: Progress = None,
) -> LyapunovEstimate:
    """The learning rate below which almost every path of heavy ball converges, by sampling.

    The curvature is random, as for :func:`mean_square_edge`; below that edge the exponent of
    :func:`lyapunov_exponent` is negative. The result is the first zero of the exponent above it:
    the first sign change among rates that grow by a quarter, refined by bisection on the same
    draws. Between the two edges typical paths converge while the second moment, carried by rare
    ones, grows. No closed form is known for beta > 0.

    The error bar is two standard errors of the exponent at the edge, over its slope in log eta,
    plus the width of the last bracket. If it exceeds ``tolerance`` times the edge, the paths become
    four times as long, up to ``max_steps``. At that limit the bar may stay too wide: compare
    ``error`` with ``tolerance * value``. Cases of one call share their draws, so the errors of
    neighbouring edges are correlated.

    Args:
        beta: momentum, 0 or in [1e-30, 1 - 1e-6]; beta, variance and mean are numbers or tensors
            that broadcast.
        variance: s2 >= 0, of the curvature.
        mean: a > 0, of the curvature.
        noise: distribution of the curvature: "normal", "uniform" or "two-point" (a + s or a - s).
            With "two-point" noise there can be further stable rates beyond the first edge.
        tolerance: largest relative error bar, in [1e-4, 0.5].
        paths: independent paths, at least 8.
        max_steps: steps of the longest path, not counting a burn-in of 20 / -log beta steps.
        seed: seed of the draws.
        progress: as in :func:`lyapunov_exponent`.

    Returns:
        A :class:`LyapunovEstimate` of the broadcast shape: edges and error bars, as learning rates.

    Raises:
        TypeError: arguments of the wrong type.
        ValueError: an argument out of its range, or shapes that do not broadcast.

    Cost:
        About 20 calls of ``ops.toy_lyapunov`` for each length of the paths; they start at 60 /
        (1 - beta) steps.

    Examples:
        >>> found = cx.toy.lyapunov_edge(0.0, 0.01, tolerance=0.2, paths=16)
        >>> bool(1.5 < found.value < 2.5)  # near 2, the edge without noise
        True
    """
    where = "toy.lyapunov_edge"
    check_progress(where, progress)
    case = noisy_momentum(where, beta=beta, variance=variance, mean=mean)
    check_edges(where, case, noise, tolerance, paths, max_steps, seed)
    # the edge scales as 1 / mean, and depends on variance / mean^2 alone
    relative = (case.variance.sqrt() / case.mean).square().flatten()
    flat, ones = case.beta.flatten(), torch.ones_like(relative)
    value, error = torch.empty_like(relative), torch.empty_like(relative)
    with counted(progress, where, len(flat), "cases") as counter:
        for momentum, mine in _parts(flat, counter):
            sampler = _Sampler(momentum, noise, paths, seed)
            some = NoisyMomentum(ones[mine], flat[mine], relative[mine], ones[mine])
            value[mine], error[mine] = _edges(sampler, some, float(tolerance), max_steps)
            counter.add(len(mine))
    scale = case.mean.flatten()
    shape = case.beta.shape
    return LyapunovEstimate((value / scale).reshape(shape), (error / scale).reshape(shape))


def _parts(beta: Tensor, counter: Counter) -> Iterator[tuple[float, Tensor]]:
    """Each momentum with the indices of its cases, in parts where somebody looks."""
    size = max(LEAST_CASES, -(-len(beta) // REPORTS)) if counter.wanted else max(1, len(beta))
    for momentum in beta.unique().tolist():
        for mine in (beta == momentum).nonzero().flatten().split(size):
            yield momentum, mine


def check_edges(
    where: str,
    case: NoisyMomentum,
    noise: Noise,
    tolerance: float,
    paths: int,
    max_steps: int,
    seed: int,
) -> None:
    """Raise what :func:`lyapunov_edge` raises for these arguments, before any path is sampled."""
    _validate.numbers(where, tolerance=tolerance)
    _validate.require(
        1e-4 <= float(tolerance) <= 0.5, where, "tolerance must be in [1e-4, 0.5]", tolerance
    )
    _check_sampling(where, case, noise, paths, seed, max_steps=max_steps)
    relative = (case.variance.sqrt() / case.mean).square()
    if bool((relative > 1e20).any()):
        _validate.fail(where, "variance must be at most 1e20 mean^2", relative.max().item())
    if case.beta.numel():
        highest = case.beta.max().item()
        least = _Sampler(highest, noise, paths, seed).least_steps
        rule = f"max_steps must be at least {least} at beta = {highest:g}"
        _validate.require(max_steps >= least, where, rule, max_steps)


def _check_sampling(
    where: str, case: NoisyMomentum, noise: str, paths: int, seed: int, **lengths: int
) -> None:
    _validate.require(
        isinstance(noise, str) and noise in NOISES, where, f"noise must be one of {NOISES}", noise
    )
    _validate.integers(where, paths=paths, seed=seed, **lengths)
    _validate.require(8 <= paths <= 1 << 16, where, "paths must be in [8, 2^16]", paths)
    for name, value in lengths.items():
        _validate.require(1 <= value <= 1 << 40, where, f"{name} must be in [1, 2^40]", value)
    taken = (case.beta == 0) | ((case.beta >= 1e-30) & (case.beta <= LARGEST_BETA))
    if not bool(taken.all()):
        _validate.fail(where, "beta must be 0 or in [1e-30, 1 - 1e-6]", case.beta[~taken][0].item())
    reach = case.eta * (case.mean + 9 * case.variance.sqrt())
    if bool((reach > LARGEST_RATE).any()):
        rule = f"eta (mean + 9 variance^(1/2)) must be at most {LARGEST_RATE:g}"
        _validate.fail(where, rule, reach.max().item())


class _Sampler(NamedTuple):
    """Paths of one momentum."""

    beta: float
    noise: Noise
    paths: int
    seed: int

    @property
    def burn_in(self) -> int:
        """Steps after which the direction has forgotten its start to e^-20, at the edge."""
        gap = -math.log(self.beta) if self.beta > 0 else math.inf
        return max(16, math.ceil(20 / gap))

    @property
    def least_steps(self) -> int:
        """Shortest paths from which an edge is found."""
        return max(LEAST_STEPS, 2 * self.burn_in)

    def exponent(self, eta: Tensor, case: NoisyMomentum, steps: int) -> tuple[Tensor, Tensor]:
        """Lyapunov exponents at rates ``eta``, and twice their standard errors."""
        parameters = torch.stack([eta * case.mean, eta * case.variance.sqrt(), case.beta])
        means, errors = [], []
        for part in parameters.split(max(1, AT_ONCE // self.paths), dim=1):
            mean, deviation, beta = part
            growth = ops.toy_lyapunov(
                mean,
                deviation,
                beta,
                self.burn_in + steps,
                paths=self.paths,
                burn_in=self.burn_in,
                noise=self.noise,
                seed=self.seed,
            )
            means.append(growth.mean(1) / steps)
            errors.append(2 * growth.std(1) / (steps * math.sqrt(self.paths)))
        value, error = torch.cat(means), torch.cat(errors)
        return value, torch.where(value == -math.inf, torch.zeros_like(error), error)


def _edges(
    sampler: _Sampler, case: NoisyMomentum, tolerance: float, max_steps: int
) -> tuple[Tensor, Tensor]:
    """Edges of cases of one momentum and mean 1, and their bars."""
    start = mean_square_edge(case.beta, case.variance, case.mean) / SCAN
    value, error = start.clone(), torch.full_like(start, math.inf)
    steps = sampler.least_steps
    open_cases = torch.arange(len(start), device=start.device)
    while True:
        some = NoisyMomentum(*(t[open_cases] for t in case))
        found, bar = _edge_once(sampler, some, start[open_cases], tolerance, steps)
        value[open_cases], error[open_cases] = found, bar * found
        open_cases = open_cases[bar > tolerance]
        if not len(open_cases) or 4 * steps > max_steps:
            return value, error
        steps *= 4


def _edge_once(
    sampler: _Sampler, case: NoisyMomentum, start: Tensor, tolerance: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Edges from paths of one length, and their relative bars."""
    low, high = _bracket(sampler, case, start, steps)
    width = tolerance / 20
    for _ in range(math.ceil(math.log2(math.log(SCAN) / width))):
        middle = (low * high).sqrt()
        grows = sampler.exponent(middle, case, steps)[0] > 0
        low, high = torch.where(grows, low, middle), torch.where(grows, middle, high)
    middle = (low * high).sqrt()
    step = max(tolerance, 0.01)
    around = [sampler.exponent(middle * math.exp(s), case, steps) for s in (-step, 0.0, step)]
    slope = (around[2][0] - around[0][0]) / (2 * step)
    bar = around[1][1] / slope + (high / low).log()
    return middle, torch.where(slope > 0, bar, math.inf)


def _bracket(
    sampler: _Sampler, case: NoisyMomentum, start: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Neighbouring rates with a negative and a positive exponent, the first from ``start`` on."""
    low, high = start.clone(), start * SCAN
    pending = torch.arange(len(start), device=start.device)
    while len(pending):
        some = NoisyMomentum(*(t[pending] for t in case))
        settles = sampler.exponent(high[pending], some, steps)[0] <= 0
        pending = pending[settles]
        low[pending] = high[pending]
        high[pending] *= SCAN
    return low, high
