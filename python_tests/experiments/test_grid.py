"""Grids of rates and seeds train together and give the runs that are trained alone."""

import json

import pytest
import torch
from experiments.test_stacked_descent import SIZES, equal, teacher

from catapult_ext import models
from catapult_ext._store import RunFolder
from catapult_ext.experiments import stacked_chain
from catapult_ext.experiments.descent import train
from catapult_ext.experiments.reproduce import grid
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.training import Recipe

CS = (0.5, 2.5, 1000.0)
FULL = Recipe(steps=6, tol=1e-7, batch_stats=None, probe_every=2)
BATCHES = Recipe(steps=6, tol=1e-7, batch=7)


def network(seed):
    return models.fully_connected(*SIZES, width=16, depth=2, seed=seed, dtype=torch.float64)


def problem():
    return grid.Problem(network, teacher(), "half_mse")


def grown(record):
    """Numbers of a record but the bounds of errors, as nested lists."""
    rows = [{k: v for k, v in row.items() if k != "lambda_error"} for row in record["probes"]]
    held = record | {"probes": [list(map(list, row.items())) for row in rows]}
    return [list(pair) for pair in held.items()]


@pytest.mark.parametrize(("recipe", "count"), [(FULL, 2), (BATCHES, 3)], ids=["full", "batches"])
def test_a_grid_is_its_runs_alone(recipe, count, monkeypatch):
    """Nine runs of full batches are two chunks, of batches one for each seed."""
    asked = problem()
    context = Context()
    chunks = []
    together = context.compute_together
    monkeypatch.setattr(
        context, "compute_together", lambda names, job: chunks.append(names) or together(names, job)
    )
    found = grid.run_grid(context, "g", asked, CS, 3, recipe)
    assert len(chunks) == count
    assert sum(map(len, chunks)) == 9
    for record in found:
        start = asked.start(recipe, record["seed"])
        eta = start.eta(record["c"], recipe)
        alone = train(start, eta, recipe, seed=record["seed"])
        alone = {"seed": record["seed"], **alone, "c": record["c"], "squared": True}
        assert equal(grown(alone), grown(record), 1e-5)


def test_an_interrupted_grid_ends_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setitem(stacked_chain.MOST, "cpu", 4)  # chunks that span two seeds
    parts = tmp_path / "run" / "parts"
    for lost in ([], ["g_s0_c1000", "g_s1_c2.5"]):
        held = {p.name: p.read_bytes() for p in parts.glob("*.json")} if lost else {}
        for name in lost:
            (parts / f"{name}.json").unlink()
        with RunFolder(tmp_path / "run", {"experiment": "g"}) as folder:
            grid.run_grid(Context(folder), "g", problem(), CS, 2, FULL)
        for name, content in held.items():
            assert json.loads((parts / name).read_bytes()) == json.loads(content)
    started = []
    monkeypatch.setattr(grid.Problem, "start", lambda *_: started.append(1))
    with RunFolder(tmp_path / "run", {"experiment": "g"}) as folder:
        assert len(grid.run_grid(Context(folder), "g", problem(), CS, 2, FULL)) == 6
    assert not started
