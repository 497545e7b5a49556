"""Judge the advice: `python -m benchmarks.largest_rates.check --seeds 10 11 12 --json FILE`.

For each net and seed: the largest working rate by `scan.py` (or from an earlier run of it, with
`--scanned`), what `learning_rate_window` says, and whether the rate that it names trains.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import benchmarks.installed_first  # noqa: F401
import catapult_ext as cx
from benchmarks.largest_rates.nets import NETS, Net
from benchmarks.largest_rates.scan import largest, scan, train

BURN_IN = 30  # steps of Adam at 1e-3, after which its curvature is taken
RATE = {"SGD": 0.1, "momentum": 0.1, "Adam": 1e-3}


class Flat(nn.Module):
    """Logits of all positions in one row: (N, T * V)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """(N, T) to (N, T * V)."""
        return self.body(x).flatten(1)


def next_token(f: Tensor, y: Tensor) -> Tensor:
    """Cross entropy over all positions of :class:`Flat`."""
    return F.cross_entropy(f.view(y.numel(), -1), y.flatten())


def advised(net: Net, seed: int) -> cx.LearningRateWindow:
    """What the library says about a net at its start."""
    model = net.build(seed)
    flat = net.shape is None
    given = Flat(model) if flat else model
    return cx.learning_rate_window(
        given,
        next_token if flat else net.loss,
        net.data(),
        net.steps(given, RATE[net.optimizer]),
        burn_in=BURN_IN if net.optimizer == "Adam" else 0,
    )


def row(name: str, seed: int, truth: float) -> dict[str, Any]:
    """One net and seed."""
    net = NETS[name]
    window = advised(net, seed)
    assert window.start is not None
    assert window.eta_max is not None
    low, high = window.eta_max
    return {
        "net": name,
        "seed": seed,
        "largest": truth,
        "eta_crit": window.eta_crit,
        "eta_c": window.eta_c,
        "start": window.start,
        "start_trains": train(net, net.build(seed), window.start).trains(),
        "start_share": window.start / truth,
        "range": [low, high],
        "holds": low <= truth <= high,
        "steps": window.evidence["trial_steps"] + window.evidence["burn_in"],
        "trials": len(window.evidence["trials"]),
    }


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The counts: a net passes with all of its seeds."""
    names = list(dict.fromkeys(r["net"] for r in rows))

    def every(test: Any) -> int:
        return sum(all(test(r) for r in rows if r["net"] == name) for name in names)

    return {
        "nets": len(names),
        "start_trains": every(lambda r: r["start_trains"]),
        "start_at_least_a_fifth": every(lambda r: r["start_share"] >= 0.2),
        "range_holds": every(lambda r: r["holds"]),
        "range_holds_rows": f"{sum(r['holds'] for r in rows)} of {len(rows)}",
        "widest_range": max(r["range"][1] / r["range"][0] for r in rows),
        "steps": [min(r["steps"] for r in rows), max(r["steps"] for r in rows)],
    }


def main() -> None:
    """Print the rows and the verdict; keep them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--seeds", nargs="+", type=int, required=True)
    parser.add_argument("--scanned", type=Path, help="JSON of scan.py")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(given.scanned.read_text()) if given.scanned else []
    truths = {(r["net"], r["seed"]): r["largest"] for r in known}
    rows = []
    for name in given.nets:
        for seed in given.seeds:
            truth = truths.get((name, seed)) or largest(scan(NETS[name], seed))
            found = row(name, seed, truth)
            rows.append(found)
            print(
                f"{name:22s} seed {seed:3d}  largest {truth:8.4g}  start {found['start']:8.4g}"
                f" ({'trains' if found['start_trains'] else 'FAILS'})  range "
                f"{found['range'][0]:.4g} to {found['range'][1]:.4g}"
                f" ({'holds' if found['holds'] else 'MISSES'})  {found['steps']} steps",
                flush=True,
            )
    kept = {"command": "python -m benchmarks.largest_rates.check --seeds ", "rows": rows}
    kept["command"] += " ".join(map(str, given.seeds))
    kept["verdict"] = verdict(rows)
    print(json.dumps(kept["verdict"], indent=1))
    if given.json:
        given.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
