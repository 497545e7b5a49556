"""Factors between the conventions in which a top eigenvalue is quoted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext.losses.accepted import resolve
from catapult_ext.losses.loss import Loss, SquaredLoss

# What the top eigenvalue of the plain kernel (sum over parameters, no 1/N) is multiplied by.
_FULL: dict[str, Callable[[int, int], float]] = {
    "ntk": lambda n, o: 1.0,
    "ntk/N": lambda n, o: 1.0 / n,
    "ntk/NO": lambda n, o: 1.0 / (n * o),
    "half_mse": lambda n, o: 1.0 / n,
    "half_mse_mean": lambda n, o: 1.0 / (n * o),
    "MSELoss": lambda n, o: 2.0 / (n * o),
    "MSELoss(sum)": lambda n, o: 2.0,
}
# The same for the (N, N) kernels that sum or average over outputs.
_TRACE: dict[str, Callable[[int, int], float]] = {
    "trace": lambda n, o: 1.0,
    "trace/O": lambda n, o: 1.0 / o,
}
CONVENTIONS = (*_FULL, *_TRACE)

Value = TypeVar("Value", float, Tensor)


def convert_lambda(
    value: Value, source: object, target: object, *, samples: int, outputs: int
) -> Value:
    """Convert a top eigenvalue from one normalisation to another.

    * ``"ntk"``: NTK (N*O, N*O), plain sum over parameters: the convention of ``cx.NTK``
    * ``"ntk/N"``: the same over N (edge of stability; kernels "per sample")
    * ``"ntk/NO"``: the same over N*O (neural-tangents' ``max_learning_rate``)
    * ``"half_mse"``: GGN of half the squared error, mean over samples
    * ``"half_mse_mean"``: GGN of half the squared error, mean over samples and outputs
    * ``"MSELoss"``: GGN of torch's MSELoss: mean over samples and outputs, no half
    * ``"MSELoss(sum)"``: GGN of the plain sum of squared errors
    * ``"trace"``: (N, N) kernel summed over outputs (the torch tutorial)
    * ``"trace/O"``: (N, N) kernel averaged over outputs (neural-tangents' default)

    With more than one output, the top eigenvalue of a trace kernel does not determine that of the
    other matrices, so a conversion between them raises an error.

    Args:
        value: float or tensor of floats; it is multiplied by the factor and otherwise unchanged.
        source: convention of ``value``: a name above, or a squared loss (``torch.nn.MSELoss()``).
        target: convention of the result.
        samples: N.
        outputs: O.

    Raises:
        TypeError: value is no float or float tensor, or samples or outputs no int.
        ValueError: an unknown name; a loss whose curvature depends on the outputs (cross-entropy);
            samples or outputs below 1; a conversion between a trace kernel and the rest, O > 1.

    Examples:
        >>> cx.convert_lambda(5.0, "ntk", "ntk/N", samples=10, outputs=2)
        0.5
    """
    where = "convert_lambda"
    real = value.is_floating_point() if isinstance(value, Tensor) else _is_real(value)
    if not real:
        shown = value.dtype if isinstance(value, Tensor) else type(value).__name__
        v.fail(where, "value must be a float or a tensor of floats", shown, TypeError)
    for name, count in (("samples", samples), ("outputs", outputs)):
        if isinstance(count, bool) or not isinstance(count, int):
            v.fail(where, f"{name} must be an int", type(count).__name__, TypeError)
        v.require(count >= 1, where, f"{name} must be at least 1", count)
    old, new = _name(source, "source"), _name(target, "target")
    if (old in _TRACE) != (new in _TRACE) and outputs > 1:
        v.fail(
            where,
            "the top eigenvalue of a kernel traced over several outputs does not determine that of "
            "the whole kernel",
            f"{old!r} to {new!r} with outputs={outputs}",
        )
    factors = {**_FULL, **_TRACE}
    factor = factors[new](samples, outputs) / factors[old](samples, outputs)
    return value * factor


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _name(convention: object, argument: str) -> str:
    """The entry of the table that a name or a loss stands for."""
    where = "convert_lambda"
    if isinstance(convention, str):
        known = ", ".join(repr(name) for name in CONVENTIONS)
        v.require(
            convention in CONVENTIONS, where, f"{argument} must be one of {known}", repr(convention)
        )
        return convention
    if not isinstance(convention, (Loss, nn.Module)):
        shown = type(convention).__name__
        v.fail(where, f"{argument} must be a name or a squared loss", shown, TypeError)
    loss = resolve(convention)
    if not isinstance(loss, SquaredLoss):
        v.fail(
            where,
            f"{argument} must be a squared loss (the curvature of others depends on the outputs: "
            "take cx.GGN(model, loss, data))",
            loss.name,
        )
    for name in ("half_mse", "half_mse_mean", "MSELoss", "MSELoss(sum)"):
        # The factor of the loss itself, at two sizes that tell all conventions apart.
        pairs = ((3, 5), (7, 2))
        if all(math.isclose(_FULL[name](n, o), _curvature(loss, n, o)) for n, o in pairs):
            return name
    v.fail(where, f"{argument} must be a squared loss with a named convention", loss)


def _curvature(loss: SquaredLoss, n: int, o: int) -> float:
    """Second derivative of the loss with respect to one output."""
    return 2.0 * loss.weight / {"samples": n, "entries": n * o, "none": 1}[loss.per]
