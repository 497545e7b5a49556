"""Largest working rates beside `learning_rate_window`: `python -m benchmarks.largest_rates.table`.

Eight architectures x two losses x two initialisations x four optimizers, three seeds. A rate works
if after ``STEPS`` steps the loss is below its start and no layer is dead, as in ``nets.py``. The
largest one is the last before two failures of a grid of factors 4, then refined to factors sqrt(2);
all rates and seeds of a row are trained as one program.

Finished rows are kept in the JSON file, and a second call goes on where the first one ended.
`--window` asks the window about measured rows without an answer yet, with `--fresh` about all.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import benchmarks.installed_first  # noqa: F401
import catapult_ext as cx
from benchmarks.largest_rates.small_nets import ARCHITECTURES, INITIALISATIONS, digits, make
from catapult_ext.losses import Loss, resolve
from catapult_ext.probes import activity
from catapult_ext.probes.phases import DEAD_FRACTION

Row = dict[str, Any]

STEPS = 200
SEEDS = (10, 11, 12)
COARSE, FINE = 4.0, 2.0**0.5
LOSSES = ("half_mse", "cross_entropy")
# Each optimizer with the rates that the scan begins with, far below and far above any that matter.
OPTIMIZERS: dict[str, tuple[Callable[[Iterable[Tensor], float], Any], float, float]] = {
    "SGD": (lambda w, rate: torch.optim.SGD(w, lr=rate), 2**-6, 2**6),
    "Adam": (lambda w, rate: torch.optim.Adam(w, lr=rate), 2**-12, 2**8),
    "momentum": (lambda w, rate: torch.optim.SGD(w, lr=rate, momentum=0.9), 2**-10, 2**6),
    "Nesterov": (
        lambda w, rate: torch.optim.SGD(w, lr=rate, momentum=0.9, nesterov=True), 2**-8, 2**4,
    ),
}  # fmt: skip
BURN_IN, BEFORE = 10, 1e-3  # steps and rate that fill Adam's second moment for the window
HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "results" / "largest-rates.json"


def trained(
    models: list[nn.Module],
    rates: list[float],
    optimizer: str,
    loss: Loss,
    data: tuple[Tensor, Tensor],
    steps: int = STEPS,
) -> list[bool]:
    """Which of the models work after ``steps`` steps, each at its rate; the models stay."""
    start, end, weights = losses_after(models, rates, optimizer, loss, data, steps)
    below = (end < start).tolist()  # False for a loss that is not finite
    shell = without_averages(models[0])
    return [ok and alive(shell, weights, i, data[0]) for i, ok in enumerate(below)]


def losses_after(
    models: list[nn.Module],
    rates: list[float],
    optimizer: str,
    loss: Loss,
    data: tuple[Tensor, Tensor],
    steps: int,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Losses (R,) before and after ``steps`` steps, and the stacked weights.

    All runs are one program: each step of the optimizer is taken at rate 1 from zero and then
    scaled, which for these optimizers, without decay, is the step at the model's own rate.
    """
    x, y = data
    bare = [without_averages(model) for model in models]
    parameters, buffers = torch.func.stack_module_state(bare)
    weights = {k: p.detach().clone().requires_grad_() for k, p in parameters.items()}
    scale = torch.tensor(rates)
    step = OPTIMIZERS[optimizer][0](list(weights.values()), 1.0)

    def one(parameters: Any, buffers: Any) -> Tensor:
        return loss(torch.func.functional_call(bare[0], (parameters, buffers), (x,)), y)

    every = torch.func.vmap(one)
    start = every(weights, buffers).detach()
    for _ in range(steps):
        gradients = torch.autograd.grad(every(weights, buffers).sum(), list(weights.values()))
        with torch.no_grad():
            for p, g in zip(weights.values(), gradients, strict=True):
                p.grad = g
            before = [p.clone() for p in weights.values()]
            torch._foreach_zero_(list(weights.values()))
            step.step()
            for p, old in zip(weights.values(), before, strict=True):
                p.mul_(scale.view(-1, *[1] * (p.dim() - 1))).add_(old)
    return start, every(weights, buffers).detach(), weights


def without_averages(model: nn.Module) -> nn.Module:
    """A copy whose batch norms keep no running averages, which stacked weights cannot update."""
    return torch.func.replace_all_batch_norm_modules_(copy.deepcopy(model))


@torch.no_grad()
def alive(shell: nn.Module, weights: dict[str, Tensor], index: int, x: Tensor) -> bool:
    """Whether no layer of one of the stacked models is dead."""
    for name, p in shell.named_parameters():
        p.copy_(weights[name][index])
    found = activity(shell, x)[1]
    return found is None or found.worst_inactive <= DEAD_FRACTION


