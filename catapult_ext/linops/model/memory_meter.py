"""Live bytes, peak bytes, flops and memory traffic of what runs under a dispatch mode."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from catapult_ext.linops.model.dispatch_mode import DispatchMode
from catapult_ext.linops.model.leaves import tensors_in

_OUT_OF_PLACE = {
    torch.ops.aten.addmm_: torch.ops.aten.addmm,
    torch.ops.aten.baddbmm_: torch.ops.aten.baddbmm,
}
_BLOCKED_COPIES = 1.5  # of a convolution's tensors, measured with oneDNN


class OverBudget(RuntimeError):
    """Live bytes passed the limit of a :class:`Meter`."""


LIMITS = (OverBudget, torch.OutOfMemoryError)  # of memory, not of what the model accepts


@dataclass(frozen=True)
class Usage:
    """Use of one phase: bytes added and left, bytes at its peak, flops, bytes moved, operations."""

    kept: float
    peak: float
    flops: float
    traffic: float
    calls: float

    def __sub__(self, other: Usage) -> Usage:
        return Usage(*(a - b for a, b in zip(_numbers(self), _numbers(other), strict=True)))

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(a + b for a, b in zip(_numbers(self), _numbers(other), strict=True)))

    def __mul__(self, factor: float) -> Usage:
        return Usage(*(a * factor for a in _numbers(self)))


def _numbers(usage: Usage) -> tuple[float, ...]:
    return usage.kept, usage.peak, usage.flops, usage.traffic, usage.calls


def _channels_last(t: Tensor) -> bool:
    return t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)


class Meter(DispatchMode):
    """Counts the storages that operations make while they live, and the work done.

    Args:
        known: tensors that exist already and do not count.
        limit: raise :class:`OverBudget` when live bytes pass it.
        work: count flops and traffic as well (slower).
    """

    def __init__(
        self, known: Iterable[Tensor] = (), limit: float | None = None, work: bool = False
    ) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.flops = self.traffic = 0.0
        self.calls = 0
        self._limit, self._work = limit, work
        self._known = {t.untyped_storage()._cdata for t in known if t.layout == torch.strided}
        self._seen: dict[int, Any] = {}
        self._marked = (0, 0.0, 0.0, 0)

    def phase(self) -> Usage:
        """Use since the last call."""
        live, flops, traffic, calls = self._marked
        out = Usage(
            self.live - live,
            self.peak - live,
            self.flops - flops,
            self.traffic - traffic,
            self.calls - calls,
        )
        self._marked, self.peak = (self.live, self.flops, self.traffic, self.calls), self.live
        return out

    def note(self, func: Any, args: Any, out: Any) -> None:
        """Count the results of an operation; as a note of ``Policy.applied``."""
        self.take(out)

    def take(self, out: Any) -> None:
        """Count the storages of an operation's results until they are freed."""
        for t in (out,) if isinstance(out, Tensor) else tensors_in(out):
            if t.layout is torch.strided and not t.is_meta:
                storage = t.untyped_storage()
                key = storage._cdata
                if key not in self._seen and key not in self._known:
                    self._take(storage, key)

    def _take(self, storage: Any, key: int) -> None:
        size = storage.nbytes()
        seen = self._seen

        def gone(_: Any) -> None:
            self.live -= size
            seen.pop(key, None)

        seen[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)
        if self._limit is not None and self.live > self._limit:
            raise OverBudget(f"{self.live} bytes")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.calls += 1
        self.take(out)
        if self._work:
            self._count(func, args, kwargs, out)
        return out

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        from torch.utils.flop_counter import flop_registry

        results = tensors_in(out)
        packet = func._overloadpacket
        # torch counts addmm and not addmm_, which does the same
        formula = flop_registry.get(packet) or flop_registry.get(_OUT_OF_PLACE.get(packet))
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        elif not func.is_view:
            self.flops += sum(prod(t.shape) for t in results)
        if not func.is_view:
            tensors = [*results, *tensors_in((args, kwargs))]
            self.traffic += sum(t.numel() * t.element_size() for t in tensors)
        if "convolution" in func.name():  # oneDNN's blocked copies live inside the operation
            inputs = tensors_in(args)
            copies = sum(
                t.numel() * t.element_size()
                for t in [*results, *inputs]
                if not _channels_last(t)  # which it takes as they are
            )
            self.peak = max(self.peak, self.live + int(_BLOCKED_COPIES * copies))
