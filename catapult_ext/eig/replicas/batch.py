"""One interface for R operators of one size, together and each of them alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._progress import Counter
from catapult_ext.eig.operand import Operand, as_operand
from catapult_ext.eig.products import guarded_batch


@dataclass(frozen=True, eq=False)
class Batch:
    """R symmetric operators: ``product`` maps (R, n, b) to (R, n, b)."""

    source: Any
    replicas: int
    n: int
    dtype: torch.dtype
    device: torch.device
    where: str
    symmetric: bool = False  # known to be: a skew is rounding of terms that cancel, however large
    grain: float = 0.0  # rounding unit of numbers that A is made of, where coarser than the dtype's
    counter: Counter | None = None  # of products, in columns of one replica

    @property
    def eps(self) -> float:
        """Relative accuracy of a product."""
        return torch.finfo(self.dtype).eps

    @property
    def explicit(self) -> bool:
        """Whether the matrices are given."""
        return isinstance(self.source, Tensor)

    def product(self, q: Tensor) -> Tensor:
        """Products with (R, n, b), checked and in ``dtype``."""
        out = guarded_batch(self.source, q, self.dtype, self.where)
        if self.counter is not None:
            self.counter.add(q.shape[2])
        return out

    def select(self, index: Tensor) -> Batch:
        """The replicas ``index``, an int64 tensor on the CPU."""
        explicit = isinstance(self.source, Tensor)
        chosen = self.source[index.to(self.device)] if explicit else self.source.replicas(index)
        return replace(self, source=chosen, replicas=len(index))

    def of(self, matrices: Tensor) -> Batch:
        """The same replicas with other matrices."""
        return replace(self, source=matrices)

    def one(self, r: int) -> tuple[Any, Operand]:
        """Replica r alone, as what :func:`catapult_ext.eigsh` takes, and seen by the solvers."""
        alone = self.source[r] if isinstance(self.source, Tensor) else Alone(self, r)
        return alone, as_operand(alone, self.where)


class Alone:
    """One replica of a batch as an operator (n, n)."""

    def __init__(self, batch: Batch, r: int) -> None:
        self._a = batch.select(torch.tensor([r], device="cpu")).source
        self.shape, self.dtype, self.device = (batch.n, batch.n), batch.dtype, batch.device
        self.skew_is_rounding, self.rounding_unit = batch.symmetric, batch.grain

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return (self._a @ vectors[None])[0]


def is_batch(a: Any) -> bool:
    """Whether ``a`` has three dimensions."""
    return hasattr(a, "shape") and hasattr(a, "__matmul__") and len(tuple(a.shape)) == 3


def as_batch(a: Any, where: str, counter: Counter | None = None) -> Batch:
    """Wrap a tensor or an operator (R, n, n) that offers ``@`` and ``replicas(index)``.

    Raises:
        TypeError: neither, or another dtype.
        ValueError: not (R, n, n) with R, n >= 1.
    """
    shape = tuple(a.shape)
    fits = shape[0] > 0 and shape[1] == shape[2] > 0
    v.require(fits, where, "a batch must be (R, n, n) with R >= 1 and n >= 1", shape)
    if isinstance(a, Tensor):
        v.dense(where, "A", a)
        v.constant(where, {"A": a})
        a = a.detach()
    elif not hasattr(a, "replicas"):
        needs = "a batch (R, n, n) must be a torch.Tensor or offer replicas(index)"
        v.fail(where, needs, type(a).__name__, TypeError)
    dtype = getattr(a, "dtype", None) or torch.get_default_dtype()
    if dtype not in v.FLOAT_DTYPES:
        v.fail(where, "A must have dtype float32 or float64", dtype, TypeError)
    unit = float(getattr(a, "rounding_unit", 0.0))
    return Batch(
        a,
        shape[0],
        shape[1],
        dtype,
        torch.device(getattr(a, "device", "cpu")),
        where,
        symmetric=getattr(a, "skew_is_rounding", False) is True,
        grain=unit if unit > torch.finfo(dtype).eps else 0.0,
        counter=counter,
    )
