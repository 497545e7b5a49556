"""Measure the largest working rate: `python -m benchmarks.largest_rates.scan --seeds 10 11 12`.

Rates go up a geometric grid from one that trains until two in a row fail: first in steps of four
notches, then from the last that trained in single notches. The largest working rate is the last
that trained (`nets.py` says what that means).
"""

from __future__ import annotations

import argparse
import json
import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import benchmarks.installed_first  # noqa: F401
from benchmarks.largest_rates.nets import NETS, STEPS, Net
from catapult_ext.probes.observables import ActivityWatch
from catapult_ext.probes.phases import DEAD_FRACTION

GRID = 1.25
COARSE = 4  # notches
LOOKS = (8, 16, 24, 32, 48, 64, 96, 128, STEPS)  # steps at which the units are counted
FIRST = {"SGD": 1e-2, "momentum": 1e-2, "Adam": 1e-3}
LARGEST = 1e4  # a rate that no one would take; the scan ends there
FAILURES = 2


@dataclass
class Run:
    """One run: losses at steps 0, 1, ..., and the worst layer's inactive share at ``LOOKS``."""

    rate: float
    losses: list[float] = field(default_factory=list)
    inactive: dict[int, float] = field(default_factory=dict)

    def trains(self, steps: int = STEPS) -> bool:
        """Whether it is alive and below its start after ``steps`` steps."""
        reached = len(self.losses) > steps
        alive = reached and self.inactive[steps] <= DEAD_FRACTION
        return alive and self.losses[steps] < self.losses[0]


def train(net: Net, model: nn.Module, rate: float, steps: int = STEPS) -> Run:
    """Full-batch training until ``steps`` or a loss that is not finite."""
    x, y = net.data()
    optimizer, run = net.steps(model, rate), Run(rate)
    for step in range(steps + 1):
        with ActivityWatch(model) if step in LOOKS else nullcontext() as watch:
            value = value_of(net.loss, model(x), y)
        if not math.isfinite(value.item()):
            break
        run.losses.append(value.item())
        if watch is not None:
            found = watch.found(len(x))
            run.inactive[step] = 0.0 if found is None else found.worst_inactive
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return run


def value_of(loss: str | nn.Module, out: Tensor, y: Tensor) -> Tensor:
    """Half the squared error of a sample, or its cross entropy; the mean over samples (tokens)."""
    if isinstance(loss, nn.Module):
        return loss(out, y)
    if loss == "half_mse":
        return (out - y).square().sum() / (2 * len(y))
    return F.cross_entropy(out.flatten(0, -2), y.flatten())


def scan(net: Net, seed: int) -> list[Run]:
    """All runs at and above a rate that trains, by increasing rate."""
    rate = FIRST[net.optimizer]
    while not (first := train(net, net.build(seed), rate)).trains():
        rate /= GRID**COARSE
    runs = [first]
    for notch in (GRID**COARSE, GRID):
        rate, failures = largest(runs), 0
        while failures < FAILURES and rate < LARGEST:
            rate *= notch
            found = next((r for r in runs if math.isclose(r.rate, rate)), None)
            if found is None:
                found = train(net, net.build(seed), rate)
                runs.append(found)
            failures = 0 if found.trains() else failures + 1
    return sorted(runs, key=lambda run: run.rate)


def largest(runs: list[Run]) -> float:
    """The largest rate that trained; 0 for none."""
    return max((run.rate for run in runs if run.trains()), default=0.0)


def main() -> None:
    """Print a row for each net and seed; keep them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--seeds", nargs="+", type=int, required=True)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in given.nets:
        for seed in given.seeds:
            runs = scan(NETS[name], seed)
            rows.append(
                {"net": name, "seed": seed, "largest": largest(runs), "first": runs[0].rate}
                | {"rates": len(runs), "failed": [r.rate for r in runs if not r.trains()]}
            )
            print(f"{name:22s} seed {seed:3d}  largest working rate {rows[-1]['largest']:.4g}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
