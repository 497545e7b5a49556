"""Number format of ``precision="mixed"``, and products in 16-bit integers.

The format follows from this table of what multiplies faster than float32, never from a clock:

| processor | products |
|---|---|
| CUDA device with bfloat16 tensor cores, CPU with AMX | bfloat16, by torch's autocast |
| CPU with AVX512-VNNI | large matrix products in 16-bit integers |
| other, including AVX512-BF16 without AMX | as with full precision |

A core with AVX512-BF16 was measured to make half the multiply-adds of float32 in bfloat16, and
twice as many in 16-bit integers, which are also eight times as exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from catapult_ext.linops.engines.base import HessianProducts, Linearization
from catapult_ext.linops.model import large_products
from catapult_ext.linops.model.dispatch_mode import DispatchMode
from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.model.large_products import FACTORS, is_large
from catapult_ext.ops.int16_product import int16_product, int16_products_are_fast

aten: Any = torch.ops.aten
_LEAST_SHARE = 0.5  # of the multiply-adds in large matrix products; below, a solve gains nothing


def _bfloat16_is_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return device.type == "cpu" and has_amx is not None and bool(has_amx())


def format_of(snapshot: FixedModel, streamed: bool) -> tuple[str, str]:
    """``"bfloat16"``, ``"int16"`` or ``""`` (as full), and why."""
    if snapshot.dtype != torch.float32:
        return "", "the model is in float64"
    if snapshot.coarse:
        return "", "products are in bfloat16 already"
    if _bfloat16_is_fast(snapshot.device):
        return "bfloat16", "its matrix units multiply it faster"
    if not int16_products_are_fast(snapshot.device):
        return "", "this processor multiplies no shorter numbers faster"
    if streamed:
        return "", "every product linearizes the samples again"
    share = snapshot.observed.large_share
    if share < _LEAST_SHARE:
        sides = f"with sides of {large_products.LEAST} and more"
        return "", f"{share:.0%} of the work is in products of matrices {sides}"
    return "int16", f"AVX512-VNNI, {share:.0%} of the work in large matrix products"


def mixed_text(snapshot: FixedModel, streamed: bool) -> str:
    """The line of a plan."""
    name, why = format_of(snapshot, streamed)
    return f"{name or 'as full'} ({why})"


class Int16Products(DispatchMode):
    """Large products of two matrices in 16-bit integers; all else as it is."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        at = FACTORS.get(func)
        if at is None or not _served(args[at[0]], args[at[1]]):
            return func(*args, **kwargs)
        a, b = args[at[0]], args[at[1]]
        if func is aten.mm.default:
            return int16_product(a, b)
        if func is aten.bmm.default:
            found = [int16_product(x, y) for x, y in zip(a, b, strict=True)]
            return found[0].unsqueeze(0) if len(found) == 1 else torch.stack(found)
        factor, own = kwargs.get("alpha", 1), kwargs.get("beta", 1)
        if factor != 1 or own not in (0, 1) or a.ndim != 2:
            return func(*args, **kwargs)
        out = args[0]
        if func is aten.addmm.default:
            if own == 0:
                return int16_product(a, b)
            shape = (a.shape[0], b.shape[1])
            return int16_product(
                a, b, out.expand(shape).clone(memory_format=torch.contiguous_format)
            )
        if own == 1 and out.is_contiguous():
            int16_product(a, b, out)
            return out
        product = int16_product(a, b)
        return out.copy_(product) if own == 0 else out.add_(product)


def _served(a: Tensor, b: Tensor) -> bool:
    ok = a.dtype == b.dtype == torch.float32 and a.device.type == "cpu" and type(a) is type(b)
    return ok and isinstance(a, Tensor) and a.layout == b.layout == torch.strided and is_large(a, b)


class LinearizationInInt16(Linearization):
    """Products of another linearization, which it shares, with matrices in 16-bit integers."""

    def __init__(self, exact: Linearization) -> None:
        allowance = replace(exact.allowance, columns=exact.columns)
        super().__init__(exact.snapshot, exact.outputs, allowance)
        self.engine, self.why = exact.engine, exact.why
        self._exact = exact

    @cached_property
    def _kernel(self) -> Callable[[Tensor], Tensor] | None:
        return self._exact.kernel_in_int16()

    def vjp(self, u: Tensor) -> Tensor:
        """J' u: (N*O, K) to (P, K)."""
        with Int16Products():
            return self._exact.vjp(u)

    def jvp(self, t: Tensor) -> Tensor:
        """J t: (P, K) to (N*O, K)."""
        with Int16Products():
            return self._exact.jvp(t)

    def ntk(self, u: Tensor) -> Tensor:
        """J J' u: (N*O, K) to (N*O, K)."""
        if self._kernel is not None:
            return self._kernel(u)
        with Int16Products():
            return self._exact.ntk(u)


class HessianInInt16(HessianProducts):
    """Hessian products that share all with ``exact``, with matrices in 16-bit integers."""

    def __init__(self, exact: HessianProducts) -> None:
        self._exact = exact
        self.value, self.columns = exact.value, exact.columns

    @property
    def gradient(self) -> Tensor:
        """Gradient, from the exact products."""
        return self._exact.gradient

    def product(self, vectors: Tensor) -> Tensor:
        """H V for V (P, K)."""
        with Int16Products():
            return self._exact.product(vectors)
