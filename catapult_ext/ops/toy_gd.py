"""Gradient descent of the two-layer network, R replicas and all steps in one call."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from catapult_ext import _native, _validate
from catapult_ext.ops._registry import register


class ToyRecord(NamedTuple):
    """What a run of the toy model records.

    Attributes:
        loss: (R, steps // record_every + 1), 1/(2N) sum (f - y)^2, the start included.
        weight_norm: same shape, the Euclidean norm of all weights, sqrt(|U|^2 + |v|^2).
        diverged_at: (R,) int64, the step whose loss is not finite or beyond the cut; -1 for none.
        curvature: (R, steps // curvature_every + 1), the top eigenvalue of the kernel
            X (U'U + |v|^2 I) X' / (N W), or of that with an activation; (R, 0) for
            ``curvature_every=0``.
    """

    loss: Tensor
    weight_norm: Tensor
    diverged_at: Tensor
    curvature: Tensor


# The order of csrc/ops/toy_gd/toy_activation.hpp.
_KINDS = ("linear", "leaky", "abs", "tanh", "erf", "gelu", "softplus", "silu")
ACTIVATIONS = ("linear", "relu", "leaky(slope)", *_KINDS[2:])


def parse_activation(where: str, name: str) -> tuple[int, float]:
    """Number and slope below zero of the activation ``name``, one of ``ACTIVATIONS``.

    Raises:
        TypeError: not a string.
        ValueError: an unknown name.
    """
    if not isinstance(name, str):
        _validate.fail(where, "activation must be a name", type(name).__name__, TypeError)
    leaky = re.fullmatch(r"leaky\((-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)\)", name)
    if leaky:
        return _KINDS.index("leaky"), float(leaky.group(1))
    known = ", ".join(ACTIVATIONS)
    ok = name == "relu" or (name in _KINDS and name != "leaky")
    _validate.require(ok, where, f"activation must be one of {known}", repr(name))
    return _KINDS.index("leaky" if name == "relu" else name), 0.0


def toy_gd(
    U: Tensor,
    v: Tensor,
    x: Tensor,
    y: Tensor,
    eta: Tensor,
    steps: int,
    *,
    record_every: int = 1,
    curvature_every: int = 0,
    activation: str = "linear",
) -> ToyRecord:
    """Full-batch gradient descent of f(x) = W^-1/2 v . phi(U x), on the weights themselves.

    Loss 1/(2N) sum_a (f(x_a) - y_a)^2 (Lewkowycz et al., arXiv 2003.02218; no bias). One pass over
    U per step; the residuals, not the normal equations, give the loss. The curvature is the top
    eigenvalue of (1/(N W)) (sum_j v_j^2 phi'(z_ja) phi'(z_jb) x_a.x_b + phi(z_ja) phi(z_jb)),
    z = U x: the kernel of the gradients over N.

    A replica diverges at the first step whose loss is not finite or exceeds 1000 times a bound on
    what its initial weights P = |U|^2 + |v|^2 allow, (k |X| P / (2 sqrt W) + |phi(0)| sqrt(N) |v|
    + |y|)^2 / (2N) with k a bound on |phi'| and the Frobenius norm of X: a bounded run never gets
    there, whatever the width.
    It stops there: ``diverged_at`` holds that step, its weights stay as they were at it, and every
    later record holds the values of its last step before (NaN if it has none). Other replicas are
    not touched.

    Args:
        U: (R, W, D) first-layer weights, float32 or float64, contiguous; updated in place.
        v: (R, W) second-layer weights, contiguous; updated in place.
        x: (N, D) inputs.
        y: (N,) targets.
        eta: (R,) learning rates, positive and finite.
        steps: number of steps, >= 0.
        record_every: loss and weight norm are recorded at steps 0, s, 2s, ...
        curvature_every: the same for the curvature; 0 records none. A record costs O(W D^2), with
            an activation O(W N^2 + N^3).
        activation: phi: "linear", "relu", "leaky(0.5)" (any slope), "abs", "tanh", "erf", "gelu"
            (the exact one), "softplus" or "silu".

    Returns:
        A :class:`ToyRecord`.

    Raises:
        TypeError: not tensors, or not all of one dtype, float32 or float64; activation not a name.
        ValueError: wrong shapes, an empty dimension other than R, different devices, U or v not
            contiguous, an input that requires grad, steps or strides out of range, an unknown
            activation; on the CPU also an eta that is not positive and finite.

    Cost:
        R steps (6 W D + 4 N D) flops; scratch of one replica's weights per thread. With an
        activation 4 W D N flops and W N evaluations of it a step (CUDA: 6 W D N and 2 W N), and
        2 W N numbers of scratch per thread (CUDA: 512 N per replica in flight).
    """
    where = "toy_gd"
    _validate.tensor(U, where, "U", ("R", "W", "D"))
    replicas, width, inputs = U.shape
    _validate.require(width > 0 and inputs > 0, where, "U must have W, D >= 1", tuple(U.shape))
    _validate.tensor(v, where, "v", (replicas, width))
    check_problem(where, {"U": U, "v": v}, x, y, eta, (replicas, inputs))
    strides = check_schedule(where, steps, record_every, curvature_every)
    kind, slope = parse_activation(where, activation)
    return ToyRecord(*torch.ops.catapult.toy_gd(U, v, x, y, eta, steps, *strides, kind, slope))


def check_problem(
    where: str,
    state: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    eta: Tensor,
    sizes: tuple[int, int],
) -> None:
    """Checks that every form of the toy model shares; ``sizes`` is (R, D)."""
    replicas, inputs = sizes
    _validate.tensor(x, where, "x", ("N", inputs))
    _validate.require(x.shape[0] > 0, where, "x must have N >= 1", tuple(x.shape))
    _validate.tensor(y, where, "y", (x.shape[0],))
    _validate.tensor(eta, where, "eta", (replicas,))
    everything = {**state, "x": x, "y": y, "eta": eta}
    _validate.same_kind(where, everything)
    _validate.no_grad_needed(where, everything)
    for name, value in state.items():
        _validate.require(
            value.is_contiguous(),
            where,
            f"{name} is updated in place and must be contiguous",
            f"strides {value.stride()}",
        )


def check_schedule(
    where: str, steps: int, record_every: int, curvature_every: int
) -> tuple[int, int]:
    """Check ``steps`` and the strides of the records; returns these no longer than the run."""
    for name, value, least in (
        ("steps", steps, 0),
        ("record_every", record_every, 1),
        ("curvature_every", curvature_every, 0),
    ):
        _validate.integers(where, **{name: value})
        _validate.require(value >= least, where, f"{name} must be >= {least}", value)
    _validate.require(steps < 2**62, where, "steps must be < 2^62", steps)
    return min(record_every, steps + 1), min(curvature_every, steps + 1)


def check_rates(where: str, eta: Tensor) -> None:
    """Values are only looked at on the CPU: on a GPU it would wait for the device."""
    if eta.device.type == "cpu" and eta.numel() > 0:
        ok = bool((eta > 0).all()) and bool(torch.isfinite(eta).all())
        if not ok:
            bad = eta[~((eta > 0) & torch.isfinite(eta))][0].item()
            _validate.fail(where, "eta must be positive and finite", bad)


def empty_record(
    state: Tensor, steps: int, record_every: int, curvature_every: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outputs of a run for the replicas in ``state`` (R, ...)."""
    replicas = state.shape[0]
    columns = steps // record_every + 1
    curvatures = steps // curvature_every + 1 if curvature_every > 0 else 0
    return (
        state.new_empty((replicas, columns)),
        state.new_empty((replicas, columns)),
        state.new_empty((replicas,), dtype=torch.int64),
        state.new_empty((replicas, curvatures)),
    )


def _fake(
    U: Tensor,
    v: Tensor,
    x: Tensor,
    y: Tensor,
    eta: Tensor,
    steps: int,
    record_every: int,
    curvature_every: int,
    activation: int,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return empty_record(U, steps, record_every, curvature_every)


def _impl(
    U: Tensor,
    v: Tensor,
    x: Tensor,
    y: Tensor,
    eta: Tensor,
    steps: int,
    record_every: int,
    curvature_every: int,
    activation: int,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_rates("toy_gd", eta)
    out = empty_record(U, steps, record_every, curvature_every)
    linear = activation == _KINDS.index("linear")
    entries = _native.call("toy_gd_workspace", U.device, U, x.shape[0], out[3].shape[1], linear)
    _native.call(
        "toy_gd",
        U.device,
        U,
        v,
        x.contiguous(),
        y.contiguous(),
        eta.contiguous(),
        *out,
        U.new_empty(entries, dtype=torch.float64),
        steps,
        record_every,
        curvature_every,
        activation,
        slope,
    )
    return out


register(
    "toy_gd(Tensor(a!) U, Tensor(b!) v, Tensor x, Tensor y, Tensor eta, int steps, "
    "int record_every, int curvature_every, int activation, float slope) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _impl,
    _fake,
)
