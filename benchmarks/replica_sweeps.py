"""Sweeps of stacked nets beside an earlier build: `python -m benchmarks.replica_sweeps WORK`.

``--earlier FOLDER`` holds the package of the earlier build, which does the same work in processes
of its own.  ``sweep``: 32 rates x 4 seeds of an MLP 64-128x3-10 on 512 digits, 200 steps, curvature
every 10 steps, each build's ``cx.sweep`` on two processes, in turns.  ``plane``: the runs of
``reproduce phase-plane`` over width and c, against every tenth of them made one by one by the
earlier build, scaled up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "replica-sweeps.json"
HERE = Path(__file__).resolve().parent.parent
RATES = tuple(round(0.5 * 32 ** (i / 31), 4) for i in range(32))  # 0.5 to 16
STEPS, EVERY, TOL_END = 200, 10, 1e-2


def problem(width: int, seed: int) -> tuple[Any, Any]:
    """Network and digits, by calls that both builds have."""
    from catapult_ext import data, models

    return models.fully_connected(64, 10, width=width, depth=3, seed=seed), data.digits(train=512)


def every_ten_steps() -> None:
    """Both builds probe at multiples of ten: the earlier one has no setting for it."""
    import importlib

    for name in ("sweep", "training", "descent"):
        try:
            module: Any = importlib.import_module(f"catapult_ext.experiments.{name}")
        except ImportError:
            continue
        if hasattr(module, "probe_schedule"):
            module.probe_schedule = lambda steps, factor: tuple(range(0, steps + 1, EVERY))
    try:
        module = importlib.import_module("catapult_ext.training.recipe")
    except ImportError:
        return
    module.probe_schedule = lambda steps, factor: tuple(range(0, steps + 1, EVERY))


def one_rank(rank: int, store: str, out: str, seed: int) -> None:
    """One of two processes of a sweep; tells its processor time."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    every_ten_steps()
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    import catapult_ext as cx

    model, digits = problem(128, seed)
    began = time.process_time(), time.perf_counter()
    found = cx.sweep(model, digits, c=RATES, steps=STEPS, out=out, group="world")
    took = time.process_time() - began[0], time.perf_counter() - began[1]
    keys = ("c", "lambda", "lambda_error")
    told = {
        "processor": took[0],
        "wall": took[1],
        "phases": found.phases,
        "records": [{key: record[key] for key in keys} for record in found.records],
    }
    Path(f"{out}-{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


def sweep_of(build: Path, seed: int) -> dict[str, Any]:
    """One sweep by a build on two processes."""
    with tempfile.TemporaryDirectory() as folder:
        out, store = f"{folder}/run", f"{folder}/store"
        ranks = [_process(build, "rank", str(rank), store, out, str(seed)) for rank in range(2)]
        for process in ranks:
            if process.wait():
                raise SystemExit("a rank failed")
        told = [json.loads(Path(f"{out}-{rank}.json").read_text()) for rank in range(2)]
    return {
        **told[0],
        "processor": sum(one["processor"] for one in told),
        "wall": max(one["wall"] for one in told),
    }


def _process(build: Path, *words: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(build)}
    return subprocess.Popen([sys.executable, __file__, *words], env=environment)


def compare_sweeps(earlier: Path) -> Iterator[dict[str, Any]]:
    """Times of both builds, seed by seed in turns, and how their results agree; as it comes."""
    seeds = []
    for seed in range(4):
        then, now = sweep_of(earlier, seed), sweep_of(HERE, seed)
        seeds.append(
            {
                "seed": seed,
                "earlier": {key: then[key] for key in ("processor", "wall")},
                "ours": {key: now[key] for key in ("processor", "wall")},
                **agreement(then, now),
            }
        )
        print(json.dumps(seeds[-1]), flush=True)
        yield {
            "work": f"{len(RATES)} rates x {len(seeds)} seeds, MLP 64-128x3-10, 512 digits, "
            f"{STEPS} steps, curvature every {EVERY} steps, two processes of one thread",
            "seeds": seeds,
            **ratios(seeds),
        }


def ratios(pairs: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the pairs of the earlier build's time over ours."""
    return {
        f"{key}_ratio": statistics.median(p["earlier"][key] / p["ours"][key] for p in pairs)
        for key in ("processor", "wall")
    }


def agreement(then: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Whether the phases are the same, and how far eigenvalues lie apart in units of their errors.

    Training in float32 takes other roundings, which a catapult multiplies; what remains apart from
    the errors of the eigenvalues is counted.
    """
    apart = []
    for a, b in zip(then["records"], now["records"], strict=True):
        for x, y, e, f in zip(
            a["lambda"], b["lambda"], a["lambda_error"], b["lambda_error"], strict=False
        ):
            if x is not None and y is not None:
                apart.append(abs(x - y) / (e + f))
    return {
        "same_phases": then["phases"] == now["phases"],
        "eigenvalues": len(apart),
        "within_their_errors": sum(value <= 1 for value in apart),
        "median_distance_over_errors": statistics.median(apart),
    }


def one_by_one(tenth: int) -> None:
    """Every tenth run of the plane by the earlier build, one after the other; tells times."""
    import importlib

    import torch

    torch.set_num_threads(1)
    from catapult_ext.experiments import descent

    for name in ("training", "descent"):
        module: Any = importlib.import_module(f"catapult_ext.experiments.{name}")
        if hasattr(module, "probe_schedule"):
            module.probe_schedule = lambda steps, factor: (0, steps)
    settings = json.loads(sys.stdin.read())
    recipe = descent.Recipe(steps=settings["steps"], tol=TOL_END)
    starts: list[float] = []
    runs: list[float] = []
    phases = {}
    count = 0
    for width in settings["widths"]:
        for seed in range(settings["seeds"]):
            chosen = [c for i, c in enumerate(settings["c"]) if (count + i) % 10 == tenth]
            count += len(settings["c"])
            model, digits = problem(width, seed)
            began = time.process_time()
            begun = descent.start(model, digits, "half_mse_mean", recipe)
            starts.append(time.process_time() - began)
            for c in chosen:
                began = time.process_time()
                record = descent.train(begun, c / begun.lambda0, recipe, seed=seed)
                runs.append(time.process_time() - began)
                phases[f"{width} {seed} {c:g}"] = record["diverged_at"] >= 0
    print(json.dumps({"starts": starts, "runs": runs, "diverged": phases}))


def compare_planes(earlier: Path, out: Path) -> dict[str, Any]:
    """Processor time of the plane, and of a tenth of its runs by the earlier build, scaled up.

    A finished folder ``out`` is read, an unfinished one completed.
    """
    from catapult_ext.experiments import reproduce as rp
    from catapult_ext.experiments.reproduce.phase_plane import Settings

    s = Settings()
    asked = {"widths": s.widths, "c": s.c, "seeds": s.seeds, "steps": s.steps}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(earlier)}
    said = subprocess.run(
        [sys.executable, __file__, "one-by-one", "3"],
        input=json.dumps(asked),
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    then = json.loads(said.stdout.splitlines()[-1])
    rp.reproduce("phase-plane", workers=2, out=out)
    timing = json.loads((out / "timing.json").read_text())
    parts = [part for part in timing["seconds"] if part.startswith("width_")]
    took = {
        key: sum(timing[key][part] for part in parts) for key in ("seconds", "processor_seconds")
    }
    same = total = 0
    for part in parts:
        record = json.loads((out / "parts" / f"{part}.json").read_text())["record"]
        for run in record["runs"]:
            held = then["diverged"].get(f"{record['value']} {record['seed']} {run['c']:g}")
            total += held is not None
            same += held == (run["diverged_at"] >= 0)
    runs = len(s.widths) * len(s.c) * s.seeds
    scaled = sum(then["starts"]) + sum(then["runs"]) * runs / len(then["runs"])
    ratio = scaled / took["processor_seconds"]
    return {
        "work": f"{runs} runs: {len(s.c)} rates x {len(s.widths)} widths 16 to 256 x {s.seeds} "
        f"seeds, three hidden ReLU layers, 512 digits, {s.steps} steps, GGN to {TOL_END:g} at the "
        "end and of each initialisation",
        "earlier_runs_measured": len(then["runs"]),
        "earlier_processor_seconds_scaled": scaled,
        "ours_processor_seconds": took["processor_seconds"],
        "ours_minutes_on_two_loaded_cores": took["seconds"] / 2 / 60,
        "processor_ratio": ratio,
        "ratio_of_two_processes_to_one_by_one": 2 * ratio,
        "same_divergence": f"{same} of {total}",
    }


def processor() -> str:
    """Name of the processor, and its cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    return f"{name}, {os.cpu_count()} cores"


def main() -> None:
    """Run what the command line names and write it into the results."""
    if sys.argv[1] == "rank":
        one_rank(int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
        return
    if sys.argv[1] == "one-by-one":
        one_by_one(int(sys.argv[2]))
        return
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("what", choices=("sweep", "plane"))
    asked.add_argument("--earlier", type=Path, required=True, help="folder of the earlier package")
    asked.add_argument("--out", type=Path, help="run folder of the plane")
    asked.add_argument("--json", type=Path, default=RESULTS)
    given = asked.parse_args()
    told = {"processor_name": processor(), "load_at_start": os.getloadavg()[0]}
    if given.what == "sweep":
        for found in compare_sweeps(given.earlier):
            _keep(given.json, given.what, found | told)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = compare_planes(given.earlier, given.out or Path(folder) / "run")
        _keep(given.json, given.what, found | told)
    print(json.dumps({k: v for k, v in found.items() if k != "seeds"}, indent=1))


def _keep(path: Path, name: str, found: dict[str, Any]) -> None:
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(held | {name: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
