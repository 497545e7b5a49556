"""Arguments of the toy simulations, checked and brought to one dtype; the span of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from catapult_ext import _validate


class Data(NamedTuple):
    """Inputs x (N, D) and targets y (N,) in the working dtype."""

    x: Tensor
    y: Tensor


class Span(NamedTuple):
    """The data in orthonormal coordinates of their span: same losses, same curvature.

    Attributes:
        basis: (D, r) orthonormal columns, the right singular vectors of X; float64.
        x: (N', r), N' <= r + 1; y: (N',). Rows are rotated samples (left singular vectors), the
            last one the part of y outside the range of X, all scaled so that 1/(2N') sum equals
            1/(2N) sum over the samples.
    """

    basis: Tensor
    x: Tensor
    y: Tensor


def check_data(where: str, x: Any, y: Any, dtype: torch.dtype | None) -> Data:
    """Tensors of one floating dtype, finite, (N, D) and (N,); nested lists and arrays are taken."""
    x, y = _validate.array(where, "x", x), _validate.array(where, "y", y)
    _validate.one_device(where, {"x": x, "y": y})
    _validate.require(x.dim() == 2, where, "x must have shape (N, D)", tuple(x.shape))
    _validate.require(x.numel() > 0, where, "x must not be empty", tuple(x.shape))
    _validate.require(
        y.shape == x.shape[:1], where, f"y must have shape ({len(x)},)", tuple(y.shape)
    )
    if dtype is None:
        wide = torch.promote_types(x.dtype, y.dtype)
        dtype = wide if wide in _validate.FLOAT_DTYPES else torch.float64
    if dtype not in _validate.FLOAT_DTYPES:
        _validate.fail(where, "dtype must be torch.float32 or torch.float64", dtype, TypeError)
    for name, value in (("x", x), ("y", y)):
        if value.is_complex():
            _validate.fail(where, f"{name} must be real", value.dtype, TypeError)
        _validate.require(
            bool(value.isfinite().all()), where, f"{name} must be finite", "NaN or infinity"
        )
    return Data(x.detach().to(dtype), y.detach().to(x.device, dtype))


def check_test(where: str, test: Any, data: Data) -> Data:
    """Test data (x, y) in the dtype and on the device of the training data."""
    if not isinstance(test, (tuple, list)) or len(test) != 2:
        _validate.fail(where, "test must be a pair (x, y)", type(test).__name__, TypeError)
    x, y = check_data(f"{where}: test", test[0], test[1], data.x.dtype)
    inputs = data.x.shape[1]
    _validate.require(
        x.shape[1] == inputs, where, f"test[0] must have shape (M, {inputs})", tuple(x.shape)
    )
    return Data(x.to(data.x.device), y.to(data.x.device))


def check_rates(where: str, eta: Any, steps: int, name: str = "eta") -> Tensor:
    """A number, a sequence or a tensor of positive finite rates -> (R,) or (R, steps) float64."""
    # By way of numpy: torch would read a list of numbers in float32.
    given = eta if isinstance(eta, Tensor) else np.asarray(eta)
    rates = _validate.array(where, name, given).detach()
    if rates.is_complex() or rates.dtype == torch.bool:
        _validate.fail(where, f"{name} must be real numbers", rates.dtype, TypeError)
    rates = rates.double()
    rates = rates[None] if rates.dim() == 0 else rates
    ok = rates.dim() == 1 or (rates.dim() == 2 and rates.shape[1] == steps > 0)
    _validate.require(ok, where, f"{name} must have shape (R,) or (R, {steps})", tuple(rates.shape))
    _validate.require(
        len(rates) > 0, where, f"{name} must hold at least one rate", tuple(rates.shape)
    )
    bad = ~((rates > 0) & rates.isfinite())
    if bool(bad.any()):
        _validate.fail(where, f"{name} must be positive and finite", rates[bad][0].item())
    return rates


def check_per_replica(
    where: str, name: str, value: Any, replicas: int, below: float = math.inf
) -> Tensor:
    """A number or (R,) of them in [0, below) -> (R,) float64."""
    value = _validate.array(where, name, value, torch.float64).detach()
    ok = value.shape in ((), (replicas,))
    _validate.require(
        ok, where, f"{name} must be a number or have shape ({replicas},)", tuple(value.shape)
    )
    bad = ~((value >= 0) & (value < below))
    _validate.require(
        not bool(bad.any()), where, f"{name} must be in [0, {below})", value[bad].flatten()[:3]
    )
    return value.expand(replicas)


def check_batch(where: str, size: int | None, samples: int) -> None:
    """None, or the number of samples of a batch."""
    if size is None:
        return
    if not isinstance(size, int) or isinstance(size, bool):
        _validate.fail(where, "batch_size must be an int", type(size).__name__, TypeError)
    _validate.require(1 <= size <= samples, where, f"batch_size must be in [1, {samples}]", size)


def check_width(where: str, width: Any) -> float:
    """A whole number from 1 to 1e15."""
    if isinstance(width, bool) or not isinstance(width, (int, float)):
        _validate.fail(where, "width must be a number", type(width).__name__, TypeError)
    ok = math.isfinite(width) and 1 <= width <= 1e15 and float(width).is_integer()
    _validate.require(ok, where, "width must be a whole number from 1 to 1e15", width)
    return float(width)


def check_seeds(where: str, seed: int | Sequence[int], replicas: int) -> list[int]:
    """One seed for all replicas, or one per replica."""
    if isinstance(seed, str) or not isinstance(seed, (int, Sequence)):
        _validate.fail(
            where, "seed must be a whole number or a list of them", type(seed).__name__, TypeError
        )
    seeds = [seed] if isinstance(seed, int) else list(seed)
    _validate.require(
        len(seeds) in (1, replicas), where, f"seed must be one or {replicas} numbers", len(seeds)
    )
    for value in seeds:
        if isinstance(value, bool) or not isinstance(value, int):
            _validate.fail(where, "seed must be a whole number", type(value).__name__, TypeError)
        _validate.require(value >= 0, where, "seed must be >= 0", value)
    return seeds


def check_weights(
    where: str, init: Any, width: float | None, inputs: int, replicas: int
) -> tuple[Tensor, Tensor]:
    """U (B, W, D) and v (B, W) with B = 1 or R, finite."""
    if not isinstance(init, (tuple, list)) or len(init) != 2:
        _validate.fail(where, "init must be a pair (U, v)", type(init).__name__, TypeError)
    U, v = (_validate.array(where, f"init[{i}]", value).detach() for i, value in enumerate(init))
    shapes = [tuple(value.shape) for value in (U, v)]
    if U.dim() == 2:
        U, v = U[None], v[None]
    _validate.require(
        U.dim() == 3 and U.shape[2] == inputs and len(U) in (1, replicas) and U.shape[1] > 0,
        where,
        f"init[0] must have shape (W, {inputs}) or ({replicas}, W, {inputs})",
        shapes[0],
    )
    _validate.require(
        v.shape == U.shape[:2],
        where,
        "init[1] must match init[0]",
        shapes[1],
    )
    if width is not None:
        _validate.require(
            width == U.shape[1], where, f"width must be that of init, {U.shape[1]}", width
        )
    for name, value in (("init[0]", U), ("init[1]", v)):
        if not value.is_floating_point():
            _validate.fail(where, f"{name} must be floating-point", value.dtype, TypeError)
        _validate.require(
            bool(value.isfinite().all()), where, f"{name} must be finite", "NaN or infinity"
        )
    return U, v


def span_of(data: Data) -> Span:
    """Rotate samples and inputs onto the singular vectors of X (in float64)."""
    x, y = data.x.double(), data.y.double()
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    floor = values[0] * max(x.shape) * torch.finfo(torch.float64).eps
    rank = max(int((values > floor).sum()), 1)
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    inside = left.mT @ y
    outside = (y - left @ inside).norm()
    if len(x) <= rank:  # nothing to gain in rotating the samples
        return Span(right.mT, x @ right.mT, y)
    rows = torch.cat([torch.diag(values), x.new_zeros(1, rank)])
    scale = math.sqrt((rank + 1) / len(x))
    return Span(right.mT, rows * scale, torch.cat([inside, outside[None]]) * scale)


def whole_space(data: Data) -> Span:
    """The data as they are."""
    x = data.x.double()
    return Span(torch.eye(x.shape[1], dtype=x.dtype, device=x.device), x, data.y.double())
