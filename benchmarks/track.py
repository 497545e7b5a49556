"""CurvatureTracker along 500-step runs: `python -m benchmarks.track mlp|resnet [--json FILE]`.

Training starts with a catapult (rate 4 / lambda). At step 20 the rate becomes 1.9 / lambda and
grows by 0.1 % a step, across the edge of stability. Every probe is compared with a cold solve to
1e-6 on the same model and probe set, and timed against forward passes made beside it. The same
training then runs with budgets, and shows what probing cost.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import catapult_ext as cx
from catapult_ext.models import has_batch_norm, with_batch_stats

EVERY = 10
TURN = 20
RATES = (4.0, 1.9)
GROWTH = 1.001
RESULTS = Path(__file__).resolve().parent / "results" / "track.json"


class Case:
    """Model, batches and probe set."""

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.steps = name, steps
        if name == "mlp":
            self.model: nn.Module = cx.models.fully_connected(
                784, 10, width=512, depth=3, parameterisation="standard"
            )
            self.x, self.y = cx.data.digits(size=28).train
            self.batch, self.probe_samples = 512, 512
            self.words = "MLP 784-512x3-10, N = 512 digits, full batch"
        else:
            self.model = cx.models.resnet(20, 10)
            self.x, self.y = cx.data.synthetic_images(512, 0, shape=(3, 16, 16)).train
            self.batch, self.probe_samples = 128, 32
            self.words = "ResNet-20, batch norm, 512 images 3x16x16, batch 128, probe set 32"

    @property
    def probe_set(self) -> tuple[Tensor, Tensor]:
        """Fixed."""
        return self.x[: self.probe_samples], self.y[: self.probe_samples]

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One a step, seeded."""
        order = torch.Generator().manual_seed(1)
        for _ in range(self.steps):
            chosen = torch.randperm(len(self.x), generator=order)[: self.batch]
            yield (
                (self.x, self.y) if self.batch == len(self.x) else (self.x[chosen], self.y[chosen])
            )

    def top(self, model: nn.Module) -> float:
        """Its largest eigenvalue now."""
        return cx.eigsh(operator(model, *self.probe_set)).eigenvalues[0].item()

    def train(self, see: Callable[[int, Tensor], None], **options: Any) -> Any:
        """A run; ``see(step, loss)`` after every step of the tracker, which is returned."""
        model = copy.deepcopy(self.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATES[0] / self.top(model))
        tracker = cx.CurvatureTracker(
            model, "half_mse", self.probe_set, optimizer=optimizer, every=EVERY, **options
        )
        self.running, self.tracker = model, tracker
        with tracker:
            for step, (x, y) in enumerate(self.batches()):
                if step == TURN:
                    with stopped(tracker):
                        optimizer.param_groups[0]["lr"] = RATES[1] / self.top(model)
                elif step > TURN:
                    optimizer.param_groups[0]["lr"] *= GROWTH
                optimizer.zero_grad()
                loss = (model(x) - y).square().sum() / (2 * len(x))
                loss.backward()
                optimizer.step()
                tracker.step(loss)
                see(step, loss)
        return tracker


def operator(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    """The Gauss-Newton matrix that the tracker follows."""
    held = with_batch_stats(model, "coupled", x) if has_batch_norm(model) else model
    return cx.GGN(held, "half_mse", (x, y))


@contextmanager
def stopped(tracker: Any) -> Iterator[None]:
    """Work that is neither training nor probing."""
    began = tracker.overhead.clock()
    yield
    tracker.overhead._mark += tracker.overhead.clock() - began


def seconds(call: Callable[[], Any], times: int = 3) -> float:
    """Median."""
    out = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        out.append(time.perf_counter() - began)
    return statistics.median(out)


def accuracy(case: Case) -> dict[str, Any]:
    """Every probe against a cold solve, and its cost in forward passes."""
    rows: list[dict[str, Any]] = []
    losses: list[float] = []

    def see(step: int, loss: Tensor) -> None:
        losses.append(loss.item())
        tracker = case.tracker
        if len(tracker.probes) == len(rows) or tracker.probes[-1]["step"] != step + 1:
            return
        x, y = case.probe_set
        row = tracker.probes[-1]
        with stopped(tracker), torch.no_grad():
            still = with_batch_stats(case.running, "coupled", x)
            forward = seconds(lambda: still(x))
            true = cx.eigsh(operator(case.running, x, y), tol=1e-6, seed=step).eigenvalues[0].item()
        value, error = row["values"][0], row["errors"][0]
        rows.append(
            {
                "step": row["step"],
                "value": value,
                "true": true,
                "miss": abs(value - true) / true,
                "bound": error / true,
                "checked": "checked" in row["flags"],
                "products": row["products"],
                "forwards": tracker._cost / forward,
                "eta_lambda": row["eta_lambda"],
                "loss": losses[-1],
            }
        )
        if len(rows) % 10 == 0:
            print(json.dumps(rows[-1]), flush=True)

    case.train(see)
    sharp = [row["eta_lambda"] for row in rows]
    before = [s for s, row in zip(sharp, rows, strict=True) if row["step"] <= TURN]
    after = [s for s, row in zip(sharp, rows, strict=True) if row["step"] > TURN]
    return {
        "probes": len(rows),
        "within": sum(r["miss"] <= max(0.01, r["bound"]) for r in rows),
        "within_1_percent": sum(r["miss"] <= 0.01 for r in rows),
        "within_bound": sum(r["miss"] <= r["bound"] for r in rows),
        "largest_miss": max(r["miss"] for r in rows),
        "checked": sum(r["checked"] for r in rows),
        "products_median": statistics.median(r["products"] for r in rows),
        "forwards_median": statistics.median(r["forwards"] for r in rows),
        "catapult": {"start": before[0], "end": before[-1], "peak_loss": max(losses[:TURN])},
        "edge": {"start": after[0], "largest": max(after), "end": after[-1]},
        "losses": {"start": losses[0], "turn": losses[TURN - 1], "end": losses[-1]},
        "rows": rows,
    }


def budgeted(case: Case, budget: float) -> dict[str, Any]:
    """What probing took of a run with a budget."""
    tracker = case.train(lambda step, loss: None, budget=budget, steps=case.steps)
    return {
        "budget": budget,
        "overhead": tracker.overhead.share,
        "probes": len(tracker.probes),
        "samples": tracker.samples or len(case.probe_set[0]),
        "report": tracker.report(),
    }


def rounded(value: Any) -> Any:
    """Numbers to four digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return {k: rounded(v) for k, v in value.items()} if isinstance(value, dict) else value


def main() -> None:
    """Run one case and merge its record into the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.track", description=__doc__)
    parser.add_argument("case", choices=("mlp", "resnet"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--only", choices=("accuracy", "budgets"))
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    case = Case(options.case, options.steps)
    record: dict[str, Any] = {"work": case.words, "steps": case.steps, "every": EVERY}
    if options.only != "budgets":
        record["accuracy"] = accuracy(case)
        print({k: v for k, v in record["accuracy"].items() if k != "rows"}, flush=True)
    if options.only != "accuracy":
        record["budgets"] = [budgeted(case, budget) for budget in (0.1, 0.03)]
        print(*record["budgets"], sep="\n", flush=True)
    whole = json.loads(options.json.read_text()) if options.json.exists() else {}
    whole[options.case] = {**whole.get(options.case, {}), **record}
    options.json.write_text(json.dumps(rounded(whole)) + "\n")


if __name__ == "__main__":
    main()
