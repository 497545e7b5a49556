"""Products shared out over gloo ranks on one machine: `python -m benchmarks.ranks`.

One thread per rank. Prints milliseconds per product on one and on two ranks, their ratio and the
bytes all-reduced per product beside the formula; docs/scaling.md holds a run's table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES = ("mlp", "resnet20")


def problem(case: str) -> tuple[Any, Any, Any]:
    """Model, inputs and targets of a case, the same on every rank."""
    import torch

    from catapult_ext import models

    torch.manual_seed(0)
    if case == "mlp":
        return (
            models.fully_connected(784, 10, width=1024, depth=3),
            torch.randn(2048, 784),
            torch.randn(2048, 10),
        )
    return models.resnet(20, 10).eval(), torch.randn(128, 3, 32, 32), torch.randn(128, 10)


def rank_main(case: str, rank: int, size: int, store: str, repeats: int) -> None:
    """Time products of this rank's shard together with the others; rank 0 prints JSON."""
    import torch
    import torch.distributed as dist

    import catapult_ext as cx

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=120),
    )
    model, x, y = problem(case)
    mine = slice(rank * len(x) // size, (rank + 1) * len(x) // size)
    operator = cx.StreamedGGN(model, "half_mse", (x[mine], y[mine]), group="world")
    v = torch.randn(operator.shape[0], 1, generator=torch.Generator().manual_seed(1))
    operator @ v
    sent, times = dict(operator.group.bytes), []
    for _ in range(repeats):
        dist.barrier()
        start = time.perf_counter()
        operator @ v
        times.append(time.perf_counter() - start)
    if rank == 0:
        reduced = (operator.group.bytes["all_reduce"] - sent["all_reduce"]) / repeats
        facts = {
            "seconds": statistics.median(times),
            "all_reduce": reduced,
            "formula": 0 if size == 1 else 4 * operator.shape[0],
        }
        print(json.dumps(facts), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def measured(case: str, size: int, repeats: int) -> dict[str, float]:
    """Facts of rank 0 of ``size`` processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        common = [str(size), str(Path(folder) / "store"), str(repeats)]
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.ranks", "--rank", case, str(rank), *common],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        out = [process.communicate()[0] for process in ranks]
    if any(process.returncode for process in ranks):
        raise RuntimeError(f"benchmarks.ranks: {case} on {size} ranks failed")
    return json.loads(out[0].splitlines()[-1])


def main() -> None:
    """Alternate one and two ranks, three rounds; medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__)
    parser.add_argument("--rank", nargs=5, metavar=("CASE", "RANK", "SIZE", "STORE", "REPEATS"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=9, help="products in a round")
    options = parser.parse_args()
    if options.rank:
        case, rank, size, store, repeats = options.rank
        rank_main(case, int(rank), int(size), store, int(repeats))
        return
    print("| product | one rank, ms | two ranks, ms | ratio | all-reduced, bytes | 4 P |")
    print("|---|---|---|---|---|---|")
    for case in CASES:
        rounds = [
            [measured(case, size, options.repeats) for size in (1, 2)]
            for _ in range(options.rounds)
        ]
        one, two = (statistics.median(r[i]["seconds"] for r in rounds) for i in (0, 1))
        last = rounds[-1][1]
        print(
            f"| {case} | {1e3 * one:.1f} | {1e3 * two:.1f} | {one / two:.2f} "
            f"| {last['all_reduce']:.0f} | {last['formula']} |"
        )


if __name__ == "__main__":
    main()