def last_working(works: list[bool]) -> int | None:
    """Index of the last success before two failures in a row; None for no success."""
    last = None
    for i, ok in enumerate(works):
        if ok and (last is None or i - last <= 2):
            last = i
    return last


def measured(architecture: str, loss: str, init: str, optimizer: str) -> list[float]:
    """The largest working rate of every seed; 0 for none."""
    data, known = digits(loss), resolve(loss)

    def run(pairs: list[tuple[int, float]]) -> list[bool]:
        models = [make(architecture, init, seed) for seed, _ in pairs]
        return trained(models, [rate for _, rate in pairs], optimizer, known, data)

    _, low, high = OPTIMIZERS[optimizer]
    count = round(math.log(high / low, COARSE)) + 1
    grid = [low * COARSE**i for i in range(count)]
    works = run([(seed, rate) for seed in SEEDS for rate in grid])
    last = [last_working(works[i * count : (i + 1) * count]) for i in range(len(SEEDS))]
    ends = {s: grid[i] for s, i in zip(SEEDS, last, strict=True) if i is not None}
    finer = [(seed, rate * FINE**k) for seed, rate in ends.items() for k in (1, 2, 3)]
    for (seed, rate), ok in zip(finer, run(finer) if finer else [], strict=True):
        ends[seed] = max(ends[seed], rate) if ok else ends[seed]
    return [ends.get(seed, 0.0) for seed in SEEDS]


def said(architecture: str, loss: str, init: str, optimizer: str) -> Row:
    """What the window says of the first seed."""
    model = make(architecture, init, SEEDS[0])
    chosen = OPTIMIZERS[optimizer][0](model.parameters(), BEFORE)
    options: Row = {"burn_in": BURN_IN} if optimizer == "Adam" else {}
    begin = time.process_time()
    try:
        window = cx.learning_rate_window(model, loss, digits(loss), chosen, **options)
    except (ValueError, RuntimeError) as error:
        return {"refused": str(error)}
    low, high = (None, None) if window.eta_max is None else window.eta_max
    return {
        "low": low,
        "high": high,
        "start": window.start,
        "eta_crit": window.eta_crit,
        "from": window.eta_max_from,
        "flags": list(window.flags),
        "processor_seconds": time.process_time() - begin,
    }


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=OUT)
    parser.add_argument("--window", action="store_true", help="ask learning_rate_window")
    parser.add_argument("--fresh", action="store_true", help="ask it again")
    parser.add_argument("--print", action="store_true", help="only print what is there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rows: dict[str, Row] = json.loads(given.json.read_text()) if given.json.exists() else {}
    order = itertools.product(OPTIMIZERS, ARCHITECTURES, LOSSES, INITIALISATIONS)
    for optimizer, *net in () if given.print else order:
        cell = (*net, optimizer)
        name = " ".join(cell)
        if given.window and name in rows and (given.fresh or "window" not in rows[name]):
            rows[name]["window"] = said(*cell)
        elif not given.window and name not in rows:
            rows[name] = {"largest": measured(*cell)}
        else:
            continue
        keep(given.json, rows)
    print(markdown(rows))


def keep(path: Path, rows: dict[str, Row]) -> None:
    """Write all rows; a kill leaves the old file or the new one."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(rows, indent=1) + "\n")
    beside.replace(path)


def markdown(rows: dict[str, Row]) -> str:
    """The table, and how often the window was right."""
    lines = ["| net | loss | init | optimizer | largest, three seeds | range said | start |"]
    lines.append("|" + "---|" * 7)
    inside = works = asked = 0
    cells = itertools.product(ARCHITECTURES, LOSSES, INITIALISATIONS, OPTIMIZERS)
    for name, row in ((n, rows[n]) for n in map(" ".join, cells) if n in rows):
        window = row.get("window", {})
        end = OPTIMIZERS[name.split(" ")[-1]][2]  # of the grid: such a rate is no limit
        rates = ", ".join(f"{'>=' if r >= end else ''}{r:.3g}" for r in row["largest"])
        said_range = said_start = "-"
        if window.get("low") is not None:
            own = row["largest"][0]
            asked += 1
            inside += window["low"] <= own <= window["high"]
            works += window["start"] is not None and window["start"] <= min(row["largest"])
            said_range = f"{window['low']:.3g}-{window['high']:.3g}"
            said_start = "-" if window["start"] is None else f"{window['start']:.3g}"
        cells = " | ".join(name.split(" "))
        lines.append(f"| {cells} | {rates} | {said_range} | {said_start} |")
    if asked:
        text = (
            f"range holds the first seed's rate in {inside} of {asked} rows; the start lies at or"
        )
        lines.append(f"\n{text} below the largest rate of all three seeds in {works}.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
