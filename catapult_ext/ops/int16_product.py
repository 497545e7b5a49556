"""Products of float32 matrices in 16-bit integers, which processors with AVX512-VNNI do faster."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from catapult_ext import _native, _validate

_WHERE = "int16_product"


def int16_products_are_fast(device: torch.device) -> bool:
    """Whether :func:`int16_product` is faster than float32: AVX512-VNNI, in the active set.

    Its ``vpdpwssd`` makes twice the multiply-adds of an FMA in float32.  AVX512-BF16 does not: a
    core that has both was measured to make half of them in bfloat16.
    """
    known = device.type == "cpu" and not _native.emulating()
    return known and bool(_native.call("int16_product_is_fast", device))


@dataclass(frozen=True, eq=False)
class Int16Matrix:
    """One side of many products as integers, by :func:`packed_left` or :func:`packed_right`."""

    shape: tuple[int, int]
    left: bool
    numbers: Tensor


def packed_left(a: Tensor) -> Int16Matrix:
    """The left side (M, K) of many products, rounded once."""
    return _packed(a, True)


def packed_right(b: Tensor) -> Int16Matrix:
    """The right side (K, N) of many products, rounded once."""
    return _packed(b, False)


def _packed(x: Tensor, left: bool) -> Int16Matrix:
    _validate.require(x.dim() == 2, _WHERE, "a matrix must have 2 dimensions", tuple(x.shape))
    x = _dense(x)
    free, depth = x.shape if left else x.shape[::-1]
    numbers = x.new_empty(_native.call("int16_side_size", x.device, left, free, depth))
    _native.call("int16_pack", x.device, x, left, numbers)
    return Int16Matrix((x.shape[0], x.shape[1]), left, numbers)


def int16_product(
    a: Tensor | Int16Matrix,
    b: Tensor | Int16Matrix,
    out: Tensor | None = None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """``a @ b`` of float32 matrices on the CPU, rounded to 16-bit integers, sums exact in 32 bits.

    Row i of a is multiplied by ``s_i = 45876 / |a_i|``, or by less where an entry would leave 16
    bits, and rounded; columns of b likewise.  By Cauchy and Schwarz no sum of products leaves 32
    bits.  An entry of the result is wrong by about ``1e-5 |a_i| |b_j|``, at most by
    ``2.2e-5 sqrt(K) |a_i| |b_j|``, for norms from 1e-32 to 1e33.

    Args:
        a: (M, K), finite, one stride of 1 (others are copied), or :func:`packed_left` of it.
        b: (K, N), likewise, or :func:`packed_right` of it.
        out: (M, N) contiguous, to which the product is added; None: a new tensor.
        mask: (M, N) contiguous, which multiplies the result, with what was in ``out``.

    Returns:
        (M, N).  A row or column that is not finite gives NaN.  The same bits for any number of
        threads.

    Cost:
        M N K multiply-adds; the integers of b, K N 16-bit numbers, are kept meanwhile.

    Raises:
        ValueError: shapes that do not fit each other, or a side packed for the other side.
    """
    _check_sides(a, b)
    left = a.numbers if isinstance(a, Int16Matrix) else _dense(a)
    right = b.numbers if isinstance(b, Int16Matrix) else _dense(b)
    (rows, depth), cols = a.shape, b.shape[1]
    add = out is not None
    if out is None:
        out = left.new_empty(rows, cols)
    device = out.device
    kept = isinstance(b, Int16Matrix)
    size = 0 if kept else _native.call("int16_side_size", device, False, cols, depth)
    work = left.new_empty(size)
    _native.call("int16_product", device, left, right, mask, out, work, depth, add)
    return out


def _check_sides(a: Tensor | Int16Matrix, b: Tensor | Int16Matrix) -> None:
    # numbers of a packed side tell neither their side nor how many of them are padding
    for x, left, place in ((a, True, "left"), (b, False, "right")):
        fits = not isinstance(x, Int16Matrix) or x.left == left
        _validate.require(
            fits, _WHERE, f"the {place} matrix must be packed for the {place}", "the other"
        )
    fits = len(a.shape) == len(b.shape) == 2 and a.shape[1] == b.shape[0]
    shapes = tuple(a.shape), tuple(b.shape)
    _validate.require(fits, _WHERE, "a and b must be (M, K) and (K, N)", shapes)


def _dense(x: Tensor) -> Tensor:
    """With a stride of 1, and its sign in its numbers: a negated view has it beside them."""
    x = x.resolve_neg()
    # contiguous() leaves the strides of dimensions of size 1 as they are
    return x if 1 in x.stride() else x.clone(memory_format=torch.contiguous_format)
