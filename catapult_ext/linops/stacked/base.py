"""The batched operator: R symmetric operators of one size, multiplied together."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._free_memory import ran_out
from catapult_ext._progress import Progress, counted, shared
from catapult_ext.linops.model.keeps_graph import KeepsGraph

if TYPE_CHECKING:
    from typing_extensions import Self


class StackedProducts(ABC):
    """One way to multiply R symmetric operators (n, n) at once.

    Attributes:
        replicas: R.
        n: size of each operator.
        dtype: dtype of the products.
        device: device of the products.
        plan: a line that says which way the products are made.
        parameter_names: of the parameters that the operators act on; None where unknown.
        rounding_unit: of the least precise numbers in a product.
        skew_is_rounding: whether every operator is known to be symmetric.
        columns: right-hand sides multiplied at once.
        at_once: replicas multiplied at once, with one column each.
    """

    replicas: int
    n: int
    dtype: torch.dtype
    device: torch.device
    plan: str
    parameter_names: tuple[str, ...] | None = None
    rounding_unit: float
    skew_is_rounding: bool = False
    columns: int = 64
    at_once: int = 1 << 30

    @abstractmethod
    def matmat(self, vectors: Tensor) -> Tensor:
        """Products with (R, n, K), K columns each."""

    @abstractmethod
    def select(self, index: Tensor) -> StackedProducts:
        """Products of the replicas ``index``, an int64 tensor on the CPU."""

    def dense(self) -> Tensor | None:
        """The matrices (R, n, n) where there is a shorter way than n products; else None."""
        return None

    def written_out(self) -> Tensor | None:
        """The matrices (R, n, n) where solves with them are cheaper than products; else None."""
        return None

    def diagonal(self) -> Tensor | None:
        """The diagonals (R, n) where there is a shorter way than n products; else None."""
        return None

    def dual(self) -> StackedDual | None:
        """Smaller operators with the same non-zero spectra, or None where there are none."""
        return None


@dataclass(frozen=True, eq=False)
class StackedDual:
    """R smaller operators with the same non-zero spectra as R large ones.

    ``lift`` maps their vectors (R, m, K) to the large spaces (R, n, K) so that an eigenvector u
    with eigenvalue l > 0 becomes ``lift(u) / sqrt(l)``, a unit eigenvector there; ``restrict`` is
    its transpose.  Both belong to all replicas of ``operator``; after ``replicas(index)`` take the
    dual of those.
    """

    operator: StackedOperator
    lift: Callable[[Tensor], Tensor]
    restrict: Callable[[Tensor], Tensor]


class StackedOperator(KeepsGraph):
    """R symmetric operators of one size, (R, n, n), known by their products.

    ``@`` takes (R, n) or (R, n, K) tensors of the operators' dtype on their device.  A replica
    whose model has non-finite values has non-finite results, and no other replica has.

    Attributes:
        shape: (R, n, n).
        dtype: dtype of the products.
        device: device of the products.
    """

    name = "StackedOperator"
    symmetric = True
    shape: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, products: StackedProducts, name: str | None = None) -> StackedOperator:
        """An operator of products that are made already."""
        self = cls.__new__(cls)
        self.name = cls.name if name is None else name
        self._use(products)
        return self

    def _use(self, products: StackedProducts) -> None:
        self.products = products
        self.shape = (products.replicas, products.n, products.n)
        self.dtype, self.device = products.dtype, products.device
        self._at_once, self._halved = products.at_once, False
        self._parts: dict[tuple[int, int], StackedProducts] = {}

    @property
    def plan(self) -> str:
        """A line that says which way the products are made, and why."""
        step = self._at_once
        return self.products.plan + (f", {step} at a time" if step < self.shape[0] else "")

    @property
    def parameter_names(self) -> tuple[str, ...] | None:
        """Names of the parameters that the operators act on, in order; None where unknown."""
        return self.products.parameter_names

    @property
    def rounding_unit(self) -> float:
        """Roundoff of the least precise numbers in a product: of ``dtype`` or a coarser one."""
        return self.products.rounding_unit

    @property
    def skew_is_rounding(self) -> bool:
        """Whether every operator is known to be symmetric, so that a skew is rounding."""
        return self.products.skew_is_rounding

    @property
    def columns(self) -> int:
        """Right-hand sides of each replica that are multiplied at once."""
        return self.products.columns

    def replicas(self, index: Tensor | Sequence[int]) -> Self:
        """The batched operator of some of the replicas, in the order of ``index``.

        Args:
            index: a list of ints, an int64 tensor (any device), or a bool tensor (R,).

        Raises:
            ValueError: no replica, or one that is not there.
            TypeError: no integers.
        """
        chosen = self._index(index)
        out = copy.copy(self)
        out._use(self.products.select(chosen))
        return out

    def _index(self, index: Tensor | Sequence[int]) -> Tensor:
        where, r = f"{self.name}.replicas", self.shape[0]
        given = (
            torch.as_tensor(index, device="cpu") if not isinstance(index, Tensor) else index.cpu()
        )
        if given.dtype == torch.bool:
            v.require(given.shape == (r,), where, f"a mask must be ({r},)", tuple(given.shape))
            given = given.nonzero().reshape(-1)
        v.require(given.numel() > 0, where, "index must name at least one replica", "none")
        if given.dtype not in (torch.int64, torch.int32):
            v.fail(where, "index must be integers or a mask", given.dtype, TypeError)
        v.require(given.dim() == 1, where, "index must be one-dimensional", tuple(given.shape))
        outside = given[(given < -r) | (given >= r)]
        v.require(
            outside.numel() == 0, where, f"index must be of {r} replicas", outside[:3].tolist()
        )
        return given.long() % r

    @no_autocast()
    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Products with (R, n) or (R, n, K)."""
        where, (r, n, _) = f"{self.name} @", self.shape
        if not isinstance(vectors, Tensor):
            kind = type(vectors).__name__
            v.fail(where, "the right-hand side must be a torch.Tensor", kind, TypeError)
        fits = vectors.dim() in (2, 3) and tuple(vectors.shape[:2]) == (r, n)
        needs = f"the right-hand side must be ({r}, {n}) or ({r}, {n}, K)"
        v.require(fits, where, needs, tuple(vectors.shape))
        if vectors.dtype != self.dtype:
            v.fail(where, f"the right-hand side must be {self.dtype}", vectors.dtype, TypeError)
        on_device = vectors.device == self.device
        v.require(on_device, where, f"the right-hand side must be on {self.device}", vectors.device)
        columns = vectors.detach().reshape(r, n, -1)
        if columns.shape[2] == 0:
            return torch.zeros_like(columns)
        out = self._product(columns)
        return out.reshape(r, n) if vectors.dim() == 2 else out

    def _product(self, vectors: Tensor) -> Tensor:
        """Products with (R, n, K), ``columns`` and as many replicas at a time as fit."""
        if vectors.shape[2] <= self.columns:
            return self._by_chunks(vectors)
        out = torch.empty_like(vectors, memory_format=torch.contiguous_format)
        for start in range(0, vectors.shape[2], self.columns):
            some = slice(start, start + self.columns)
            out[:, :, some] = self._by_chunks(vectors[:, :, some])
        return out

    def _by_chunks(self, vectors: Tensor) -> Tensor:
        """Products with as many columns as fit; if memory runs out, the chunk is halved once."""
        try:
            return self._chunked(vectors, self._at_once)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            count = min(self._at_once, self.shape[0])
            if not ran_out(error) or self._halved or count == 1:
                raise
            self._halved, self._at_once = True, (count + 1) // 2
            shown = f"{count} replicas do not fit into memory, {self._at_once} at a time are tried"
            warnings.warn(f"catapult_ext.{self.name}: {shown}", stacklevel=2)
        return self._chunked(vectors, self._at_once)

    def _chunked(self, vectors: Tensor, at_once: int) -> Tensor:
        r, k = self.shape[0], vectors.shape[2]
        step = max(1, at_once // k)
        if step >= r:
            return self.products.matmat(vectors)
        out = torch.empty_like(vectors, memory_format=torch.contiguous_format)
        for start in range(0, r, step):
            rows = slice(start, min(start + step, r))
            out[rows] = self._chunk(rows).matmat(vectors[rows])
        return out

    def _chunk(self, rows: slice) -> StackedProducts:
        """Products of some replicas, made once: their tensors are views."""
        key = (rows.start, rows.stop)
        if key not in self._parts:
            self._parts[key] = self.products.select(
                torch.arange(rows.start, rows.stop, device="cpu")
            )
        return self._parts[key]

    @no_autocast()
    def dense(self, *, progress: Progress = None) -> Tensor:
        """The matrices (R, n, n); by n products of each replica where there is no shorter way.

        Args:
            progress: True for a bar, or a function of (columns done, columns), each of all
                replicas; see :mod:`catapult_ext._progress`.
        """
        n = self.shape[1]
        with counted(progress, f"{self.name}.dense", n, "columns") as counter, shared(counter):
            out = self.products.dense()
            if out is None:
                out = torch.empty(self.shape, dtype=self.dtype, device=self.device)
                for start in range(0, n, self.columns):
                    unit = self._unit_columns(start)
                    stop = start + unit.shape[2]
                    out[:, :, start:stop] = self._by_chunks(unit)
                    counter.at(stop)
            elif counter.done < n:
                counter.at(n)
        return out

    @no_autocast()
    def written_out(self) -> Tensor | None:
        """The matrices (R, n, n) where solves with them are cheaper than products; else None."""
        return self.products.written_out()

    @no_autocast()
    def diagonal(self) -> Tensor:
        """The diagonals (R, n), exact; by n products of each replica where nothing is shorter."""
        known = self.products.diagonal()
        if known is not None:
            return known
        out = torch.empty(self.shape[:2], dtype=self.dtype, device=self.device)
        for start in range(0, self.shape[1], self.columns):
            unit = self._unit_columns(start)
            stop = start + unit.shape[2]
            block = self._by_chunks(unit)[:, start:stop]
            out[:, start:stop] = block.diagonal(dim1=1, dim2=2)
        return out

    def trace(self) -> Tensor:
        """Sums of the diagonals, (R,), accumulated in float64 and returned in dtype."""
        return self.diagonal().double().sum(1).to(self.dtype)

    def dual(self) -> StackedDual | None:
        """Smaller operators with the same non-zero spectra, or None where there are none."""
        return self.products.dual()

    def _unit_columns(self, start: int) -> Tensor:
        r, n, _ = self.shape
        stop = min(start + self.columns, n)
        unit = torch.zeros(n, stop - start, dtype=self.dtype, device=self.device)
        unit[start:stop] = torch.eye(stop - start, dtype=self.dtype, device=self.device)
        return unit.expand(r, -1, -1)

    def __repr__(self) -> Any:
        return f"{self.name}(shape={self.shape}, dtype={self.dtype}, device={self.device})"
