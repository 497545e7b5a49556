"""Gradient descent of two-layer networks at many learning rates, in the cheapest exact form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catapult_ext import ops
from catapult_ext._validate import fail, require
from catapult_ext.ops.toy_gd import check_schedule
from catapult_ext.toy.activations import find_activation
from catapult_ext.toy.direct import Batches, DirectRecord, Network, Rule, Schedule, descend
from catapult_ext.toy.problem import (
    Data,
    check_batch,
    check_data,
    check_per_replica,
    check_rates,
    check_seeds,
    check_test,
    check_weights,
    check_width,
    span_of,
    whole_space,
)
from catapult_ext.toy.start import Start, make_start
from catapult_ext.toy.trajectory import Trajectory

FORMS = ("auto", "direct", "reduced")
FUSED_CHUNK_BYTES = 1 << 27  # of replicated state at a time, for the fused kernels
TORCH_CHUNK_BYTES = 1 << 24  # of state and temporaries, for the batched engine: about a cache


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
    activation: str = "linear",
    momentum: float | Sequence[float] | Tensor = 0.0,
    l2: float | Sequence[float] | Tensor = 0.0,
    batch_size: int | None = None,
    test: tuple[Any, Any] | None = None,
) -> Trajectory:
    """Gradient descent of f(x) = W^-1/2 v . phi(U x) at R learning rates.

    Loss 1/(2N) sum (f - y)^2; all weights N(0, 1) at the start (arXiv 2003.02218). Both forms are
    exact: "direct" descends on U and v; "reduced", for the linear activation, on a state in the
    span of the data, at a cost without the width. Every rate starts from the same weights.

    Args:
        eta: (R,) learning rates (a number counts as one), or (R, steps): a rate for every step,
            such as ``toy.warm_up``, ``toy.drop`` and ``toy.staircase`` make.
        width: W, a whole number up to 1e15 (direct form: as far as memory goes); may be left out
            with ``init``.
        x: (N, D) inputs, tensor or array.
        y: (N,) targets.
        steps: number of steps, >= 0.
        c: instead of ``eta``: rates in units of 1 / lambda_0, lambda_0 of their own start.
        init: weights (U (W, D), v (W,)) to start from, or (R, W, D) and (R, W).
        seed: of the initial weights and the mini-batches; a sequence of R seeds makes the replicas
            independent. Where W * D <= 2^18, the weights drawn are the same for both forms and any
            dtype.
        dtype: torch.float32 or torch.float64; default: that of x and y, float64 for integers.
        form: "direct", "reduced", or "auto": reduced where it exists, unless W <= rank X.
        record_every: loss, weight norm and test loss are recorded at steps 0, s, 2s, ...
        curvature_every: the same for the curvature; default: first and last step only.
        activation: phi: "linear", "relu", "leaky(0.5)" (any slope), "abs", "tanh", "erf", "gelu",
            "softplus" or "silu".
        momentum: heavy-ball beta in [0, 1), a number or (R,), started from rest.
        l2: weight of (|U|^2 + |v|^2) / 2 in the loss that is trained, a number or (R,).
        batch_size: samples per step, drawn without replacement, reshuffled every epoch; default:
            all. What an epoch leaves over is left out.
        test: (x, y) whose loss is recorded too.

    Returns:
        A :class:`Trajectory` on the device of x.

    Raises:
        TypeError: arguments of the wrong type or dtype.
        ValueError: wrong shapes, non-finite data, numbers out of range, an unknown form or
            activation, a width that is missing, does not match ``init``, or is too large for the
            direct form.

    Cost:
        Per replica and step 6 W D + 4 N D flops (direct) or about 8 r^2, r = rank X (reduced), in
        fused kernels; other than plain full-batch gradient descent of the linear network runs as
        batched torch, at 6 W D N flops and several passes over (W, N) (direct).

    Example:
        >>> x, y = torch.randn(20, 5), torch.randn(20)
        >>> traj = simulate(width=10**6, x=x, y=y, steps=200, c=[1.0, 2.6, 5.0])
        >>> traj.phases
        ['lazy', 'catapult', 'divergent']
    """
    where = "toy.simulate"
    data = check_data(where, x, y, dtype)
    require((eta is None) != (c is None), where, "exactly one of eta and c must be given", eta)
    require(form in FORMS, where, f"form must be one of {FORMS}", form)
    curvature_every = max(steps, 1) if curvature_every is None else curvature_every
    check_schedule(where, steps, record_every, curvature_every)
    require(curvature_every > 0, where, "curvature_every must be >= 1", curvature_every)
    rates = check_rates(where, c if eta is None else eta, steps, "c" if eta is None else "eta")
    weights = None
    size = None if width is None else check_width(where, width)
    if init is not None:
        weights = check_weights(where, init, size, data.x.shape[1], len(rates))
        size = float(weights[0].shape[1])
    require(size is not None, where, "width must be given unless init is", width)
    assert size is not None
    seeds = check_seeds(where, seed, len(rates))
    check_batch(where, batch_size, len(data.x))
    tested = None if test is None else check_test(where, test, data)
    batches = None if batch_size is None else Batches(len(data.x), batch_size, seeds)
    rule = Rule(
        rates if rates.dim() == 2 else rates[:, None],
        check_per_replica(where, "momentum", momentum, len(rates), below=1.0),
        check_per_replica(where, "l2", l2, len(rates)),
        batches,
    )
    phi = find_activation(where, activation)

    # L2 shrinks the part of U outside the span too: the weight norm must follow it.
    span = whole_space(data) if bool(rule.decay.any()) else span_of(data)
    linear = phi.name == "linear"
    require(linear or form != "reduced", where, "the reduced form is linear; activation", phi.name)
    if form == "auto":
        form = "direct" if not linear or size <= span.x.shape[1] else "reduced"
    start = make_start(where, form, size, span.basis, seeds, weights)
    if form == "reduced":
        tested = None if tested is None else Data(tested.x @ span.basis.to(tested.x), tested.y)
        if batches is None:  # a batch is a choice of samples, not of their rotations
            data = Data(span.x.to(data.x), span.y.to(data.x))
        else:
            data = Data((data.x.double() @ span.basis).to(data.x), data.y)
    fused = linear and rule.is_plain and tested is None
    engine = _Engine(form, Network(phi, size), start, fused)
    if eta is None:
        rule = rule._replace(eta=rule.eta.to(data.x.device) / engine.top(data)[:, None])
    rule = rule.to(data.x)
    schedule = Schedule(steps, record_every, curvature_every)
    record = engine.run(data, rule, schedule, tested)
    norm = record.weight_norm
    if start.outside is not None:
        norm = torch.hypot(norm, start.outside.to(norm)[:, None])
    return Trajectory(
        eta=rule.eta[:, 0] if rates.dim() == 1 else rule.eta,
        width=size,
        form=form,
        loss=record.loss,
        weight_norm=norm,
        diverged_at=record.diverged_at,
        curvature=record.curvature,
        recorded_steps=torch.arange(0, steps + 1, record_every, device=norm.device),
        curvature_steps=torch.arange(0, steps + 1, curvature_every, device=norm.device),
        momentum=rule.momentum,
        l2=rule.decay,
        test_loss=record.test_loss,
    )


@dataclass(frozen=True)
class _Engine:
    """The fused kernel of the form, or the batched torch engine, over chunks of the replicas."""

    form: str
    network: Network
    start: Start
    fused: bool

    def run(
        self, data: Data, rule: Rule, schedule: Schedule, test: Data | None = None
    ) -> DirectRecord:
        """One record of all replicas."""
        run = self._fused if self.fused else self._torch
        parts = []
        for i, j in self._chunks(len(rule.eta), data):
            parts.append(run(data, rule, i, j, schedule, test))
        if len(parts) == 1:
            return parts[0]
        return DirectRecord(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def top(self, data: Data) -> Tensor:
        """(count,) curvature of the initial states, float64."""
        exact = Data(data.x.double(), data.y.double())
        zero = exact.y.new_zeros(self.start.count)
        rule = Rule(zero[:, None] + 1, zero, zero)
        record = self.run(exact, rule, Schedule(0))
        top = record.curvature[:, 0]
        if not bool((top > 0).all()):
            need = "rates given as c need a positive initial curvature"
            fail("toy.simulate", need, float(top.min()))
        return top

    def _chunks(self, replicas: int, data: Data) -> Iterator[tuple[int, int]]:
        samples, inputs = data.x.shape
        rows = self.network.width if self.form == "direct" else inputs + 1
        entries, budget = rows * (inputs + 1), FUSED_CHUNK_BYTES
        if not self.fused:
            wide = 0 if self.network.phi.name == "linear" else samples
            entries, budget = rows * 3 * (inputs + wide + 1), TORCH_CHUNK_BYTES
        size = max(1, int(budget // (entries * data.x.element_size())))
        for first in range(0, replicas, size):
            yield first, min(first + size, replicas)

    def _fused(
        self,
        data: Data,
        rule: Rule,
        first: int,
        last: int,
        schedule: Schedule,
        test: Data | None,
    ) -> DirectRecord:
        state = self.start.rows(first, last, data.x, reduced=self.form == "reduced")
        eta = rule.eta[first:last, 0].contiguous()
        steps, s, k = schedule
        if self.form == "reduced":
            w, S, q = state
            width = self.network.width
            record = ops.toy_gd_reduced(
                w, S, q, data.x, data.y, eta, width, steps, record_every=s, curvature_every=k
            )
        else:
            U, v = state
            record = ops.toy_gd(U, v, data.x, data.y, eta, steps, record_every=s, curvature_every=k)
        return DirectRecord(*record, record.loss.new_empty(last - first, 0))

    def _torch(
        self,
        data: Data,
        rule: Rule,
        first: int,
        last: int,
        schedule: Schedule,
        test: Data | None,
    ) -> DirectRecord:
        U, v = self.start.rows(first, last, data.x)
        part = rule.rows(first, last)
        return descend(self.network, U, v, data, part, schedule, test)
