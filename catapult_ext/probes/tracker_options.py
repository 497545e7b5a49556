"""Checks of a tracker's arguments, and the eigenvalue tracker that they ask for."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from catapult_ext import _validate as v
from catapult_ext.eig import TopTracker
from catapult_ext.probes.curvature_probe import QUANTITIES

WHERE = "CurvatureTracker"
_LOOSER = 10  # errors between checked probes over those of checked ones, unless given


def check_options(
    model: nn.Module,
    *,
    quantity: str,
    fixed: bool,
    k: int,
    every: int,
    budget: float | None,
    steps: int,
    samples: int | None,
    tol: float,
    between: float | None,
    optimizer: Any,
    preconditioned: bool | None,
    grow_at: float | None,
    max_k: int,
    kernel_samples: int,
    check_every: int,
    seed: int,
) -> None:
    """Raise TypeError or ValueError for what :class:`~catapult_ext.CurvatureTracker` cannot use."""
    v.module(WHERE, model)
    counts = {"kernel_samples": kernel_samples, "check_every": check_every, "max_k": max_k}
    v.integers(WHERE, k=k, every=every, steps=steps, seed=seed, **counts)
    v.integers(WHERE, samples=samples, optional=True)
    v.numbers(WHERE, tol=tol)
    v.numbers(WHERE, between=between, budget=budget, grow_at=grow_at, optional=True)
    within = between is None or tol <= between < 1
    v.require(within, WHERE, f"between must be None or in [tol, 1), tol={tol:g}", between)
    known = quantity in QUANTITIES
    v.require(known, WHERE, f"quantity must be one of {QUANTITIES}", repr(quantity))
    v.require(every >= 1, WHERE, "every must be >= 1", every)
    v.require(steps >= 1, WHERE, "steps must be >= 1", steps)
    within = budget is None or 0 < budget < math.inf
    v.require(within, WHERE, "budget must be None or > 0", budget)
    v.require(samples is None or samples >= 1, WHERE, "samples must be >= 1", samples)
    v.require(max_k >= k, WHERE, f"max_k must be >= k = {k}", max_k)
    needs = grow_at is None or optimizer is not None
    v.require(needs, WHERE, "grow_at needs the optimizer", None)
    serves = fixed or quantity != "ntk"
    v.require(serves, WHERE, "quantity='ntk' needs a fixed probe set", "data=None")
    v.require(kernel_samples == 0 or fixed, WHERE, "drift needs data", "data=None")
    truth = preconditioned is None or isinstance(preconditioned, bool)
    text = "preconditioned must be None, True or False"
    v.require(truth, WHERE, text, repr(preconditioned))
    preconditions = preconditioned is not True or quantity != "ntk"
    v.require(preconditions, WHERE, "the NTK has no preconditioner", "preconditioned=True")
    serves = preconditioned is not True or optimizer is not None
    v.require(serves, WHERE, "preconditioned=True needs the optimizer", None)


def probe_tracker(
    k: int, tol: float, between: float | None, check_every: int, seed: int
) -> TopTracker:
    """Follows the eigenvalues of probes: :class:`~catapult_ext.TopTracker` with its options."""
    if between is None:
        between = min(_LOOSER * tol, max(tol, 0.1))
    # one guard more than for a change of one step: between probes lie many
    guards = 2 + k // 4
    return TopTracker(
        k, tol=tol, between=between, guards=guards, check_every=check_every, seed=seed
    )
