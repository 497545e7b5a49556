"""The kernel of a WRN-16-1 beside torch.func's: `python -m benchmarks.conv_kernels`.

From a model that was seen before to its kernel (``fresh``), and the kernel of a frozen model
(``frozen``); torch.func's is `vmap(jacrev)` and one matrix product for each parameter.  Every side
runs in a process of its own, in turns, on one thread; ``again`` is a second process of this build.
``CATAPULT_EARLIER=FOLDER`` names a folder with an earlier build.  Times are processor times.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

_SIDE = "--side"
_SIDES = ("ours", "again", "earlier", "torch.func")


def serve(side: str, samples: int) -> None:
    """Measure the calls whose names come on the standard input."""
    import torch

    torch.set_num_threads(1)
    sys.path.append(str(Path(__file__).parent))
    from bench_dense_kernels import OUTPUTS, contracted, reverse

    import catapult_ext as cx

    torch.manual_seed(0)
    model = cx.models.wide_resnet(16, 1, OUTPUTS).eval()
    x = torch.randn(samples, 3, 32, 32)
    kernel = cx.NTK(model, x)
    calls = {
        "fresh": lambda: cx.NTK(model, x).dense(),
        "frozen": kernel.dense,
        "torch.func": lambda: contracted(model, x, reverse),
    }
    if side != "torch.func":
        exact = calls["torch.func"]()
        assert (kernel.dense() - exact).abs().max() <= 1e-5 * exact.abs().max()
    for line in sys.stdin:
        began = time.process_time()
        calls[line.strip()]()
        print(time.process_time() - began, flush=True)


def measured(samples: int, rounds: int) -> dict[str, object]:
    """Medians of interleaved rounds, and how many times faster than the other sides ours is."""
    from benchmarks.real_networks import Worker

    names = [s for s in _SIDES if s != "earlier" or "CATAPULT_EARLIER" in os.environ]
    folders = {"earlier": os.environ.get("CATAPULT_EARLIER")}
    sides = {
        name: Worker(__file__, [_SIDE, name, str(samples)], folders.get(name)) for name in names
    }
    asked = {name: ["torch.func" if name == "torch.func" else "fresh"] for name in names}
    asked["ours"].append("frozen")
    times: dict[str, list[float]] = {}
    for round_ in range(rounds + 1):
        for name, side in sides.items():
            for call in asked[name]:
                took = side(call)
                if round_:  # the first one warms up
                    key = name if call in (name, "fresh") else f"{name}, {call}"
                    times.setdefault(key, []).append(took)
    for side in sides.values():
        side.close()
    found = {key: statistics.median(values) for key, values in times.items()}
    ratios = {
        ours: {key: found[key] / found[ours] for key in found if key != ours}
        for ours in ("ours", "ours, frozen")
    }
    return {"rounds": rounds, "processor seconds": found, "times as fast as": ratios}


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conv_kernels", description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {}
    for samples in options.samples:
        found[f"WRN-16-1, N = {samples}"] = measured(samples, options.rounds)
        print(json.dumps(found, indent=1), flush=True)
    if options.json is None:
        return
    from benchmarks.harness import machine

    record = json.loads(options.json.read_text()) if options.json.exists() else {}
    record = {
        "command": "OMP_NUM_THREADS=1 CATAPULT_EARLIER=BUILD_OF_e769a22 "
        "python -m benchmarks.conv_kernels --json FILE",
        "machine": machine(),
        "benchmarks": {**record.get("benchmarks", {}), **found},
    }
    options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == [_SIDE]:
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        main()
