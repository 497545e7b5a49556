"""Sweeps of stacked nets beside an earlier build: `python -m benchmarks.replica_sweeps WORK`.

``--earlier FOLDER`` holds the package of the earlier build, which does the same work in processes
of its own, in turns.  ``sweep``: 32 rates x 4 seeds of an MLP 64-128x3-10 on 512 digits, 200 steps,
curvature every 10 steps, each build's ``cx.sweep`` on ``--ranks`` processes, two seeds a turn: the
earlier build takes one seed after the other, this one both in one call.  Then the eigenvalues of
every fourth run are compared with cold solves in float64 at the same parameters.  ``plane``: every
tenth row of ``reproduce phase-plane`` over width and c, beside its runs one by one.
"""

from __future__ import annotations

import argparse
import copy
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


def one_rank(rank: int, ranks: int, store: str, out: str, seeds: list[int]) -> None:
    """One of the processes of a sweep; tells its processor time."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    every_ten_steps()
    group = None
    if ranks > 1:
        group = "world"
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    import catapult_ext as cx

    nets = [problem(128, seed)[0] for seed in seeds]
    digits = problem(128, 0)[1]
    settings = {"c": RATES, "steps": STEPS, "group": group}
    began = time.process_time(), time.perf_counter()
    outs = [f"{out}-{i}" if ranks > 1 else None for i in range(len(nets))]  # reports take long
    if hasattr(cx.TopTracker, "keep"):  # a build that takes several nets
        found = list(cx.sweep(nets, digits, out=outs[0], **settings))
    else:
        found = [cx.sweep(n, digits, out=o, **settings) for n, o in zip(nets, outs, strict=True)]
    took = time.process_time() - began[0], time.perf_counter() - began[1]
    keys = ("c", "lambda", "lambda_error")
    told = {
        "processor": took[0],
        "wall": took[1],
        "phases": [one.phases for one in found],
        "records": [{key: r[key] for key in keys} for one in found for r in one.records],
    }
    Path(f"{out}-{rank}.json").write_text(json.dumps(told))
    if ranks > 1:
        dist.destroy_process_group()


def sweep_of(build: Path, ranks: int, seeds: list[int]) -> dict[str, Any]:
    """Sweeps of some seeds by a build."""
    with tempfile.TemporaryDirectory() as folder:
        out, store = f"{folder}/run", f"{folder}/store"
        words = [str(ranks), store, out, json.dumps(seeds)]
        processes = [_process(build, "rank", str(rank), *words) for rank in range(ranks)]
        for process in processes:
            if process.wait():
                raise SystemExit("a rank failed")
        told = [json.loads(Path(f"{out}-{rank}.json").read_text()) for rank in range(ranks)]
    return {
        **told[0],
        "processor": sum(one["processor"] for one in told),
        "wall": max(one["wall"] for one in told),
    }


def _process(build: Path, *words: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(build)}
    return subprocess.Popen([sys.executable, __file__, *words], env=environment)


def compare_sweeps(earlier: Path, ranks: int) -> Iterator[dict[str, Any]]:
    """Times of both builds, two seeds a turn, and how their results agree; as it comes."""
    turns = []
    for seeds in ([0, 1], [2, 3]):
        then, now = (sweep_of(build, ranks, seeds) for build in (earlier, HERE))
        turns.append(
            {
                "seeds": seeds,
                "earlier": {key: then[key] for key in ("processor", "wall")},
                "ours": {key: now[key] for key in ("processor", "wall")},
                **agreement(then, now),
            }
        )
        print(json.dumps(turns[-1]), flush=True)
        found = {
            "work": f"{len(RATES)} rates x {2 * len(turns)} seeds, MLP 64-128x3-10, 512 digits, "
            f"{STEPS} steps, curvature every {EVERY} steps; {ranks} process(es) of one thread",
            "seeds": turns,
            **ratios(turns),
        }
        yield found
    yield found | {"beside_cold_solves": beside_cold_solves()}


def beside_cold_solves() -> dict[str, Any]:
    """Eigenvalues of a sweep beside cold float64 solves at the parameters they were taken at."""
    import torch

    import catapult_ext as cx
    from catapult_ext.experiments import curvature

    torch.set_num_threads(1)
    apart: list[float] = []
    own = curvature.Followed.update

    def compared(self: Any, chain: Any, x: Any, y: Any, check: bool) -> Any:
        found = own(self, chain, x, y, check)
        state = {name: p.double() for name, p in chain.parameters.items()}
        stack: Any = (state, {}, copy.deepcopy(self.model).double())
        kernels = cx.NTK(stack, x.double())
        cold = cx.eigsh(kernels, tol=1e-8, confidence=0.999).eigenvalues[:, 0] / len(x)
        for (value, error, _), exact in zip(found, cold.tolist(), strict=True):
            apart.append(abs(value - exact) / error)
        return found

    curvature.Followed.update = compared  # type: ignore[method-assign]
    for seed in range(4):
        net, digits = problem(128, seed)
        cx.sweep(net, digits, c=RATES[seed::4], steps=STEPS, probe_every=EVERY)
    return {
        "eigenvalues": len(apart),
        "outside_their_errors": sum(value > 1 for value in apart),
        "largest_distance_over_error": max(apart),
    }


def ratios(pairs: list[dict[str, Any]]) -> dict[str, float]:
    """Sums over the turns of the earlier build's time over ours."""
    return {
        f"{key}_ratio": sum(p["earlier"][key] for p in pairs) / sum(p["ours"][key] for p in pairs)
        for key in ("processor", "wall")
    }


