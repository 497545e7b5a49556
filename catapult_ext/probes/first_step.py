"""eta_c: the rate at which one step leaves the loss as it was, by forward passes alone.

On the way: a search for the rate at which anything begins to fail, which trials share.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from catapult_ext import training
from catapult_ext._module_copy import own_copy
from catapult_ext.probes.problem import Problem
from catapult_ext.probes.problem_descent import gradients_of, loss_of
from catapult_ext.probes.stability import Rule
from catapult_ext.probes.step_metric import as_real

FINE = 1.02  # ratio to which searches bisect
_FAR = 2.0**32  # from the guess: no rate will be found


@torch.no_grad()
def first_step(
    model: nn.Module, problem: Problem, rule: Rule, guess: float
) -> tuple[float | None, dict[str, float]]:
    """Rate at which the loss after one step equals that before: doubling, then bisection.

    The step goes along the gradient in the optimizer's metric, without momentum, and the loss
    contains the penalty that the optimizer adds to the gradient.

    Args:
        model: left as it is.
        problem: loss and data.
        rule: metric and penalty.
        guess: a rate near it.

    Returns:
        eta_c, or None where none was found, and the evidence: ``passes`` and ``loss``.
    """
    start, direction = gradients_of(own_copy(model), problem)
    weights = training.moved(model)
    alphas = _parts(rule.decay, weights)
    start += _penalty(alphas, weights)
    if alphas is not None:
        for d, a, p in zip(direction, alphas, weights, strict=True):
            as_real(d).add_(a * as_real(p))
    scales = _parts(rule.scale, weights)
    if scales is not None:
        for d, s in zip(direction, scales, strict=True):
            as_real(d).mul_(s)
    passes = 0

    def rises(eta: float) -> bool:
        nonlocal passes
        passes += 1
        stepped = own_copy(model)  # models that cache what they make of parameters start afresh
        after = training.moved(stepped)
        for p, p0, d in zip(after, weights, direction, strict=True):
            p.copy_(p0 - eta * d)
        return not loss_of(stepped, problem) + _penalty(alphas, after) <= start

    found = bracket(rises, guess / 4)
    return None if found is None else math.sqrt(found[0] * found[1]), {
        "passes": passes,
        "loss": start,
    }


def _parts(entries: Tensor | None, weights: list[Tensor]) -> list[Tensor] | None:
    if entries is None:
        return None
    views = [as_real(p) for p in weights]
    parts = entries.split([p.numel() for p in views])
    return [part.view(p.shape).to(p.dtype) for part, p in zip(parts, views, strict=True)]


def _penalty(alphas: list[Tensor] | None, weights: list[Tensor]) -> float:
    if alphas is None:
        return 0.0
    pairs = zip(alphas, weights, strict=True)
    return sum(float((a * as_real(p).square()).sum()) for a, p in pairs) / 2


def bracket(
    fails: Callable[[float], bool], guess: float, ratio: float = FINE, stride: float = 2.0
) -> tuple[float, float] | None:
    """(last that passes, first that fails), at most ``ratio`` apart; None if none is found.

    Goes from ``guess`` in factors of ``stride``, up until it fails or down until it passes, then
    bisects.
    """
    low, high = 0.0, guess
    while not fails(high):
        low, high = high, stride * high
        if high > guess * _FAR:
            return None
    while low == 0.0:
        if high < guess / _FAR:
            return None
        if fails(high / stride):
            high /= stride
        else:
            low = high / stride
    while high > ratio * low * (1 + 1e-9):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fails(middle) else (middle, high)
    return low, high
