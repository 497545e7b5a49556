"""The one-sample toy model of any width: two numbers per lane, all steps in one call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from catapult_ext import _native, _validate
from catapult_ext.ops._registry import register

_WHERE = "toy_scalar"


class ScalarRecord(NamedTuple):
    """Results of a run of the one-sample model, per lane.

    Attributes:
        h: (R,) state at the end, or at the last accepted step of a lane that diverged.
        k: (R,) the same; eta * lambda = h^2 + k^2.
        peak: (R,) largest a^2 over the accepted steps, the start included; the loss is
            W a^2 / (2 eta^2 |x|^2). NaN for a lane whose start is not finite.
        peak_step: (R,) int64, the first step that reaches it.
        diverged_at: (R,) int64, first step whose a^2 is not finite or beyond the cut; -1 for none.
        record_a: (R, steps // record_every + 1), the residual a; (R, 0) for ``record_every=0``.
        record_v: same shape, h^2 + k^2 = eta * lambda.
    """

    h: Tensor
    k: Tensor
    peak: Tensor
    peak_step: Tensor
    diverged_at: Tensor
    record_a: Tensor
    record_v: Tensor


def toy_scalar(
    h: Tensor,
    k: Tensor,
    steps: int,
    *,
    b: Tensor | None = None,
    beta: Tensor | None = None,
    record_every: int = 0,
    early_exit: bool = True,
) -> ScalarRecord:
    """Gradient descent of f(x) = W^-1/2 v . U x on one sample (x, y), loss (f - y)^2 / 2, exactly.

    The weights move along two directions only, in which a model of any width equals the model of
    width one: with h k = eta |x| f / sqrt(W), h^2 + k^2 = eta lambda and b = eta |x| y / sqrt(W),
    one step is

        a = h k - b,   h' = h - a k,   k' = k - a h        (with momentum: heavy ball, from rest)

    With P = (h + k)^2, M = (h - k)^2 this is the map P' = (1 - a)^2 P, M' = (1 + a)^2 M, and for
    b = 0, u = a^2, v = h^2 + k^2 the map u' = (1 - v + u)^2 u, v' = v - u (4 - v): the toy model of
    Lewkowycz et al. (arXiv 2003.02218) and of Kalra et al. (arXiv 2311.02076). In this form neither
    a small residual nor a small curvature loses digits.

    A lane diverges at the first step whose a^2 is not finite or exceeds 1000 ((h_0^2 + k_0^2) / 2 +
    |b|)^2, the rule of ``toy_gd``. It then stops, costs nothing more, and keeps the state of the
    step before. On the CPU values below the smallest normal number are zero; a GPU keeps them.

    Args:
        h: (R,) float32 or float64, e.g. the larger root of v = h^2 + k^2, u = (h k)^2.
        k: (R,) the smaller root, with the sign of f.
        steps: number of steps, >= 0.
        b: (R,) labels; default 0.
        beta: (R,) heavy-ball momentum; default 0 (plain descent).
        record_every: record a and v at steps 0, s, 2s, ...; 0 records nothing.
        early_exit: stop a lane once rounding has frozen its whole state, or h alone (b = 0, k^2 <=
            eps/8 and h^2 < 2; k then shrinks by 1 - h^2 per step, applied in closed form). It is
            not used with momentum or while recording. h is the same bit for bit, and k to a
            relative few eps * steps / |1 - h^2|.

    Returns:
        A :class:`ScalarRecord`. The inputs are left as they are.

    Raises:
        TypeError: not tensors, or not all of one dtype, float32 or float64.
        ValueError: wrong shapes, different devices, an input that requires grad, or ``steps`` or
            ``record_every`` negative.

    Cost:
        10 R steps flops at most (14 with momentum), in registers. The bits do not depend on the
        number of threads.

    Examples:
        >>> h, k = cx.toy.state_of(torch.tensor([1.0]).double(), torch.tensor([0.1]).double())
        >>> record = cx.ops.toy_scalar(h, k, 50)
        >>> int(record.diverged_at[0])
        -1
    """
    _validate.tensor(h, _WHERE, "h", ("R",))
    _validate.tensor(k, _WHERE, "k", (h.shape[0],))
    _validate.integers(_WHERE, steps=steps, record_every=record_every)
    if not isinstance(early_exit, bool):
        _validate.fail(_WHERE, "early_exit must be a bool", repr(early_exit), TypeError)
    tensors = {"h": h, "k": k, "b": b, "beta": beta}
    given = {name: t for name, t in tensors.items() if t is not None}
    for name, t in given.items():
        _validate.tensor(t, _WHERE, name, (h.shape[0],))
    _validate.same_kind(_WHERE, given)
    _validate.no_grad_needed(_WHERE, given)
    for name, value in (("steps", steps), ("record_every", record_every)):
        _validate.require(value >= 0, _WHERE, f"{name} must be >= 0", value)
    return ScalarRecord(
        *torch.ops.catapult.toy_scalar(h, k, b, beta, steps, record_every, early_exit)
    )


_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _fake(
    h: Tensor,
    k: Tensor,
    b: Tensor | None,
    beta: Tensor | None,
    steps: int,
    record_every: int,
    early_exit: bool,
) -> _Outputs:
    lanes = h.shape[0]
    columns = steps // record_every + 1 if record_every else 0
    floats = [h.new_empty(lanes) for _ in range(3)]
    integers = [h.new_empty(lanes, dtype=torch.int64) for _ in range(2)]
    records = [h.new_empty(lanes, columns) for _ in range(2)]
    return floats[0], floats[1], floats[2], integers[0], integers[1], records[0], records[1]


def _impl(
    h: Tensor,
    k: Tensor,
    b: Tensor | None,
    beta: Tensor | None,
    steps: int,
    record_every: int,
    early_exit: bool,
) -> _Outputs:
    out = _fake(h, k, b, beta, steps, record_every, early_exit)
    out[0].copy_(h)
    out[1].copy_(k)
    b = torch.zeros_like(out[0]) if b is None else b.contiguous()
    beta = None if beta is None else beta.contiguous()
    _native.call(
        "toy_scalar", h.device, out[0], out[1], b, beta, *out[2:], steps, record_every, early_exit
    )
    return out


register(
    "toy_scalar(Tensor h, Tensor k, Tensor? b, Tensor? beta, int steps, int record_every, "
    "bool early_exit) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _impl,
    _fake,
)
