"""How fast this machine is: flops and bytes a second, measured once for a forecast in seconds."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_SIDE = 384  # of the matrices multiplied
_BYTES = 32 << 20  # copied: more than the caches of a core hold
_TIMES = 5
_CALLS = 200
_WITH_GRAPH = 6.0  # times as long as a bare call: what torch.func and autograd do around one


@dataclass(frozen=True)
class Rate:
    """Measured rates of this machine, per second.

    Attributes:
        flops: of a product of matrices of a few hundred rows; 1 multiply-add = 2.
        bytes: of memory traffic, read and written.
        calls: of torch's operations on next to nothing, with the graph around them.
    """

    flops: float
    bytes: float
    calls: float

    def seconds(self, flops: float, moved: float, calls: float = 0.0) -> float:
        """Predicted time in seconds of flops, bytes and calls, one after the other."""
        return flops / self.flops + moved / self.bytes + calls / self.calls


def machine_rate(device: torch.device, dtype: torch.dtype) -> Rate:
    """Measured at the first call for a device, a dtype and a number of threads: about 50 ms."""
    return _measured(device, dtype, torch.get_num_threads())


@functools.cache
def _measured(device: torch.device, dtype: torch.dtype, _threads: int) -> Rate:
    square = torch.ones(_SIDE, _SIDE, device=device, dtype=dtype)
    out = torch.empty_like(square)
    source = torch.ones(_BYTES // 2 // dtype.itemsize, device=device, dtype=dtype)
    copy = torch.empty_like(source)
    multiply = _fastest(device, lambda: torch.mm(square, square, out=out))
    move = _fastest(device, lambda: copy.copy_(source))
    one = torch.ones(1, device=device, dtype=dtype)

    def add() -> None:
        for _ in range(_CALLS):
            one.add_(one)

    call = _WITH_GRAPH * _fastest(device, add) / _CALLS
    return Rate(flops=2.0 * _SIDE**3 / multiply, bytes=_BYTES / move, calls=1 / call)


def _fastest(device: torch.device, call: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls: others may use the machine meanwhile."""
    best = float("inf")
    for _ in range(_TIMES):
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return max(best, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
