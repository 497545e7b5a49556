"""A whole sweep beside a plain torch loop of the same runs: `python -m benchmarks.sweep_cost`.

Rates below 2/lambda_0, so that no run ends early; 30 steps; curvature at the start and the end to
1e-2, one eigenvector followed. Processor time of one thread, sweep and loop in turns, medians.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import catapult_ext as cx
from catapult_ext import data, models
from catapult_ext._store import processor

STEPS = 30
SETTINGS: dict[str, Any] = {"steps": STEPS, "probe_factor": math.inf, "tol": 1e-2, "top": 1}
# samples, shape of one, network, and the largest ratio asked for
NETS: dict[str, tuple[int, tuple[int, ...], Callable[[], torch.nn.Module], float]] = {
    "fc 784-512x3-10, N = 2048": (2048, (784,), lambda: models.fully_connected(784, 10), 1.5),
    "small CNN, N = 256": (256, (1, 28, 28), lambda: models.small_cnn(28, 10, channels=16), 2.0),
}
# glibc neither gives freed memory back to the system nor takes 32 MiB and less from it singly
KEEP = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}


def plain(
    model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, etas: list[float]
) -> list[list[float]]:
    """The same runs by torch alone: the losses of every step."""
    start = {name: value.clone() for name, value in model.state_dict().items()}
    found = []
    for eta in etas:
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=eta)
        losses = []
        for step in range(STEPS + 1):
            loss = (model(x) - y).square().sum() / (2 * len(x))
            losses.append(loss.item())
            if step < STEPS:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        found.append(losses)
    model.load_state_dict(start)
    return found


def problem(name: str) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """The network and its data."""
    count, shape, make, _ = NETS[name]
    x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    y = torch.nn.functional.one_hot(torch.arange(count) % 10, 10).float()
    return make(), x, y


def side(name: str, rates: int, etas: list[float] | None) -> dict[str, Any]:
    """The sweep, or the loop at the rates ``etas``, measured in this process."""
    small = models.fully_connected(3, 1, width=4), torch.randn(8, 3), torch.randn(8, 1)
    model, x, y = problem(name)
    cs = [0.2 + 1.7 * i / max(1, rates - 1) for i in range(rates)]
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    if etas is None:
        cx.sweep(small[0], small[1:], c=[1.0], **SETTINGS)  # imports what a first call imports
        found = data.Dataset("random", x, y, x[:0], y[:0])
        began = time.process_time()
        done = cx.sweep(model, found, c=cs, **SETTINGS)
        took = time.process_time() - began
        etas, losses = done.eta, [record["loss"] for record in done.records]
    else:
        plain(*small, [1e-3])
        began = time.process_time()
        losses = plain(model, x, y, etas)
        took = time.process_time() - began
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {"seconds": took, "page faults": faults, "etas": etas, "losses": losses}


def alone(name: str, rates: int, etas: list[float] | None, env: dict[str, str]) -> dict[str, Any]:
    """:func:`side` in a new process."""
    asked = json.dumps({"name": name, "rates": rates, "etas": etas})
    command = [sys.executable, "-m", "benchmarks.sweep_cost", "--side", asked]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ, **env})
    return json.loads(told.stdout)


def measure(name: str, rates: int, rounds: int, env: dict[str, str]) -> dict[str, Any]:
    """Sweep and loop in turns; their losses must agree."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(alone(name, rates, None, env))
        theirs.append(alone(name, rates, ours[-1]["etas"], env))
        for found, wanted in zip(ours[-1]["losses"], theirs[-1]["losses"], strict=True):
            apart = max(abs(a / b - 1) for a, b in zip(found, wanted, strict=True))
            assert apart < 1e-3, apart
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(ours, theirs, strict=True)]
    steps = rates * (STEPS + 1)
    return {
        "rates": rates,
        "rounds": rounds,
        "sweep, processor seconds": statistics.median(one["seconds"] for one in ours),
        "plain torch loop, processor seconds": statistics.median(one["seconds"] for one in theirs),
        "sweep over loop": statistics.median(ratios),
        "largest and smallest": [max(ratios), min(ratios)],
        "page faults by step, sweep and loop": [
            round(statistics.median(one["page faults"] for one in side) / steps)
            for side in (ours, theirs)
        ],
        "asked for, at most": NETS[name][3],
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--net", choices=list(NETS), action="append")
    parser.add_argument("--json", type=Path, default=Path("sweep-cost.json"))
    parser.add_argument("--keep", action="store_true", help="both keep freed memory")
    parser.add_argument("--side", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.side:
        print(json.dumps(side(**chosen.side)))
        return
    env = KEEP if chosen.keep else {}
    held = json.loads(chosen.json.read_text()) if chosen.json.exists() else {}
    for name in chosen.net or NETS:
        label = f"{name}, freed memory kept" if chosen.keep else name
        held[label] = measure(name, chosen.rates, chosen.rounds, env)
        held["machine"] = {"processor": processor(), "torch": torch.__version__, "threads": 1}
        chosen.json.write_text(json.dumps(held, indent=1) + "\n")
        print(label, json.dumps(held[label]))


if __name__ == "__main__":
    main()
