#!/usr/bin/env python3
"""Time every native op on the GPU against torch and against the machine's own limits.

Usage: tools/gpu_bench.py cuda|emulated OUT.json [SECONDS]. On the emulated back end the
small cases run, only to prove the script; their times mean nothing.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from catapult_ext.testing import backends
from catapult_ext.testing.baselines import matmul_precision
from catapult_ext.testing.op_cases import OpCase, op_cases

PAUSES = (1e-3, 1e-2, 1e-1)  # seconds the GPU is kept busy while the host prepares a launch
CYCLES = 2e9  # a second of torch.cuda._sleep, or a little more


@dataclass(frozen=True)
class Timing:
    """One call: seconds of the device, of the host, and whether the first holds none of the second.

    An operation that itself waits for the device can not be timed without its host.
    """

    seconds: float
    host: float
    kernels_alone: bool


def time_once(call: Callable[..., Any], fresh: Callable[[], list], device: str) -> Timing:
    """Time of one call; on a GPU between two events that are queued while it sleeps.

    On an idle stream the first event would be passed at once, and the checks, the binding and the
    launch of the call would count as time of the kernels.
    """
    if device != "cuda":
        args = fresh()
        start = time.perf_counter()
        call(*args)
        used = time.perf_counter() - start
        return Timing(used, used, False)
    for pause in PAUSES:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        args = fresh()
        torch.cuda.synchronize()
        torch.cuda._sleep(int(pause * CYCLES))
        begin.record()
        start = time.perf_counter()
        call(*args)
        host = time.perf_counter() - start
        end.record()
        alone = not begin.query()  # still asleep when the host had queued everything
        torch.cuda.synchronize()
        if alone or host > PAUSES[-1]:
            break
    return Timing(begin.elapsed_time(end) / 1e3, host, alone)


def median_time(call: Callable[..., Any], case: OpCase, device: str) -> dict[str, Any]:
    """Median, spread and count; fresh arguments for every call, warm-up first.

    What takes a second or more is taken once.
    """
    source = [t.to(device) for t in case.make()]

    def fresh() -> list:
        return [t.clone() for t in source]

    times = [time_once(call, fresh, device)]
    first = max(times[0].seconds, times[0].host)
    if first < 1.0:
        count = max(3, min(30, int(1.0 / max(first, 1e-6))))
        times = [time_once(call, fresh, device) for _ in range(count)]
    seconds = [t.seconds for t in times]
    middle = statistics.median(seconds)
    return {
        "seconds": middle,
        "spread": (max(seconds) - min(seconds)) / middle,
        "count": len(times),
        "host_seconds": statistics.median(t.host for t in times),
        "kernels_alone": all(t.kernels_alone for t in times),
    }


def fastest(call: Callable[..., Any], args: list, device: str) -> float:
    """Least seconds of five calls."""
    return min(time_once(call, lambda: args, device).seconds for _ in range(5))


def peaks(device: str) -> dict[str, float]:
    """Copy bandwidth and GEMM rates of torch on this device, in GB/s and GF/s."""
    n, words = (8192, 1 << 29) if device == "cuda" else (512, 1 << 22)
    found = {}
    source = torch.empty(words, device=device)
    target = torch.empty_like(source)
    found["copy_gbytes_per_second"] = 8e-9 * words / fastest(target.copy_, [source], device)
    for name, dtype, precision in [
        ("float32", torch.float32, "ieee"),
        ("tf32", torch.float32, "tf32"),
        ("float64", torch.float64, "ieee"),
    ]:
        a = torch.randn(n, n, device=device, dtype=dtype)
        with matmul_precision(precision):
            seconds = fastest(torch.matmul, [a, a], device)
        found[f"{name}_gflops"] = 2e-9 * n**3 / seconds
    return found


def measure(case: OpCase, limits: dict[str, float], device: str) -> dict[str, Any]:
    """One row: our time, that of the others, and what share of the machine's limits was reached."""
    ours = median_time(case.call, case, device)
    row: dict[str, Any] = {"op": case.op, "ours": ours, "goal": case.goal}
    seconds = ours["seconds"]
    row["microseconds_per_step"] = seconds / case.steps * 1e6
    row["gflops"] = case.flops / seconds / 1e9
    row["gbytes_per_second"] = case.bytes / seconds / 1e9
    row["gemm"] = case.gemm
    row["share_of_gemm"] = row["gflops"] / limits[f"{case.gemm}_gflops"]
    row["share_of_copy"] = row["gbytes_per_second"] / limits["copy_gbytes_per_second"]
    row["baselines"] = {n: median_time(call, case, device) for n, call in case.baselines.items()}
    row["speedup"] = {n: theirs["seconds"] / seconds for n, theirs in row["baselines"].items()}
    return row


def main(arguments: list[str]) -> int:
    """Measure case by case and rewrite the file after each, so that a limit loses little."""
    started, budget = time.monotonic(), float((arguments[2:] or ["1e9"])[0])
    wanted = {"cuda": "cuda", "emulated": "cuda_emulated"}[arguments[0]]
    backend = next(b for b in backends() if b.name == wanted)
    device, out = backend.device, Path(arguments[1])
    record: dict[str, Any] = {"peaks": peaks(device), "rows": {}}
    failed = 0
    for name, case in op_cases(full=device == "cuda").items():
        if time.monotonic() - started > budget:
            record["rows"][name] = {"error": "no time left"}
            failed += 1
            continue
        try:
            with backend.active():
                record["rows"][name] = measure(case, record["peaks"], device)
        except Exception as error:
            record["rows"][name] = {"error": f"{type(error).__name__}: {error}"}
            failed += 1
        print(name, json.dumps(record["rows"][name]), flush=True)
        out.write_text(json.dumps(record, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
