"""Records, activations and checks that the operations of the toy model share."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from catapult_ext import _validate


class ToyRecord(NamedTuple):
    """Records of a run of the toy model.

    Attributes:
        loss: (R, steps // record_every + 1), 1/(2N) sum (f - y)^2, the start included.
        weight_norm: same shape, the Euclidean norm of all weights, sqrt(|U|^2 + |v|^2).
        diverged_at: (R,) int64, the step whose loss is not finite or beyond the cut; -1 for none.
        curvature: (R, steps // curvature_every + 1), the top eigenvalue of the kernel
            X (U'U + |v|^2 I) X' / (N W), or of that with an activation; (R, 0) for
            ``curvature_every=0``.

    Examples:
        >>> U, v = torch.ones(1, 4, 1), torch.ones(1, 4)
        >>> found = cx.ops.toy_gd(U, v, torch.ones(1, 1), torch.zeros(1), torch.tensor([0.1]), 5)
        >>> int(found.diverged_at[0])
        -1
    """

    loss: Tensor
    weight_norm: Tensor
    diverged_at: Tensor
    curvature: Tensor


# The order of csrc/toy/toy_activation.hpp.
KINDS = ("linear", "leaky", "abs", "tanh", "erf", "gelu", "softplus", "silu")
ACTIVATIONS = ("linear", "relu", "leaky(slope)", *KINDS[2:])


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
        return KINDS.index("leaky"), float(leaky.group(1))
    known = ", ".join(ACTIVATIONS)
    ok = name == "relu" or (name in KINDS and name != "leaky")
    _validate.require(ok, where, f"activation must be one of {known}", repr(name))
    return KINDS.index("leaky" if name == "relu" else name), 0.0


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
