"""The toy model in its closed state (w, S, q): exact at any width, at a cost without the width."""

from __future__ import annotations

import torch
from torch import Tensor

from catapult_ext import _native, _validate
from catapult_ext.ops._registry import register
from catapult_ext.ops.toy_model import (
    ToyRecord,
    check_problem,
    check_rates,
    check_schedule,
    empty_record,
)

MAX_WIDTH = 1e18


def toy_gd_reduced(
    w: Tensor,
    S: Tensor,
    q: Tensor,
    x: Tensor,
    y: Tensor,
    eta: Tensor,
    width: float,
    steps: int,
    *,
    record_every: int = 1,
    curvature_every: int = 0,
) -> ToyRecord:
    """The same trajectories as :func:`toy_gd`, in w = U'v, S = U'U, q = v.v.

    These form a closed system under gradient descent of the linear network:
    with e = eta / sqrt(W) and z = X'(X w / sqrt(W) - y) / N, w' = w - e (S z + q z) + e^2 (w.z) z,
    S' = S - e (w z' + z w') + e^2 q z z', q' = q - 2 e w.z + e^2 z'S z. No term is neglected.
    Divergence and the records after it are as in :func:`toy_gd`.

    Args:
        w: (R, D) float32 or float64, contiguous; updated in place.
        S: (R, D, D) symmetric (the upper triangle is read), contiguous; updated in place.
        q: (R,) contiguous; updated in place.
        x: (N, D) inputs.
        y: (N,) targets.
        eta: (R,) learning rates, positive and finite.
        width: W, any number in [1, 1e18].
        steps: number of steps, >= 0.
        record_every: loss and weight norm, sqrt(tr S + q), are recorded at steps 0, s, 2s, ...
        curvature_every: the same for the curvature; 0 records none.

    Returns:
        A :class:`ToyRecord`.

    Raises:
        TypeError: not tensors, or not all of one dtype, float32 or float64.
        ValueError: wrong shapes, an empty dimension other than R, different devices, a state that
            is not contiguous, an input that requires grad, a number out of range; on the CPU also
            an eta that is not positive and finite.

    Cost:
        R steps (4 D^2 + 4 N D) flops.

    Examples:
        >>> import numpy as np
        >>> w, S, q = cx.toy.draw_reduced(1e6, 1, np.random.default_rng(0))
        >>> x, y = torch.ones(1, 1).double(), torch.zeros(1).double()
        >>> cx.ops.toy_gd_reduced(w, S, q, x, y, torch.tensor([1.0]).double(), 1e6, 5).loss.shape
        torch.Size([1, 6])
    """
    where = "toy_gd_reduced"
    _validate.tensor(w, where, "w", ("R", "D"))
    replicas, inputs = w.shape
    _validate.require(inputs > 0, where, "w must have D >= 1", tuple(w.shape))
    _validate.tensor(S, where, "S", (replicas, inputs, inputs))
    _validate.tensor(q, where, "q", (replicas,))
    _validate.written(where, {"w": w, "S": S, "q": q})
    check_problem(where, {"w": w, "S": S, "q": q}, x, y, eta, (replicas, inputs))
    _validate.numbers(where, width=width)
    _validate.require(1 <= width <= MAX_WIDTH, where, "width must be in [1, 1e18]", width)
    strides = check_schedule(where, steps, record_every, curvature_every)
    return ToyRecord(
        *torch.ops.catapult.toy_gd_reduced(w, S, q, x, y, eta, float(width), steps, *strides)
    )


def _fake(
    w: Tensor,
    S: Tensor,
    q: Tensor,
    x: Tensor,
    y: Tensor,
    eta: Tensor,
    width: float,
    steps: int,
    record_every: int,
    curvature_every: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return empty_record(w, steps, record_every, curvature_every)


def _impl(
    w: Tensor,
    S: Tensor,
    q: Tensor,
    x: Tensor,
    y: Tensor,
    eta: Tensor,
    width: float,
    steps: int,
    record_every: int,
    curvature_every: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_rates("toy_gd_reduced", eta)
    out = empty_record(w, steps, record_every, curvature_every)
    entries = _native.call("toy_gd_reduced_workspace", w.device, w, x.shape[0], out[3].shape[1])
    _native.call(
        "toy_gd_reduced",
        w.device,
        w,
        S,
        q,
        x.contiguous(),
        y.contiguous(),
        eta.contiguous(),
        *out,
        w.new_empty(entries, dtype=torch.float64),
        width,
        steps,
        record_every,
        curvature_every,
    )
    return out


register(
    "toy_gd_reduced(Tensor(a!) w, Tensor(b!) S, Tensor(c!) q, Tensor x, Tensor y, Tensor eta, "
    "float width, int steps, int record_every, int curvature_every) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _impl,
    _fake,
)
