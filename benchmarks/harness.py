"""What every benchmark shares: interleaved timing against a baseline, machine peaks, the record.

A ratio measured inside one run counts; an absolute time only on a GPU. Results are checked against
the reference before anything is timed: pass ``check=``.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

import catapult_ext as cx


@dataclass
class Case:
    """One benchmark: our call, what it is compared with, and what it costs.

    Attributes:
        ours: the call that is measured; its result is ignored.
        baselines: name -> call that does the same work another way.
        check: raises unless ``ours`` gives the right answer; runs first.
        prepare: makes fresh arguments before each call (for ops that mutate them); not timed.
        flops: useful floating-point operations of one call, from the op's own cost function.
        bytes: least bytes of one call.
        unit: (name, count): e.g. ("replica-steps", R * T) adds a rate per second.
        target: name of the baseline -> least ratio asked for; recorded, never asserted.
    """

    ours: Callable[..., Any]
    baselines: dict[str, Callable[..., Any]] = field(default_factory=dict)
    check: Callable[[], None] | None = None
    prepare: Callable[[], tuple] = tuple
    flops: float = 0.0
    bytes: float = 0.0
    unit: tuple[str, float] | None = None
    target: dict[str, float] = field(default_factory=dict)


def _timed(call: Callable[..., Any], prepare: Callable[[], tuple], device: str) -> float:
    args = prepare()
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call(*args)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def run(benchmark: Any, case: Case, *, quick: bool, device: str = "cpu") -> dict[str, Any]:
    """Check, time interleaved, record into ``benchmark.extra_info``, and return the record.

    ``quick`` takes two rounds instead of enough for a tenth of a second and a stable median.
    """
    if case.check is not None:
        case.check()
    calls = {"ours": case.ours, **case.baselines}
    once = {name: _timed(call, case.prepare, device) for name, call in calls.items()}
    rounds = 2 if quick else max(5, min(50, int(2.0 / max(sum(once.values()), 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_timed(call, case.prepare, device))
    median = {name: statistics.median(values) for name, values in times.items()}
    ours = median["ours"]
    info: dict[str, Any] = {
        "seconds": median,
        "spread": {n: (max(v) - min(v)) / median[n] for n, v in times.items()},
        "rounds": rounds,
        "speedup": {name: median[name] / ours for name in case.baselines},
        "target": case.target,
    }
    if case.flops:
        info["gflops"] = case.flops / ours / 1e9
    if case.bytes:
        info["gbytes_per_second"] = case.bytes / ours / 1e9
    if case.unit:
        info[f"{case.unit[0]}_per_second"] = case.unit[1] / ours
    benchmark.extra_info.update(info)
    # pytest-benchmark keeps the JSON; the numbers that count are the interleaved ones above.
    benchmark.pedantic(case.ours, setup=lambda: (case.prepare(), {}), rounds=1, iterations=1)
    return info


@cache
def machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, threads, build, and the peaks measured here: GEMM rates and copy bandwidth."""
    info = {
        "processor": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "python": platform.python_version(),
        **cx.build_info(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
    }
    for name, dtype in (("sgemm", torch.float32), ("dgemm", torch.float64)):
        a = torch.randn(1024, 1024, dtype=dtype, device=device)
        times = [_timed(lambda a=a: a @ a, tuple, device) for _ in range(7)]
        info[f"{name}_gflops"] = 2 * 1024**3 / min(times) / 1e9
    source = torch.randn(2**25, device=device)
    target = torch.empty_like(source)
    times = [_timed(lambda: target.copy_(source), tuple, device) for _ in range(7)]
    info["copy_gbytes_per_second"] = 2 * source.numel() * 4 / min(times) / 1e9
    return info


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()
