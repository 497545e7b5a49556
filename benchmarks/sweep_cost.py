"""A whole sweep beside a plain torch loop of the same runs: `python -m benchmarks.sweep_cost`.

Rates below 2/lambda_0, so that no run ends early; 30 steps; curvature at the start and the end to
1e-2, one eigenvector followed. Processor time of one thread, sweep and loop in turns, medians.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
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


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of a call, and its result."""
    began = time.process_time()
    made = call()
    return time.process_time() - began, made


def measure(name: str, rates: int, rounds: int) -> dict[str, Any]:
    """Sweep and loop in turns; their losses must agree."""
    count, shape, make, most = NETS[name]
    x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    y = torch.nn.functional.one_hot(torch.arange(count) % 10, 10).float()
    model, found = make(), data.Dataset("random", x, y, x[:0], y[:0])
    cs = [0.2 + 1.7 * i / max(1, rates - 1) for i in range(rates)]
    ours, theirs = [], []
    for _ in range(rounds):
        took, done = seconds(lambda: cx.sweep(model, found, c=cs, **SETTINGS))
        ours.append(took)
        took, wanted = seconds(lambda etas=done.eta: plain(model, x, y, etas))
        theirs.append(took)
        for record, losses in zip(done.records, wanted, strict=True):
            apart = max(abs(a / b - 1) for a, b in zip(record["loss"], losses, strict=True))
            assert apart < 1e-3, apart
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "rates": rates,
        "rounds": rounds,
        "sweep, processor seconds": statistics.median(ours),
        "plain torch loop, processor seconds": statistics.median(theirs),
        "sweep over loop": statistics.median(ratios),
        "largest and smallest": [max(ratios), min(ratios)],
        "asked for, at most": most,
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--net", choices=list(NETS), action="append")
    parser.add_argument("--json", type=Path, default=Path("sweep-cost.json"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    held = json.loads(chosen.json.read_text()) if chosen.json.exists() else {}
    for name in chosen.net or NETS:
        held[name] = measure(name, chosen.rates, chosen.rounds)
        held["machine"] = {"processor": processor(), "torch": torch.__version__, "threads": 1}
        chosen.json.write_text(json.dumps(held, indent=1) + "\n")
        print(name, json.dumps(held[name]))


if __name__ == "__main__":
    main()
