"""How often the table by activation holds: `python -m benchmarks.largest_rates.activation_table`.

Its protocol: dense chains in NTK parameterisation, half the squared error, gradient descent; here
on 32 digits, 60 steps, one hidden layer and two to four, widths 96 to 192. c = eta lambda_0 goes up
in factors of 1.12 until two in a row fail.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from torch import Tensor, nn

import benchmarks.installed_first  # noqa: F401
import catapult_ext as cx
from catapult_ext.probes.activation_table import C_ACT
from catapult_ext.probes.observables import activity
from catapult_ext.probes.phases import DEAD_FRACTION

STEPS, SAMPLES = 60, 32
GRID, FAILURES = 1.12, 2
DIVERGED = 1e7  # times the loss at the start
NAMES = {"linear": "linear", "LeakyReLU": "leaky_relu"} | {
    row: row.lower() for row in ("ReLU", "Tanh", "Erf", "GELU", "SiLU", "Abs")
}


def trains(model: nn.Module, x: Tensor, y: Tensor, eta: float) -> bool:
    """Whether the loss ends below its start and no layer is dead."""
    model = copy.deepcopy(model)
    weights, first = list(model.parameters()), 0.0
    for step in range(STEPS + 1):
        loss = (model(x) - y).square().sum() / (2 * len(x))
        first = first if step else loss.item()
        if not loss.item() < DIVERGED * first:
            return False
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            torch._foreach_add_(weights, gradients, alpha=-eta)
    found = activity(model, x)[1]
    return loss.item() < first and (found is None or found.worst_inactive <= DEAD_FRACTION)


def largest(row: str, depth: int, width: int, seed: int) -> float:
    """The largest c that trains."""
    x, y = cx.data.digits(train=SAMPLES).train
    model = cx.models.fully_connected(
        64, 10, width=width, depth=depth, activation_name=NAMES[row], seed=seed
    )
    lambda0 = cx.eigsh(cx.GGN(model, "half_mse", (x, y))).eigenvalues[0].item()
    c, last, failures = 0.7 * C_ACT[row][depth > 1][0], 0.0, 0
    while failures < FAILURES:
        good = trains(model, x, y, c / lambda0)
        last, failures = (c, 0) if good else (last, failures + 1)
        c *= GRID
    return last


def main() -> None:
    """Print a row for each net; keep them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, required=True)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in given.seeds:
        width, deep = (96, 128, 192)[seed % 3], (2, 3, 4)[seed % 3]
        for row in C_ACT:
            for depth in (1, deep):
                c = largest(row, depth, width, seed)
                low, high = C_ACT[row][depth > 1]
                holds = low <= c <= high
                rows.append({"row": row, "depth": depth, "width": width, "seed": seed, "c": c})
                print(f"{row:10s} depth {depth} width {width:3d} seed {seed}  c {c:6.3g}  {holds}")
    if given.json:
        command = "python -m benchmarks.largest_rates.activation_table --seeds "
        kept = {"command": command + " ".join(map(str, given.seeds)), "rows": rows}
        given.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
