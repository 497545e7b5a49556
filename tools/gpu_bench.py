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
from pathlib import Path
from typing import Any

import torch

from catapult_ext.testing import backends
from catapult_ext.testing.op_cases import OpCase, op_cases


def time_once(call: Callable[..., Any], args: list, device: str) -> float:
    """Seconds of one call: by events on a GPU, so that the launch is not counted twice."""
    if device != "cuda":
        start = time.perf_counter()
        call(*args)
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    call(*args)
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def median_time(call: Callable[..., Any], case: OpCase, device: str) -> dict[str, float]:
    """Median, spread and count; fresh arguments for every call, warm-up first."""
    source = [t.to(device) for t in case.make()]
    first = time_once(call, [t.clone() for t in source], device)
    count = max(3, min(30, int(1.0 / max(first, 1e-6))))
    times = [time_once(call, [t.clone() for t in source], device) for _ in range(count)]
    middle = statistics.median(times)
    return {"seconds": middle, "spread": (max(times) - min(times)) / middle, "count": count}


def peaks(device: str) -> dict[str, float]:
    """Copy bandwidth and GEMM rates of torch on this device, in GB/s and GF/s."""
    n, words = (8192, 1 << 29) if device == "cuda" else (512, 1 << 22)
    found = {}
    source = torch.empty(words, device=device)
    target = torch.empty_like(source)
    times = [time_once(target.copy_, [source], device) for _ in range(5)]
    found["copy_gbytes_per_second"] = 8e-9 * words / min(times)
    for name, dtype, tf32 in [
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("float64", torch.float64, False),
    ]:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a = torch.randn(n, n, device=device, dtype=dtype)
        times = [time_once(torch.matmul, [a, a], device) for _ in range(5)]
        found[f"{name}_gflops"] = 2e-9 * n**3 / min(times)
    torch.backends.cuda.matmul.allow_tf32 = False
    return found


def measure(case: OpCase, limits: dict[str, float], device: str) -> dict[str, Any]:
    """One row: our time, torch's, and what share of the machine's limits was reached."""
    ours = median_time(case.call, case, device)
    row: dict[str, Any] = {"op": case.op, "ours": ours, "goal": case.goal}
    seconds = ours["seconds"]
    row["microseconds_per_step"] = seconds / case.steps * 1e6
    row["gflops"] = case.flops / seconds / 1e9
    row["gbytes_per_second"] = case.bytes / seconds / 1e9
    row["share_of_gemm"] = row["gflops"] / limits["float32_gflops"]
    row["share_of_copy"] = row["gbytes_per_second"] / limits["copy_gbytes_per_second"]
    if case.baseline is not None:
        row["torch"] = median_time(case.baseline, case, device)
        row["speedup"] = row["torch"]["seconds"] / seconds
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
