"""Gradient descent of the two-layer network, R replicas and all steps in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from catapult_ext import _native, _validate
from catapult_ext.ops._registry import register
from catapult_ext.ops.toy_model import (
    KINDS,
    ToyRecord,
    check_problem,
    check_rates,
    check_schedule,
    empty_record,
    parse_activation,
)


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

    A replica diverges at the first step whose loss is not finite or exceeds 1000 B. The bound B on
    the loss, (k |X| P / (2 sqrt W) + |phi(0)| sqrt(N) |v| + |y|)^2 / (2N), follows from the initial
    weights, with P = |U|^2 + |v|^2, k a bound on |phi'|, and |X| the Frobenius norm. A bounded run
    never reaches 1000 B, at any width. A diverged replica stops: ``diverged_at`` is that step, its
    weights keep the values of that step, and every later record has the values of the step before
    (NaN if there is none). Other replicas are not affected.

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
        activation 4 W D N flops and W N evaluations of it per step (CUDA: 6 W D N and 2 W N), and
        2 W N numbers of scratch per thread (CUDA: 512 N per replica in flight).

    Examples:
        >>> U, v = torch.ones(1, 4, 1), torch.ones(1, 4)
        >>> found = cx.ops.toy_gd(U, v, torch.ones(1, 1), torch.zeros(1), torch.tensor([0.1]), 5)
        >>> found.loss.shape
        torch.Size([1, 6])
    """
    where = "toy_gd"
    _validate.tensor(U, where, "U", ("R", "W", "D"))
    replicas, width, inputs = U.shape
    _validate.require(width > 0 and inputs > 0, where, "U must have W, D >= 1", tuple(U.shape))
    _validate.tensor(v, where, "v", (replicas, width))
    _validate.written(where, {"U": U, "v": v})
    check_problem(where, {"U": U, "v": v}, x, y, eta, (replicas, inputs))
    strides = check_schedule(where, steps, record_every, curvature_every)
    kind, slope = parse_activation(where, activation)
    return ToyRecord(*torch.ops.catapult.toy_gd(U, v, x, y, eta, steps, *strides, kind, slope))


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
    linear = activation == KINDS.index("linear")
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
