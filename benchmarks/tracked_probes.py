"""Tracked probes along 500 steps: `python -m benchmarks.tracked_probes NET KIND`.

A net of ``benchmarks.real_networks`` is trained by gradient descent on one batch, cross entropy:
first with rates 1.9 / lambda set anew every 20 steps, then 500 steps from 1.9 / lambda on, the rate
growing by 0.1 % a step, so that it stays about the edge of stability.  A probe every ten steps, as
:class:`catapult_ext.CurvatureTracker` makes it, is compared with a cold solve at the same
parameters to ``tol`` 1e-3: within its error if the two intervals meet.  Cost in units of one
training step of the same model and batch, timed beside each probe (processor time).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import catapult_ext as cx
from benchmarks.harness import machine
from benchmarks.real_networks import EVERY, problem

RESULTS = Path(__file__).resolve().parent / "results" / "tracked-probes.json"
BATCH = {"resnet": 32, "gpt": 4}  # samples, unless --samples says more
WARM_UP = 100
GROWTH = 1.001


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds and the result."""
    began = time.process_time()
    out = call()
    return time.process_time() - began, out


class Case:
    """Model and batch; ``descend`` makes one step."""

    def __init__(self, net: str, kind: str, samples: int | None) -> None:
        model, x, y = problem(net)
        share = len(y) // len(x)  # labels a sample
        self.kind, self.count = kind, samples or BATCH[net]
        self.model: nn.Module = model
        self.x: Tensor = x[: self.count]
        self.y: Tensor = y[: self.count * share]
        self.rate = 0.0

    def operator(self) -> Any:
        """At the present parameters."""
        return getattr(cx, self.kind)(self.model, "cross_entropy", (self.x, self.y))

    def descend(self) -> float:
        """One step of gradient descent; processor seconds of its two passes."""
        seconds, _ = timed(self._passes)
        with torch.no_grad():
            for p in self.model.parameters():
                if p.grad is not None:
                    p -= self.rate * p.grad
        return seconds

    def _passes(self) -> None:
        self.model.zero_grad()
        F.cross_entropy(self.model(self.x), self.y).backward()

    def top(self) -> Any:
        """A cold solve."""
        return cx.eigsh(self.operator(), seed=1)


def follow(case: Case, steps: int) -> list[dict[str, Any]]:
    """A row for every probe."""
    for step in range(min(WARM_UP, steps)):
        if step % 20 == 0:
            case.rate = 1.9 / case.top().eigenvalues[0].item()
        case.descend()
    case.rate = 1.9 / case.top().eigenvalues[0].item()
    tracker = cx.TopTracker(1, between=1e-2, guards=2)  # as CurvatureTracker has it
    rows: list[dict[str, Any]] = []
    for step in range(0, steps, EVERY):
        freeze, operator = timed(case.operator)
        update, found = timed(lambda a=operator: tracker.update(a))
        cold = case.top()
        times = []
        for _ in range(EVERY):
            times.append(case.descend())
            case.rate *= GROWTH
        value, true = found.eigenvalues[0].item(), cold.eigenvalues[0].item()
        error, slack = found.errors[0].item(), cold.errors[0].item()
        unit = statistics.median(times)
        rows.append(
            {
                "step": step,
                "eta_lambda": case.rate * true,
                "miss": abs(value - true) / true,
                "error": error / value,
                "within": abs(value - true) <= error + slack,
                "checked": found.index_check != "inherited",
                "products": found.matvecs,
                "cold_products": cold.matvecs,
                "steps": (freeze + update) / unit,
                "freeze": freeze / unit,
            }
        )
        print(json.dumps(rounded(rows[-1])), flush=True)
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and counts."""
    keys = ("steps", "freeze", "products", "error", "eta_lambda", "cold_products")
    return {
        "probes": len(rows),
        "within": sum(row["within"] for row in rows),
        "checked": sum(row["checked"] for row in rows),
        **{f"{key}_median": statistics.median(row[key] for row in rows) for key in keys},
        "products_mean": statistics.mean(row["products"] for row in rows),
    }


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers to four digits."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}


def main() -> None:
    """Follow one net and merge the record into the JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tracked_probes", description=__doc__
    )
    parser.add_argument("net", choices=sorted(BATCH))
    parser.add_argument("kind", choices=("GGN", "Hessian"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    case = Case(options.net, options.kind, options.samples)
    rows = follow(case, options.steps)
    found = {"samples": case.count, "training_steps": options.steps, **rounded(summary(rows))}
    print(json.dumps(found))
    record = json.loads(options.json.read_text()) if options.json.exists() else {}
    record["command"] = "OMP_NUM_THREADS=1 python -m benchmarks.tracked_probes NET KIND"
    record["machine"] = machine()
    record.setdefault(options.net, {})[options.kind] = {
        **found,
        "rows": [rounded(row) for row in rows],
    }
    options.json.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
