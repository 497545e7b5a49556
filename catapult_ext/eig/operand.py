"""One interface for all that eigsh accepts: n, dtype, device, product with a block of vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._progress import Counter
from catapult_ext.eig.products import guarded


@dataclass(frozen=True, eq=False)
class Operand:
    """A symmetric operator: ``product`` maps (n, b) to (n, b); ``explicit`` its matrix, if any."""

    n: int
    dtype: torch.dtype
    device: torch.device
    product: Callable[[Tensor], Tensor]
    explicit: Tensor | None
    room: Callable[[int], int | None] | None = None  # bytes left in a product, by columns
    budget: int = 0  # of which the room is a part
    noise: float | None = None  # relative accuracy of products, where coarser than the dtype's
    symmetric: bool = False  # known to be: a skew is rounding of terms that cancel, however large
    half_product: Callable[[Tensor], Tensor | None] | None = None  # B V, (m, K), where A = B'B
    grain: float = 0.0  # rounding unit of numbers that A is made of, where coarser than the dtype's

    @property
    def eps(self) -> float:
        """Relative accuracy of a product."""
        return torch.finfo(self.dtype).eps if self.noise is None else self.noise

    def counted(self, counter: Counter) -> Operand:
        """The same, whose products are counted, in columns."""
        if not counter.wanted:
            return self
        half = None if self.half_product is None else _counted(self.half_product, counter)
        return replace(self, product=_counted(self.product, counter), half_product=half)


def _counted(product: Callable[[Tensor], Any], counter: Counter) -> Callable[[Tensor], Any]:
    def call(q: Tensor) -> Any:
        out = product(q)
        counter.add(q.shape[-1])
        return out

    return call


def as_operand(a: Any, where: str) -> Operand:
    """Wrap a tensor, NumPy array, SciPy operator or any object with ``shape`` and ``@``.

    An object whose ``dtype`` is a torch dtype is given tensors; one with a NumPy dtype is given
    arrays; one without a dtype is given tensors of torch's default dtype.
    """
    if not hasattr(a, "shape") or not hasattr(a, "__matmul__"):
        v.fail(where, "A must have shape and @", type(a).__name__, TypeError)
    shape = tuple(a.shape)
    square = len(shape) == 2 and shape[0] == shape[1] and shape[0] > 0
    v.require(square, where, "A must be square (n, n) with n >= 1", shape)
    found = _wrapped(a, where)
    return replace(found, product=guarded(found.product, found.dtype, where))


def _wrapped(a: Any, where: str) -> Operand:
    if isinstance(a, Tensor):
        return _from_tensor(a, where)
    dtype = getattr(a, "dtype", None)
    if dtype is None or isinstance(dtype, torch.dtype):
        return _from_torch_object(a, dtype or torch.get_default_dtype(), where)
    return _from_numpy_object(a, dtype, where)


def _check_dtype(dtype: object, where: str) -> None:
    if dtype not in v.FLOAT_DTYPES:
        v.fail(where, "A must have dtype float32 or float64", dtype, TypeError)


def _from_tensor(a: Tensor, where: str) -> Operand:
    v.require(a.device.type != "meta", where, "A must hold data", "a meta tensor")
    _check_dtype(a.dtype, where)
    v.constant(where, {"A": a})
    matrix = a.detach()
    if matrix.layout != torch.strided:
        return Operand(a.shape[0], a.dtype, a.device, lambda q: matrix @ q, None)
    v.finite(bool(torch.isfinite(matrix).all()), where, "A")
    scale = matrix.abs().max()
    skew = (matrix - matrix.T).abs().max()
    tolerance = 100 * torch.finfo(a.dtype).eps
    v.require(
        bool(skew <= tolerance * scale), where, "A must be symmetric", f"max |A - A'| = {skew:.3g}"
    )
    if bool(skew > 0):  # products see (A + A')/2, factorisations the lower triangle: make them one
        matrix = (matrix + matrix.T) / 2
    return Operand(a.shape[0], a.dtype, a.device, lambda q: matrix @ q, matrix)


def _from_torch_object(a: Any, dtype: torch.dtype, where: str) -> Operand:
    _check_dtype(dtype, where)
    symmetric = getattr(a, "symmetric", True) is not False
    v.require(symmetric, where, "A must be symmetric", type(a).__name__)
    device = torch.device(getattr(a, "device", "cpu"))
    room, budget = getattr(a, "solver_room", None), getattr(a, "budget", None)
    known = getattr(a, "skew_is_rounding", False) is True
    unit = float(getattr(a, "rounding_unit", 0.0))
    grain = unit if unit > torch.finfo(dtype).eps else 0.0
    return Operand(
        a.shape[0],
        dtype,
        device,
        lambda q: a @ q,
        None,
        room,
        budget or 0,
        symmetric=known,
        half_product=getattr(a, "half_product", None),
        grain=grain,
    )


def _from_numpy_object(a: Any, dtype: Any, where: str) -> Operand:
    import numpy as np

    kind = {np.dtype("float32"): torch.float32, np.dtype("float64"): torch.float64}.get(
        np.dtype(dtype)
    )
    if kind is None:
        v.fail(where, "A must have dtype float32 or float64", dtype, TypeError)
    if isinstance(a, np.ma.MaskedArray):
        v.fail(where, "A must be a plain array (A.filled(0))", "a masked array", TypeError)
    if isinstance(a, np.ndarray):
        return _from_tensor(torch.from_numpy(np.ascontiguousarray(a)), where)

    def product(q: Tensor) -> Tensor:
        # a copy, since SciPy operators may use their argument as scratch
        out = a @ q.numpy().copy()
        masked = isinstance(out, np.ma.MaskedArray)
        v.require(not masked, where, "products with A must be plain arrays", "a masked array")
        return torch.from_numpy(np.ascontiguousarray(out))

    return Operand(a.shape[0], kind, torch.device("cpu"), product, None)


# Relative accuracy of products.  Rounding to bfloat16 averages out over a product: with it
# eigenvalues are good to about 1 %.  16-bit integers were measured.
_COARSE_NOISE = {"bfloat16": 5e-4, "int16": 1e-4}


def has_coarse_products(a: Any) -> bool:
    """Whether products that are coarser than float32 are faster, as ``a`` says; True of a matrix.

    An object that does not say so is left to :func:`coarse_operand`.
    """
    return isinstance(a, Tensor) or getattr(a, "mixed", "bfloat16") != ""


def coarse_operand(a: Any, where: str) -> Operand:
    """``a`` with coarse products: a dense matrix, or an operator that offers ``coarse()``.

    Raises:
        ValueError: anything else.
    """
    if isinstance(a, Tensor) and a.layout == torch.strided:
        matrix = a.detach()
        size = matrix.abs().max()
        low = (matrix / size if size > 0 else matrix).bfloat16()

        def product(q: Tensor) -> Tensor:
            return (low @ q.bfloat16()).to(q.dtype) * size

        noise = _COARSE_NOISE["bfloat16"]
        return Operand(a.shape[0], a.dtype, a.device, product, None, noise=noise)
    offered = hasattr(a, "coarse")
    needs = "precision='mixed' needs a dense tensor, NTK, GGN or Hessian"
    v.require(offered, where, needs, type(a).__name__)
    low_operator = a.coarse()
    return Operand(
        low_operator.shape[0],
        low_operator.dtype,
        torch.device(low_operator.device),
        lambda q: low_operator @ q,
        None,
        noise=_COARSE_NOISE[getattr(a, "mixed", "") or "bfloat16"],
    )
