"""Gradient descent of the toy model at many learning rates, in whichever exact form is cheaper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catapult_ext import ops
from catapult_ext._validate import fail, require
from catapult_ext.ops import ToyRecord
from catapult_ext.ops.toy_gd import check_schedule
from catapult_ext.probes.phases import PHASES, Verdict, classify
from catapult_ext.toy.initial import ReducedState, draw_reduced, draw_weights, reduce_weights
from catapult_ext.toy.problem import (
    Data,
    check_data,
    check_rates,
    check_seeds,
    check_weights,
    check_width,
    span_of,
)

FORMS = ("auto", "direct", "reduced")
# Below this many entries U is drawn itself, so that every form starts from the same weights.
DRAW_LIMIT = 1 << 18
DIRECT_LIMIT = 1 << 32
CHUNK_BYTES = 1 << 27  # of replicated state at a time


@dataclass(frozen=True)
class Trajectory:
    """R runs of the toy model.

    Attributes:
        eta: (R,) learning rates.
        width: W.
        form: "direct" or "reduced", the one that ran.
        loss: (R, steps // record_every + 1), 1/(2N) sum (f - y)^2, the start included.
        weight_norm: same shape, sqrt(|U|^2 + |v|^2).
        diverged_at: (R,) int64, -1 for none. From that step on, the records hold the values of the
            last step before it (see ``ops.toy_gd`` for the rule).
        curvature: (R, M) top eigenvalue lambda of the kernel X (U'U + |v|^2) X' / (N W), which is
            that of the Gauss-Newton matrix of the loss: eta_crit = 2 / lambda_0.
        recorded_steps: steps of the columns of ``loss`` and ``weight_norm``.
        curvature_steps: (M,) steps of the columns of ``curvature``.
    """

    eta: Tensor
    width: float
    form: str
    loss: Tensor
    weight_norm: Tensor
    diverged_at: Tensor
    curvature: Tensor
    recorded_steps: Tensor
    curvature_steps: Tensor

    @property
    def lambda0(self) -> Tensor:
        """(R,) curvature at the start."""
        return self.curvature[:, 0]

    @property
    def c(self) -> Tensor:
        """(R,) eta * lambda_0."""
        return self.eta * self.lambda0

    @property
    def eta_lambda(self) -> Tensor:
        """(R, M) eta * lambda at the recorded curvature steps."""
        return self.eta[:, None] * self.curvature

    @cached_property
    def phases(self) -> list[str]:
        """``lazy``, ``catapult`` or ``divergent`` for every rate (see ``probes.classify``)."""
        lazy, catapult, divergent = PHASES
        above = (self.c >= 2).tolist()
        gone = (self.diverged_at >= 0).tolist()
        return [
            divergent if g else catapult if a else lazy for g, a in zip(gone, above, strict=True)
        ]

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Phase, flags and evidence for every rate; built one by one, so meant for few rates."""
        rows = zip(self.eta, self.curvature, self.loss, self.diverged_at, strict=True)
        return [
            classify(
                float(eta),
                float(curvature[0]),
                loss.tolist(),
                lambda_end=float(curvature[-1]),
                diverged_at=int(at),
            )
            for eta, curvature, loss, at in rows
        ]


def simulate(
    eta: float | Sequence[float] | Tensor | None = None,
    *,
    width: int | float | None = None,
    x: Any,
    y: Any,
    steps: int,
    c: float | Sequence[float] | Tensor | None = None,
    init: tuple[Any, Any] | None = None,
    seed: int | Sequence[int] = 0,
    dtype: torch.dtype | None = None,
    form: str = "auto",
    record_every: int = 1,
    curvature_every: int | None = None,
) -> Trajectory:
    """Full-batch gradient descent of f(x) = W^-1/2 v . U x at R learning rates.

    Loss 1/(2N) sum (f - y)^2; all weights N(0, 1) at the start (arXiv 2003.02218). Both forms are
    exact: "direct" descends on U and v; "reduced" on w = U'v, S = U'U, q = v.v in the span of the
    data, at a cost without the width. Every rate starts from the same weights.

    Args:
        eta: (R,) learning rates (a number counts as one).
        width: W, a whole number up to 1e15 (direct form: as far as memory goes); may be left out
            with ``init``.
        x: (N, D) inputs, tensor or array.
        y: (N,) targets.
        steps: number of steps, >= 0.
        c: instead of ``eta``: rates in units of 1 / lambda_0, lambda_0 of their own start.
        init: weights (U (W, D), v (W,)) to start from, or (R, W, D) and (R, W).
        seed: of the initial weights; a sequence of R seeds makes the replicas independent. Where
            W * D <= 2^18, the weights drawn are the same for both forms and any dtype.
        dtype: torch.float32 or torch.float64; default: that of x and y, float64 for integers.
        form: "direct", "reduced", or "auto": reduced unless W <= rank X.
        record_every: loss and weight norm are recorded at steps 0, s, 2s, ...
        curvature_every: the same for the curvature; default: first and last step only.

    Returns:
        A :class:`Trajectory` on the device of x.

    Raises:
        TypeError: arguments of the wrong type or dtype.
        ValueError: wrong shapes, non-finite data, rates that are not positive, an unknown form, a
            width that is missing, does not match ``init``, or is too large for the direct form.

    Cost:
        Per replica and step 6 W D + 4 N D flops (direct) or about 8 r^2, r = rank X (reduced).

    Example:
        >>> x, y = torch.randn(20, 5), torch.randn(20)
        >>> traj = simulate(width=10**6, x=x, y=y, steps=200, c=[1.0, 2.6, 5.0])
        >>> traj.phases
        ['lazy', 'catapult', 'divergent']
    """
    where = "toy.simulate"
    data = check_data(where, x, y, dtype)
    require((eta is None) != (c is None), where, "exactly one of eta and c must be given", eta)
    rates = check_rates(where, c if eta is None else eta, "c" if eta is None else "eta")
    require(form in FORMS, where, f"form must be one of {FORMS}", form)
    curvature_every = max(steps, 1) if curvature_every is None else curvature_every
    check_schedule(where, steps, record_every, curvature_every)
    require(curvature_every > 0, where, "curvature_every must be >= 1", curvature_every)
    schedule = {"record_every": record_every, "curvature_every": curvature_every}

    weights = None
    size = None if width is None else check_width(where, width)
    if init is not None:
        weights = check_weights(where, init, size, data.x.shape[1], len(rates))
        size = float(weights[0].shape[1])
    require(size is not None, where, "width must be given unless init is", width)
    assert size is not None
    seeds = check_seeds(where, seed, len(rates))
    span = span_of(data)
    if form == "auto":
        form = "direct" if size <= span.x.shape[1] else "reduced"
    start = _start(where, form, size, span.basis, seeds, weights)
    run = _run_direct if form == "direct" else _run_reduced
    problem = data if form == "direct" else Data(span.x.to(data.x), span.y.to(data.x))
    if eta is None:
        rates = rates.to(data.x.device) / _top(run, problem, size, start)
    rates = rates.to(data.x)
    record = run(problem, size, start, rates, steps, schedule)
    norm = record.weight_norm
    if start.outside is not None:
        norm = torch.hypot(norm, start.outside.to(norm)[:, None])
    return Trajectory(
        eta=rates,
        width=size,
        form=form,
        loss=record.loss,
        weight_norm=norm,
        diverged_at=record.diverged_at,
        curvature=record.curvature,
        recorded_steps=torch.arange(0, steps + 1, record_every, device=norm.device),
        curvature_steps=torch.arange(0, steps + 1, curvature_every, device=norm.device),
    )


@dataclass(frozen=True)
class _Start:
    """One initial state for all replicas (``count`` = 1) or one each: (U, v), or (w, S, q)."""

    count: int
    state: Callable[[int], tuple[Tensor, ...]]  # of one replica, drawn when it is asked for
    outside: Tensor | None = None  # (count,) norm of what the reduced form leaves out of U

    def rows(self, first: int, last: int, like: Tensor) -> list[Tensor]:
        """Fresh contiguous copies for the replicas first .. last - 1."""
        if self.count == 1:
            return [
                t.to(like)
                .expand(last - first, *t.shape)
                .clone(memory_format=torch.contiguous_format)
                for t in self.state(0)
            ]
        states = [[t.to(like) for t in self.state(i)] for i in range(first, last)]
        return [torch.stack(parts) for parts in zip(*states, strict=True)]


def _start(
    where: str,
    form: str,
    width: float,
    basis: Tensor,
    seeds: list[int],
    weights: tuple[Tensor, Tensor] | None,
) -> _Start:
    inputs = len(basis)

    def drawn(i: int) -> tuple[Tensor, Tensor]:
        return draw_weights(int(width), inputs, np.random.default_rng(seeds[i]))

    def given(i: int) -> tuple[Tensor, Tensor]:
        assert weights is not None
        return weights[0][i], weights[1][i]

    source = drawn if weights is None else given
    count = len(seeds) if weights is None else len(weights[0])
    if form == "direct":
        require(
            width * inputs <= DIRECT_LIMIT,
            where,
            f"the direct form needs W * D <= {DIRECT_LIMIT}; width must be smaller",
            width,
        )
        return _Start(count, source)
    if weights is None and width * inputs > DRAW_LIMIT:
        states = [_reduced_draw(width, inputs, basis.shape[1], seed) for seed in seeds]
    else:
        states = [_reduced_weights(*source(i), basis) for i in range(count)]
    outside = torch.tensor([rest for _, rest in states], dtype=torch.float64)
    return _Start(count, lambda i: tuple(states[i][0]), outside)


def _reduced_weights(U: Tensor, v: Tensor, basis: Tensor) -> tuple[ReducedState, float]:
    """The state in the span of the data, and the norm of the rest of U."""
    inside = U.double() @ basis.to(U.device)
    rest = float(U.double().square().sum() - inside.square().sum())
    return reduce_weights(inside, v), math.sqrt(max(rest, 0.0))


def _reduced_draw(width: float, inputs: int, rank: int, seed: int) -> tuple[ReducedState, float]:
    """The same, drawn: a Gaussian U is Gaussian in the coordinates of the span, and beside it."""
    rng = np.random.default_rng(seed)
    if width > rank:
        state = ReducedState(*(t[0] for t in draw_reduced(width, rank, rng)))
    else:
        state = reduce_weights(*draw_weights(int(width), rank, rng))
    freedom = width * (inputs - rank)
    return state, math.sqrt(rng.chisquare(freedom)) if freedom > 0 else 0.0


def _chunks(replicas: int, entries: float, like: Tensor) -> list[tuple[int, int]]:
    """Ranges of replicas of so many state entries that stay below CHUNK_BYTES."""
    size = max(1, int(CHUNK_BYTES // (entries * like.element_size())))
    return [(i, min(i + size, replicas)) for i in range(0, replicas, size)]


def _joined(parts: list[ToyRecord]) -> ToyRecord:
    if len(parts) == 1:
        return parts[0]
    return ToyRecord(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _run_direct(
    data: Data, width: float, start: _Start, eta: Tensor, steps: int, schedule: dict[str, int]
) -> ToyRecord:
    parts = []
    entries = width * (data.x.shape[1] + 1)
    for i, j in _chunks(len(eta), entries, data.x):
        U, v = start.rows(i, j, data.x)
        parts.append(ops.toy_gd(U, v, data.x, data.y, eta[i:j], steps, **schedule))
    return _joined(parts)


def _run_reduced(
    data: Data, width: float, start: _Start, eta: Tensor, steps: int, schedule: dict[str, int]
) -> ToyRecord:
    parts = []
    rank = data.x.shape[1]
    for i, j in _chunks(len(eta), rank * rank + rank + 1, data.x):
        w, S, q = start.rows(i, j, data.x)
        parts.append(
            ops.toy_gd_reduced(w, S, q, data.x, data.y, eta[i:j], width, steps, **schedule)
        )
    return _joined(parts)


def _top(run: Any, data: Data, width: float, start: _Start) -> Tensor:
    """(B,) curvature of the initial states, float64."""
    exact = Data(data.x.double(), data.y.double())
    ones = exact.y.new_ones(start.count)
    record = run(exact, width, start, ones, 0, {"record_every": 1, "curvature_every": 1})
    top = record.curvature[:, 0]
    if not bool((top > 0).all()):
        fail("toy.simulate", "rates given as c need a positive initial curvature", float(top.min()))
    return top
