"""The one-sample toy model as a scalar map: any width, label and momentum, millions of lanes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from catapult_ext import _validate, ops
from catapult_ext._progress import Counter, Progress, check_progress, counted
from catapult_ext.ops.toy_scalar import ScalarRecord

Real = float | Tensor
_REPORTS = 20  # of progress, of some lanes each
_LEAST_LANES = 1024  # of one call: fewer leave vectors and threads empty
PHASE_NAMES = ("lazy", "catapult", "divergent", "unsettled")


def uv_step(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One step for label 0: u = eta^2 |x|^2 f^2 / W, v = eta * lambda (Lewkowycz et al. 2020).

    u' = (1 - v + u)^2 u,  v' = v - u (4 - v).  The map depends on neither eta nor the width.

    Examples:
        >>> u, v = cx.toy.uv_step(torch.tensor(0.01), torch.tensor(1.5))
        >>> bool(v < 1.5)  # the curvature falls while c < 4
        True
    """
    return (1 - v + u).square() * u, v - u * (4 - v)


def pm_step(P: Tensor, M: Tensor, b: Real) -> tuple[Tensor, Tensor]:
    """One step for label b = eta |x| y / sqrt(W), in P = eta |u + v|^2 / W, M = eta |u - v|^2 / W.

    a = (P - M) / 4 - b,  P' = (1 - a)^2 P,  M' = (1 + a)^2 M;  v = (P + M) / 2.

    Examples:
        >>> P, M = cx.toy.pm_step(torch.tensor(1.0), torch.tensor(1.0), 0.0)
        >>> P.shape, M.shape
        (torch.Size([]), torch.Size([]))
    """
    a = (P - M) / 4 - b
    return (1 - a).square() * P, (1 + a).square() * M


