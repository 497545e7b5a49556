"""Cases that the table by activation got wrong: `python -m benchmarks.largest_rates.answers`.

Each case is scanned from the rate that `learning_rate_window` names now. Rates are in units of
eta_crit, so that c = 2 is 1 for gradient descent.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

import benchmarks.installed_first  # noqa: F401
import catapult_ext as cx
from benchmarks.largest_rates import nets as n
from benchmarks.largest_rates.check import advised
from benchmarks.largest_rates.scan import GRID, train


def fully(activation: str, depth: int = 3, **options: Any) -> Any:
    return lambda seed: cx.models.fully_connected(
        64, 10, width=256, depth=depth, activation_name=activation, seed=seed, **options
    )


def shallow(_seed: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def normed_residual(_seed: int) -> nn.Module:
    branches = [
        n.Residual(nn.LayerNorm(128), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128))
        for _ in range(3)
    ]
    return nn.Sequential(nn.Linear(64, 128), *branches, nn.LayerNorm(128), nn.Linear(128, 10))


def batch_normed(_seed: int) -> nn.Module:
    layers: list[nn.Module] = []
    for d in (64, 128, 128):
        layers += [nn.Linear(d, 128), nn.BatchNorm1d(128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 10))


def default(activation: Any) -> Any:
    return lambda _: n.default_mlp(activation)


CE, MSE, IMAGE = n.CE, n.MSE, n.IMAGE
HE = {"parameterisation": "standard"}
SMOOTH = nn.CrossEntropyLoss(label_smoothing=0.1)
# row, case, net, seed, and the largest rate that the former advice allowed, in units of eta_crit
CASES: list[tuple[str, str, n.Net, str]] = [
    ("P1, E02", "ReLU MLP, default, CE", n.Net(default(nn.ReLU), CE, "SGD"), "4 to 10"),
    ("P1, E02", "GELU MLP, default, CE", n.Net(default(nn.GELU), CE, "SGD"), "5.2 to 13"),
    ("P1, E02", "tanh MLP, default, CE", n.Net(default(nn.Tanh), CE, "SGD"), "2.1 to 5.25"),
    (
        "P1, E10",
        "CNN, default, CE",
        n.Net(lambda _: n.default_cnn(norm=False), CE, "SGD", IMAGE),
        "4 to 10",
    ),
    ("P3, E06", "ReLU MLP, NTK, MSE, 0.9", n.Net(fully("relu"), MSE, "momentum"), "4 to 10"),
    ("P3, E06", "GELU MLP, NTK, MSE, 0.9", n.Net(fully("gelu"), MSE, "momentum"), "5.2 to 13"),
    ("P3, E06", "tanh MLP, NTK, MSE, 0.9", n.Net(fully("tanh"), MSE, "momentum"), "2.1 to 5.25"),
    ("E06", "ReLU MLP, NTK, CE, 0.9", n.Net(fully("relu"), CE, "momentum"), "4 to 10"),
    ("P4, E03", "ReLU MLP, default, MSE", n.Net(default(nn.ReLU), MSE, "SGD"), "4 to 10"),
    ("P4, E03", "GELU MLP, default, MSE", n.Net(default(nn.GELU), MSE, "SGD"), "5.2 to 13"),
    ("P4, E03", "tanh MLP, default, MSE", n.Net(default(nn.Tanh), MSE, "SGD"), "2.1 to 5.25"),
    ("P4", "ReLU MLP, He, MSE", n.Net(fully("relu", **HE), MSE, "SGD"), "4 to 10"),
    ("P5, E01, E04", "ReLU MLP, NTK, CE", n.Net(fully("relu"), CE, "SGD"), "4 to 10"),
    ("P5, E01, E04", "SiLU MLP, NTK, CE", n.Net(fully("silu"), CE, "SGD"), "4.7 to 11.75"),
    ("P5, E01, E04", "tanh MLP, NTK, CE", n.Net(fully("tanh"), CE, "SGD"), "2.1 to 5.25"),
    ("E01", "ReLU, one layer, NTK, CE", n.Net(fully("relu", 1), CE, "SGD"), "2.1 to 5.25"),
    ("E02", "ReLU MLP, He, CE", n.Net(fully("relu", **HE), CE, "SGD"), "4 to 10"),
    ("E02", "ReLU, one layer, default, CE", n.Net(shallow, CE, "SGD"), "2.1 to 5.25"),
    ("P6, E10", "GPT, CE", n.Net(lambda _: n.GPT(), CE, "SGD", None), "5.2 to 13"),
    ("P6, E10", "residual ReLU, CE", n.Net(lambda _: n.residual_mlp(), CE, "SGD"), "4 to 10"),
    ("P6, E09", "residual ReLU, LN, CE", n.Net(normed_residual, CE, "SGD"), "4 to 10"),
    ("P6, E10", "ViT, CE", n.Net(lambda _: n.ViT(), CE, "SGD", IMAGE), "5.2 to 13"),
    ("E07", "ReLU MLP, default, CE, Adam", n.Net(default(nn.ReLU), CE, "Adam"), "4 to 10"),
    ("E08", "ReLU MLP, NTK, CE smoothed", n.Net(fully("relu"), SMOOTH, "SGD"), "4 to 10"),
    ("E09", "MLP, BN, CE", n.Net(batch_normed, CE, "SGD"), "4 to 10"),
    ("E09", "MLP, LN, CE", n.Net(lambda _: n.normed_mlp(), CE, "SGD"), "4 to 10"),
]


def answer(row: str, case: str, net: n.Net, before: str, seed: int) -> dict[str, Any]:
    """One case: scanned upwards from the advised start, to the second failure in a row."""
    window = advised(net, seed)
    assert window.start is not None
    assert window.eta_max is not None
    rate, last, failures = window.start, 0.0, 0
    while failures < 2:
        good = train(net, net.build(seed), rate).trains()
        last, failures = (rate, 0) if good else (last, failures + 1)
        rate *= GRID
    unit = window.eta_crit
    return {
        "row": row,
        "case": case,
        "seed": seed,
        "eta_crit": unit,
        "largest": last / unit,
        "before": before,
        "start": window.start / unit,
        "range": [rate / unit for rate in window.eta_max],
        "holds": window.eta_max[0] <= last <= window.eta_max[1],
        "eta_c": None if window.eta_c is None else window.eta_c / unit,
        "steps": window.evidence["trial_steps"] + window.evidence["burn_in"],
    }


def main() -> None:
    """Print a row for each case; keep them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for case in CASES:
        rows.append(found := answer(*case, given.seed))
        low, high = found["range"]
        print(
            f"| {found['row']} | {found['case']} | {found['largest']:.3g} | {found['before']} | "
            f"{low:.2g} to {high:.2g} | {found['start']:.2g} | {found['holds']} |",
            flush=True,
        )
        if given.json:
            command = f"python -m benchmarks.largest_rates.answers --seed {given.seed}"
            kept = {"command": command, "rows": rows}
            given.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
