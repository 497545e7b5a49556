"""The product of an operand, guarded against operators that break the contract without an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v

_WATCHED = 64  # entries of the argument that are compared after a product


def guarded(
    product: Callable[[Tensor], Any], dtype: torch.dtype, where: str
) -> Callable[[Tensor], Tensor]:
    """``product`` whose results are checked, detached and converted to ``dtype``.

    Raises:
        ValueError: a result that is no tensor (n, b), or that something differentiates; an
            operator that writes into its argument, which is the solver's own basis.
        TypeError: an integer or complex result, whose conversion would lose what it says.
    """
    unseen = True  # no product has been compared yet

    def call(q: Tensor) -> Tensor:
        nonlocal unseen
        version = None if q.is_inference() else q._version
        # a device would be waited for: its operators are compared once, by their first product
        compared = unseen or q.device.type == "cpu"
        seen = _sample(q)
        before = seen.clone() if compared else seen
        out = product(q)
        kept = version is None or q._version == version
        kept, unseen = kept and (not compared or torch.equal(seen, before)), False
        needs = "A @ v must leave v as it is (let it work on v.clone())"
        v.require(kept, where, needs, "a product that writes into its argument")
        return _constant(out, q, dtype, where)

    return call


def _sample(q: Tensor) -> Tensor:
    """A view of at most 64 x b entries spread over the rows."""
    return q.detach()[:: max(1, len(q) // _WATCHED)][:_WATCHED]


def guarded_batch(a: Any, q: Tensor, dtype: torch.dtype, where: str) -> Tensor:
    """``a @ q`` for a batched operator and (R, n, b), checked as :func:`guarded` does.

    Raises:
        ValueError, TypeError: see :func:`guarded`.
    """
    version = None if q.is_inference() else q._version
    out = a @ q
    needs = "A @ v must leave v as it is (let it work on v.clone())"
    kept = version is None or q._version == version
    v.require(kept, where, needs, "a product that writes into its argument")
    return _constant(out, q, dtype, where)


def _constant(out: Any, q: Tensor, dtype: torch.dtype, where: str) -> Tensor:
    """A product with ``q``, if it is one, detached and in ``dtype``."""
    fits = isinstance(out, Tensor) and out.shape == q.shape
    shown = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    needs = f"A @ must return {_of_shape(q)}"
    v.require(fits, where, needs, shown)
    v.constant(where, {"A": out})
    if not out.is_floating_point():
        v.fail(where, "products with A must be real floating-point", out.dtype, TypeError)
    return out.detach().to(dtype)


def _of_shape(q: Tensor) -> str:
    return "(" + ", ".join(str(size) for size in q.shape) + ")"