def agreement(then: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Whether the phases are the same, and how far eigenvalues lie apart in units of their errors.

    Training in float32 takes other roundings, which a catapult multiplies: what lies further apart
    than the errors is counted for runs below c = 2 and beyond.
    """
    apart: dict[bool, list[float]] = {False: [], True: []}
    for a, b in zip(then["records"], now["records"], strict=True):
        for x, y, e, f in zip(
            a["lambda"], b["lambda"], a["lambda_error"], b["lambda_error"], strict=False
        ):
            if x is not None and y is not None:
                apart[a["c"] < 2].append(abs(x - y) / (e + f))
    every = apart[True] + apart[False]
    return {
        "same_phases": then["phases"] == now["phases"],
        "eigenvalues": len(every),
        "within_their_errors": sum(value <= 1 for value in every),
        "median_distance_over_errors": statistics.median(every),
        "eigenvalues_below_c_2": len(apart[True]),
        "of_these_within_their_errors": sum(value <= 1 for value in apart[True]),
    }


def row_alone(width: int, seed: int) -> None:
    """One row of the plane by the earlier build, one run after the other; tells its times."""
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
    model, digits = problem(width, seed)
    began = time.process_time()
    begun = descent.start(model, digits, "half_mse_mean", recipe)
    made = [descent.train(begun, c / begun.lambda0, recipe, seed=seed) for c in settings["c"]]
    took = time.process_time() - began
    print(json.dumps({"processor": took, "diverged": [r["diverged_at"] >= 0 for r in made]}))


def row_together(width: int, seed: int) -> None:
    """One row of the plane as ``reproduce phase-plane`` makes it; tells its times."""
    import torch

    torch.set_num_threads(1)
    from catapult_ext.experiments.reproduce import phase_plane

    _, digits = problem(width, seed)
    began = time.process_time()
    made = phase_plane._row(phase_plane.Settings(), digits, "width", width, seed)
    took = time.process_time() - began
    lost = [run["diverged_at"] >= 0 for run in made["runs"]]
    print(json.dumps({"processor": took, "diverged": lost}))


def compare_planes(earlier: Path, out: Path | None) -> Iterator[dict[str, Any]]:
    """Every tenth row of the plane by both builds in turns; ``out`` tells how long all took."""
    from catapult_ext.experiments.reproduce.phase_plane import Settings

    s = Settings()
    asked = json.dumps({"c": s.c, "steps": s.steps})
    rows = [(width, seed) for width in s.widths for seed in range(s.seeds)]
    told = []
    for width, seed in rows[3::10]:
        pair: dict[str, Any] = {"width": width, "seed": seed}
        for name, build, word in (("earlier", earlier, "alone"), ("ours", HERE, "together")):
            said = subprocess.run(
                [sys.executable, __file__, word, str(width), str(seed)],
                input=asked,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(build)},
                check=True,
                capture_output=True,
                text=True,
            )
            pair[name] = json.loads(said.stdout.splitlines()[-1])
        same = zip(pair["earlier"].pop("diverged"), pair["ours"].pop("diverged"), strict=True)
        pair["same_divergence"] = sum(a == b for a, b in same)
        told.append(pair)
        print(json.dumps(pair), flush=True)
        sums = {name: sum(p[name]["processor"] for p in told) for name in ("earlier", "ours")}
        found = {
            "work": f"{len(told)} of {len(rows)} rows of {len(s.c)} rates: widths 16 to 256, three "
            f"hidden ReLU layers, 512 digits, {s.steps} steps, GGN at the start and, to "
            f"{TOL_END:g}, at the end; one thread",
            "rows": told,
            "processor_seconds": sums,
            "processor_ratio": sums["earlier"] / sums["ours"],
            "ratio_of_two_processes_to_one_by_one": 2 * sums["earlier"] / sums["ours"],
        }
        if out is not None:
            timing = json.loads((out / "timing.json").read_text())
            parts = [part for part in timing["seconds"] if part.startswith("width_")]
            found["whole_plane"] = {
                "runs": len(rows) * len(s.c),
                "minutes_on_two_cores": sum(timing["seconds"][p] for p in parts) / 2 / 60,
                "processor_seconds": sum(timing["processor_seconds"][p] for p in parts),
            }
        yield found


def processor() -> str:
    """Name of the processor, and its cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    return f"{name}, {os.cpu_count()} cores"


def main() -> None:
    """Run what the command line names and write it into the results."""
    if sys.argv[1] == "rank":
        rank, ranks, store, out, seeds = sys.argv[2:]
        one_rank(int(rank), int(ranks), store, out, json.loads(seeds))
        return
    if sys.argv[1] in ("alone", "together"):
        row = row_alone if sys.argv[1] == "alone" else row_together
        row(int(sys.argv[2]), int(sys.argv[3]))
        return
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("what", choices=("sweep", "plane"))
    asked.add_argument("--earlier", type=Path, required=True, help="folder of the earlier package")
    asked.add_argument("--out", type=Path, help="finished run folder of the whole plane")
    asked.add_argument("--ranks", type=int, default=2, help="processes of a sweep")
    asked.add_argument("--json", type=Path, default=RESULTS)
    given = asked.parse_args()
    told = {"processor_name": processor(), "load_at_start": os.getloadavg()[0]}
    sweeps = given.what == "sweep"
    made = (
        compare_sweeps(given.earlier, given.ranks)
        if sweeps
        else compare_planes(given.earlier, given.out)
    )
    for found in made:
        _keep(given.json, given.what, found | told)
    print(json.dumps({k: v for k, v in found.items() if k not in ("seeds", "rows")}, indent=1))


def _keep(path: Path, name: str, found: dict[str, Any]) -> None:
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(held | {name: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
