"""Gradient descent of two-layer networks at many learning rates, in the cheapest exact form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from catapult_ext import _validate
from catapult_ext._progress import Progress, check_progress, counted
from catapult_ext.ops.toy_model import check_schedule
from catapult_ext.toy.activations import find_activation
from catapult_ext.toy.initial_states import make_initial_states
from catapult_ext.toy.network import Network
from catapult_ext.toy.observer import check_observe
from catapult_ext.toy.problem import (
    Data,
    Span,
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
from catapult_ext.toy.rules import Batches, Rule, Schedule, Stop, check_stop
from catapult_ext.toy.simulator import Simulator
from catapult_ext.toy.task import Task
from catapult_ext.toy.trajectory import Trajectory

Form = Literal["auto", "direct", "reduced", "scalar"]
FORMS = get_args(Form)


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
    form: Form = "auto",
    record_every: int = 1,
    curvature_every: int | None = None,
    activation: str = "linear",
    momentum: float | Sequence[float] | Tensor = 0.0,
    l2: float | Sequence[float] | Tensor = 0.0,
    batch_size: int | None = None,
    test: tuple[Any, Any] | None = None,
    observe: str | Sequence[str] = (),
    k: int = 1,
    stop: Stop | None = None,
    progress: Progress = None,
) -> Trajectory:
    """Gradient descent of f(x) = W^-1/2 v . phi(U x) at R learning rates.

    Loss 1/(2N) sum (f - y)^2; all weights N(0, 1) at the start (arXiv 2003.02218). All forms are
    exact: "direct" descends on U and v; "reduced", for the linear activation, on a state in the
    span of the data, at a cost without the width; "scalar", for one sample and constant rates
    besides, on two numbers. Every rate starts from the same weights.

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
        seed: seed of the initial weights and the mini-batches; a sequence of R seeds makes the
            replicas independent. If W * D <= 2^18, the weights drawn are the same for all forms
            and any dtype; beyond, the other forms draw theirs from the exact law (Bartlett).
        dtype: torch.float32 or torch.float64; default: that of x and y, float64 for integers.
        form: "direct", "reduced", "scalar", or "auto": scalar or else reduced where it exists,
            unless W <= rank X.
        record_every: loss, weight norm and test loss are recorded at steps 0, s, 2s, ...
        curvature_every: the same for the curvature; default: first and last step only.
        activation: phi: "linear", "relu", "leaky(0.5)" (any slope), "abs", "tanh", "erf", "gelu",
            "softplus" or "silu".
        momentum: heavy-ball beta in [0, 1), a number or (R,), started from rest.
        l2: weight of (|U|^2 + |v|^2) / 2 in the loss that is trained, a number or (R,).
        batch_size: samples per step, drawn without replacement, reshuffled every epoch; default:
            all. What an epoch leaves over is left out.
        test: (x, y) whose loss is recorded too.
        observe: names of what else to record at the curvature steps, into ``Trajectory.observed``,
            (R, M) each, those in k directions (R, M, k):
            "eigenvalues": the k largest of the kernel, descending;
            "projected_loss": loss <e_i, f - y>^2 / (2N) along the k top eigenvectors e_i that the
            kernel has at the start;
            "sharpness": top eigenvalue of the Hessian of the loss (linear activation);
            "imbalance": |U|^2 - |v|^2, which gradient flow conserves;
            "step_curvature": r_t = 2 / eta + 2 (L_t+1 - L_t) / |d|^2 along the full-batch gradient
            step d, beyond 2 / eta exactly where that step raises the loss; NaN at zero gradient.
        k: directions to follow, at most N (in the reduced form rank X + 1).
        stop: a :class:`Stop`, what ends a replica before its steps are over.
        progress: True for a bar, or a function of (steps done, steps), of all replicas; fused
            kernels tell of it from replica to replica.

    Returns:
        A :class:`Trajectory` on the device of x.

    Raises:
        TypeError: arguments of the wrong type or dtype.
        ValueError: wrong shapes, non-finite data, numbers out of range, an unknown form,
            observable or activation, a form that does not cover the other arguments, a width that
            is missing, does not match ``init``, or is too large for the direct form.

    Cost:
        Per replica and step 6 W D + 4 N D flops (direct), 4 W D N and W N evaluations of an
        activation, about 8 r^2, r = rank X (reduced), or ten (scalar), in one call of a fused
        kernel. Other than plain full-batch gradient descent, any of ``test``, ``observe`` and
        ``stop``, and activations on more than 1024 samples run as batched torch, at 6 W D N flops
        and several passes over (W, N) (direct), or 6 r^2 in a dozen torch calls (reduced); a record
        of observables costs about 9 N^3 besides (see
        :class:`~catapult_ext.toy.observer.Observer`).

    Examples:
        >>> x, y = torch.randn(20, 5), torch.randn(20)
        >>> traj = cx.toy.simulate(width=10**6, x=x, y=y, steps=200, c=[1.0, 2.6, 5.0])
        >>> traj.phases
        ['lazy', 'catapult', 'divergent']
    """
    where = "toy.simulate"
    check_progress(where, progress)
    data = check_data(where, x, y, dtype)
    _validate.integers(where, steps=steps)
    _validate.require(
        (eta is None) != (c is None), where, "exactly one of eta and c must be given", eta
    )
    _validate.require(form in FORMS, where, f"form must be one of {FORMS}", form)
    curvature_every = max(steps, 1) if curvature_every is None else curvature_every
    check_schedule(where, steps, record_every, curvature_every)
    _validate.require(curvature_every > 0, where, "curvature_every must be >= 1", curvature_every)
    rates = check_rates(where, c if eta is None else eta, steps, "c" if eta is None else "eta")
    weights = None
    size = None if width is None else check_width(where, width)
    if init is not None:
        weights = check_weights(where, init, size, data.x.shape[1], len(rates))
        size = float(weights[0].shape[1])
    if size is None:
        _validate.fail(where, "width must be given unless init is", width)
    seeds = check_seeds(where, seed, len(rates))
    check_batch(where, batch_size, len(data.x))
    network = Network(find_activation(where, activation), size)
    rule = Rule(
        rates if rates.dim() == 2 else rates[:, None],
        check_per_replica(where, "momentum", momentum, len(rates), below=1.0),
        check_per_replica(where, "l2", l2, len(rates)),
        None if batch_size is None else Batches(len(data.x), batch_size, seeds),
    )
    task = Task(
        data,
        rule,
        Schedule(steps, record_every, curvature_every),
        None if test is None else check_test(where, test, data),
        check_stop(where, stop),
        check_observe(where, observe, k, network),
    )

    # L2 shrinks the part of U outside the span too: the weight norm must follow it.
    span = whole_space(data) if bool(rule.decay.any()) else span_of(data)
    chosen = _choose_form(where, form, network, task, span.x.shape[1])
    initial = make_initial_states(where, chosen, size, span.basis, seeds, weights)
    if chosen != "direct":
        task = _in_span(task, span)
    _validate.require(k <= len(task.data.x), where, f"k must be in [1, {len(task.data.x)}]", k)
    simulator = Simulator(chosen, network, initial)
    if eta is None:
        rule = rule._replace(eta=rule.eta.to(data.x.device) / simulator.top(task.data)[:, None])
    rule = rule.to(data.x)
    with counted(progress, where, steps * len(rates), "steps") as counter:
        record = simulator.run(task._replace(rule=rule), counter)
    norm, observed = record.weight_norm, record.observed
    if initial.outside is not None:
        outside = initial.outside.to(norm)[:, None]
        norm = torch.hypot(norm, outside)
        if "imbalance" in observed:
            observed["imbalance"] += outside.square()
    return Trajectory(
        eta=rule.eta[:, 0] if rates.dim() == 1 else rule.eta,
        width=size,
        form=chosen,
        loss=record.loss,
        weight_norm=norm,
        diverged_at=record.diverged_at,
        converged_at=record.converged_at,
        curvature=record.curvature,
        recorded_steps=torch.arange(0, steps + 1, record_every, device=norm.device),
        curvature_steps=torch.arange(0, steps + 1, curvature_every, device=norm.device),
        momentum=rule.momentum,
        l2=rule.decay,
        test_loss=record.test_loss,
        observed=observed,
    )


def _choose_form(where: str, form: str, network: Network, task: Task, rank: int) -> str:
    """``form`` if it covers the task, or the cheapest that does."""
    samples = len(task.data.x)
    one = samples == 1 and bool(task.data.x.any())
    scalar = one and network.linear and task.rule.is_steady and task.only_basics
    linear = network.linear
    _validate.require(
        linear or form != "reduced",
        where,
        "the reduced form is linear; activation",
        network.phi.name,
    )
    _validate.require(
        scalar or form != "scalar",
        where,
        "the scalar form takes one sample x != 0 of the "
        "linear network, constant rates, no l2, test, observe or stop; x has shape",
        tuple(task.data.x.shape),
    )
    if form != "auto":
        return form
    if scalar:
        return "scalar"
    return "reduced" if linear and network.width > rank else "direct"


def _in_span(task: Task, span: Span) -> Task:
    """The task in the coordinates of the span of the data."""
    data, test = task.data, task.test
    basis = span.basis.to(data.x)
    if test is not None:
        test = Data(test.x @ basis, test.y)
    if task.rule.batches is None:
        data = Data(span.x.to(data.x), span.y.to(data.x))
    else:  # a batch is a choice of samples, not of their rotations
        data = Data((data.x.double() @ span.basis).to(data.x), data.y)
    return task._replace(data=data, test=test)
