"""One rule for how far a native result may be from the oracle."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def max_error(got: Tensor, exact: Tensor) -> float:
    """Largest absolute difference, in float64; inf where one is finite and the other is not."""
    got, exact = got.detach().cpu().double(), exact.detach().cpu().double()
    if got.shape != exact.shape:
        raise AssertionError(f"shapes differ: {tuple(got.shape)} and {tuple(exact.shape)}")
    if got.numel() == 0:
        return 0.0
    same = (got == exact) | (got.isnan() & exact.isnan())
    difference = torch.where(same, torch.zeros_like(got), (got - exact).abs())
    return float(torch.nan_to_num(difference, nan=torch.inf).max())


def assert_close(
    got: Tensor, exact: Tensor, tolerance: float = 1e-10, scale: float | Tensor | None = None
) -> None:
    """Demand equal shapes and entries within ``tolerance`` times the largest exact one.

    Args:
        got: the result; NaN is never close.
        exact: what it should be.
        tolerance: relative to the largest |exact|, or to ``scale``.
        scale: what the errors are relative to instead, where ``exact`` is small by cancellation.

    Raises:
        AssertionError: another shape, or an entry too far away.
    """
    if got.shape != exact.shape:
        raise AssertionError(f"shapes differ: {tuple(got.shape)} and {tuple(exact.shape)}")
    limit = tolerance * max(float(exact.abs().max() if scale is None else scale), 1e-300)
    error = float((got - exact).abs().max())
    if not error <= limit:
        raise AssertionError(f"an entry is {error:.3g} away, allowed is {limit:.3g}")


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: the small problems of tests cost less than waking a team."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def allowed_error(
    reference: Callable[..., Tensor], args: Any, dtype: torch.dtype, scale: float
) -> tuple[Tensor, float]:
    """The float64 oracle, and the error a native op may have in ``dtype``.

    The rule (after FlashAttention): at most twice the error of the naive torch composition in the
    working dtype plus 8 eps sum|terms|; ``scale`` is that sum of absolute terms.

    Args:
        reference: plain-torch function of the inputs.
        args: its inputs in ``dtype``, as a tuple; nested lists of tensors are converted too.
        dtype: the working dtype.
        scale: bound of the sum of absolute values of the terms of one output entry.

    Raises:
        ValueError: the rule allows any error, because the naive composition is not finite where the
            oracle is.
    """
    with one_thread():
        exact = reference(*cast(args, torch.float64))
        naive = reference(*args)
    allowed = 2 * max_error(naive, exact) + 8 * torch.finfo(dtype).eps * scale
    if not math.isfinite(allowed):
        raise ValueError("allowed_error: the naive composition overflows, any result would pass")
    return exact, allowed


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Convert every floating tensor inside tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(cast(v, dtype) for v in value)
    if isinstance(value, dict):
        return {k: cast(v, dtype) for k, v in value.items()}
    return value