def state_of(v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The state (h, k) of ``ops.toy_scalar`` with h^2 + k^2 = v and h k = g.

    Args:
        v: eta * lambda, >= 2 |g|, which holds for every network (a violation by rounding is cut).
        g: eta |x| f / sqrt(W), signed; broadcasts with v.

    Examples:
        >>> h, k = cx.toy.state_of(torch.tensor([2.0]), torch.tensor([0.5]))
        >>> torch.allclose(h * k, torch.tensor([0.5]))
        True
    """
    v, g = torch.broadcast_tensors(v, g)
    h = ((v + (v * v - 4 * g * g).clamp(min=0).sqrt()) / 2).sqrt()
    return h, torch.where(h > 0, g / h, torch.zeros_like(g))


@dataclass(frozen=True)
class ScalarRuns:
    """Runs of the one-sample model, one per lane (R lanes, or the broadcast shape of the inputs).

    Attributes:
        c: eta * lambda_0.
        eta: learning rate, c / lambda_0.
        width: W.
        momentum: beta.
        eta_lambda: eta * lambda at the end; at the last accepted step where the run diverged.
        loss: (f - y)^2 / 2 at the end, the same way.
        peak_loss: its largest value.
        peak_step: when, int64.
        diverged_at: int64, -1 for none (the rule of ``ops.toy_scalar``).
        loss_record: (..., M) loss at steps 0, s, 2s, ...; M = 0 when nothing is recorded.
        eta_lambda_record: (..., M).

    Examples:
        >>> runs = cx.toy.run_scalar([1.0, 3.0], steps=200)
        >>> bool(runs.eta_lambda[1] < 2)  # the curvature fell below 2 / eta
        True
    """

    c: Tensor
    eta: Tensor
    width: Tensor
    momentum: Tensor
    eta_lambda: Tensor
    loss: Tensor
    peak_loss: Tensor
    peak_step: Tensor
    diverged_at: Tensor
    loss_record: Tensor
    eta_lambda_record: Tensor

    @property
    def u_peak(self) -> Tensor:
        """2 eta^2 L_peak / W, the peak in the units of the universal map."""
        return 2 * self.eta.square() * self.peak_loss / self.width

    @property
    def phase(self) -> Tensor:
        """int8 index into ``PHASE_NAMES``.

        lazy: c < 2 (1 + beta); catapult: beyond; divergent: the run was given up; unsettled: it was
        not, but eta * lambda ends at 2 (1 + beta) or above, or the residual a is still above 0.01.
        """
        threshold = 2 * (1 + self.momentum)
        phase = (self.c >= threshold).to(torch.int8)
        moving = 2 * self.eta.square() * self.loss / self.width > 1e-4
        phase = torch.where(moving | (self.eta_lambda >= threshold), 3, phase)
        return torch.where(self.diverged_at >= 0, 2, phase).to(torch.int8)

    @property
    def phases(self) -> list[str]:
        """Name of the phase of every lane, flattened."""
        return [PHASE_NAMES[i] for i in self.phase.flatten().tolist()]


def run_scalar(
    c: Real,
    *,
    steps: int,
    width: Real = 1e6,
    f0: Real = 1.0,
    label: Real = 0.0,
    momentum: Real = 0.0,
    lambda0: Real = 2.0,
    record_every: int = 0,
    dtype: torch.dtype = torch.float64,
    progress: Progress = None,
) -> ScalarRuns:
    """Train f(x) = W^-1/2 v . U x on one sample with |x| = 1, exactly, at any width.

    Args:
        c: eta * lambda_0, >= 0; this and the others: a number or a tensor, they broadcast.
        steps: number of steps of gradient descent on (f - y)^2 / 2.
        width: W, any positive number.
        f0: output at the start; |f0| <= sqrt(W) lambda_0 / 2, which holds for every network.
        label: y.
        momentum: heavy-ball beta in [0, 1), started from rest.
        lambda0: curvature at the start, (|u|^2 + |v|^2) / W; 2 is its mean for N(0, 1) weights.
        record_every: record loss and curvature at steps 0, s, 2s, ...; 0 records nothing.
        dtype: float32 or float64.
        progress: True for a bar, or a function of (lanes done, lanes), which is called after every
            1024 lanes or a twentieth of them; see :mod:`catapult_ext._progress`.

    Raises:
        TypeError: dtype is not float32 or float64.
        ValueError: an argument out of its range, or shapes that do not broadcast.

    Cost:
        About ten flops per lane and step; see ``ops.toy_scalar``.

    Examples:
        >>> runs = cx.toy.run_scalar([1.0, 3.0, 5.0], steps=200, width=1e6)
        >>> runs.diverged_at[:2].tolist(), bool(runs.diverged_at[2] >= 0)  # 4 is the limit
        ([-1, -1], True)
    """
    where = "toy.run_scalar"
    check_progress(where, progress)
    if dtype not in _validate.FLOAT_DTYPES:
        _validate.fail(where, "dtype must be torch.float32 or torch.float64", dtype, TypeError)
    named = {"c": c, "width": width, "f0": f0, "label": label, "momentum": momentum}
    named["lambda0"] = lambda0
    values = [_validate.array(where, name, value, dtype) for name, value in named.items()]
    _validate.one_device(where, dict(zip(named, values, strict=True)))
    device = next((value.device for value in values if value.dim()), values[0].device)
    values = [value.to(device) for value in values]
    _validate.integers(where, steps=steps, record_every=record_every)
    try:
        given = torch.broadcast_tensors(*values)
    except RuntimeError:
        _validate.fail(where, "arguments must broadcast", [tuple(value.shape) for value in values])
    runs = _Start(*given)
    _check(where, runs)
    with counted(progress, where, runs.c.numel(), "lanes") as counter:
        return _run(runs, steps, record_every, counter)


class _Start(NamedTuple):
    """The arguments of :func:`run_scalar`, of one shape and dtype."""

    c: Tensor
    width: Tensor
    f0: Tensor
    label: Tensor
    momentum: Tensor
    lambda0: Tensor


def _check(where: str, s: _Start) -> None:
    def all_of(ok: Tensor, requirement: str, values: Tensor) -> None:
        if not bool(ok.all()):
            _validate.fail(where, requirement, values[~ok][0].item())

    all_of(s.c >= 0, "c must be >= 0", s.c)
    all_of((s.width > 0) & s.width.isfinite(), "width must be positive and finite", s.width)
    all_of((s.lambda0 > 0) & s.lambda0.isfinite(), "lambda0 must be positive and finite", s.lambda0)
    all_of((s.momentum >= 0) & (s.momentum < 1), "momentum must be in [0, 1)", s.momentum)
    all_of(s.label.isfinite(), "label must be finite", s.label)
    bound = s.width.sqrt() * s.lambda0 / 2 * (1 + 8 * torch.finfo(s.c.dtype).eps)
    all_of(s.f0.abs() <= bound, "|f0| must be at most sqrt(width) * lambda0 / 2", s.f0)


def _descended(
    lanes: Sequence[Tensor], beta: Tensor | None, steps: int, record_every: int, counter: Counter
) -> ScalarRecord:
    """``ops.toy_scalar`` of the lanes (h, k, b), in parts where somebody looks."""
    count = counter.total
    size = max(_LEAST_LANES, -(-count // _REPORTS)) if counter.wanted else max(1, count)
    ends = []
    for start in range(0, max(1, count), size):
        some = slice(start, start + size)
        h, k, b = (values[some] for values in lanes)
        own = None if beta is None else beta[some]
        ends.append(ops.toy_scalar(h, k, steps, b=b, beta=own, record_every=record_every))
        counter.at(some.stop)
    return ends[0] if len(ends) == 1 else ScalarRecord(*map(torch.cat, zip(*ends, strict=True)))


def _run(s: _Start, steps: int, record_every: int, counter: Counter) -> ScalarRuns:
    root, eta = s.width.sqrt(), s.c / s.lambda0
    h, k = state_of(s.c, eta * s.f0 / root)
    b = (eta * s.label / root).flatten()
    beta = s.momentum.flatten() if bool((s.momentum > 0).any()) else None
    end = _descended((h.flatten(), k.flatten(), b), beta, steps, record_every, counter)
    # At c = 0 nothing moves: the loss is that of the start.
    moves, zero = eta > 0, torch.zeros_like(eta)
    scale = torch.where(moves, s.width / (2 * eta.square()), zero)
    still = torch.where(moves, zero, (s.f0 - s.label).square() / 2)
    shape = s.c.shape
    recorded = (*shape, end.record_a.shape[1])
    return ScalarRuns(
        c=s.c,
        eta=eta,
        width=s.width,
        momentum=s.momentum,
        eta_lambda=(end.h.square() + end.k.square()).reshape(shape),
        loss=(end.h * end.k - b).square().reshape(shape) * scale + still,
        peak_loss=end.peak.reshape(shape) * scale + still,
        peak_step=end.peak_step.reshape(shape),
        diverged_at=end.diverged_at.reshape(shape),
        loss_record=end.record_a.square().reshape(recorded) * scale[..., None] + still[..., None],
        eta_lambda_record=end.record_v.reshape(recorded),
    )
