"""Runs of several starts as one program, and what happens where memory does not suffice."""

import importlib

import pytest
import torch
from experiments.test_stacked_descent import NETS, SIZES, equal, numbers, teacher

from catapult_ext import models
from catapult_ext.experiments import sweep
from catapult_ext.experiments.descent import descend
from catapult_ext.experiments.stacked_chain import StackedChain
from catapult_ext.experiments.stacked_descent import chunks, descend_all, descend_runs
from catapult_ext.experiments.start import start
from catapult_ext.runs import RunFolderError
from catapult_ext.training import Recipe


def seeds(recipe, count=3):
    nets = [
        models.fully_connected(*SIZES, width=16, depth=2, seed=s, dtype=torch.float64)
        for s in range(count)
    ]
    found = teacher()
    return [start(net, found, "half_mse", recipe) for net in nets]


@pytest.mark.parametrize("top", [0, 2])
def test_seeds_train_together(top):
    """Each with its own curvature, cut and projection; diverged runs leave the stack."""
    recipe = Recipe(steps=9, tol=1e-7, batch_stats=None, top=top, probe_every=3)
    starts = seeds(recipe)
    runs = [(p, c / p.lambda0) for p in starts for c in (0.7, 1000.0, 2.5)]
    assert chunks(starts[0], len(runs), recipe) == [[*range(8)], [8]]
    together = descend_runs(runs, recipe)
    for (problem, eta), found in zip(runs, together, strict=True):
        assert equal(numbers(descend(problem, eta, recipe)), numbers(found), 1e-5)
    assert [run.diverged_at >= 0 for run in together] == [False, True, False] * 3


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 1 byte")],
    ids=["device", "host"],
)
def test_a_chunk_that_does_not_fit_is_halved_once(error, monkeypatch):
    recipe = Recipe(steps=6, batch_stats=None, top=1, probe_every=2)
    problem = start(NETS["relu"](), teacher(), "half_mse", recipe)
    etas = [c / problem.lambda0 for c in (0.5, 1.5, 3.0, 1000.0, 2.5)]
    whole = descend_all(problem, etas, recipe)
    forward, fits = StackedChain.forward, 3

    def limited(chain, x):
        if len(chain) > fits:
            raise error
        return forward(chain, x)

    monkeypatch.setattr(StackedChain, "forward", limited)
    with pytest.warns(RuntimeWarning, match="5 runs do not fit into memory together, 3 at a time"):
        halves = descend_all(problem, etas, recipe)
    for one, other in zip(whole, halves, strict=True):
        assert equal(numbers(one), numbers(other), 1e-12)
    fits = 2
    with pytest.warns(RuntimeWarning, match="do not fit"), pytest.raises(type(error)):
        descend_all(problem, etas, recipe)


def test_another_error_halves_nothing(monkeypatch):
    recipe = Recipe(steps=2, batch_stats=None)
    problem = start(NETS["relu"](), teacher(), "half_mse", recipe)

    def broken(chain, x):
        raise RuntimeError("broken")

    monkeypatch.setattr(StackedChain, "forward", broken)
    with pytest.raises(RuntimeError, match="broken"):
        descend_all(problem, [0.1, 0.2], recipe)


SWEEP = {"c": [0.5, 2.5, 400.0], "steps": 6, "tol": 1e-7, "probe_every": 2}


def nets(count=3):
    return [
        models.fully_connected(*SIZES, width=16, depth=2, seed=s, dtype=torch.float64)
        for s in range(count)
    ]


def test_a_sweep_of_seeds_is_the_sweep_of_each():
    found = sweep(nets(), teacher(), **SWEEP)
    assert len(found) == 3
    assert [(row["seed"], row["c"]) for row in found.rows] == [
        (seed, c) for seed in range(3) for c in SWEEP["c"]
    ]
    for net, one in zip(nets(), found, strict=True):
        alone = sweep(net, teacher(), **SWEEP)
        assert one.phases == alone.phases
        for a, b in zip(alone.records, one.records, strict=True):
            assert a.keys() == b.keys()
            for key in a.keys() - {"lambda_error"}:
                assert equal(a[key], b[key], 1e-5), key
    assert found.table()[3]["seed"] == "1"
    assert "Over 3 seeds, lambda_0 = " in found.closing()
    rates = found.by_rate()
    assert [row["c"] for row in rates] == ["0.5", "2.5", "400"]
    for at, row in enumerate(rates):
        counts = {phase: 0 for one in found for phase in [one.phases[at]]}
        for one in found:
            counts[one.phases[at]] += 1
        assert sorted(row["phase"].split(", ")) == sorted(f"{p} {n}" for p, n in counts.items())
    ends = [one.rows[0]["loss_end"] for one in found]
    assert rates[0]["loss end"] == f"{min(ends):.2g}..{max(ends):.2g}"
    assert rates[2]["loss end"] == ""
    assert "3 models at 3 learning rates" in repr(found)


def test_an_interrupted_sweep_of_seeds_ends_with_the_same_bits(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    settings = SWEEP | {"out": tmp_path / "run", "linearised": True}
    first = sweep(nets(2), teacher(), **settings)
    parts = tmp_path / "run" / "parts"
    held = {p.name: p.read_bytes() for p in parts.glob("*.json")}
    assert len(held) == 2 * 5
    for lost in ("seed_0000_rate_0002", "seed_0001_rate_0000", "seed_0001_initial"):
        (parts / f"{lost}.json").unlink()
    module = importlib.import_module("catapult_ext.experiments.sweep")
    monkeypatch.setattr(module, "seed_figures", lambda *_: ({}, {}))  # drawing takes the longest
    again = sweep(nets(2), teacher(), **settings)
    assert {p.name: p.read_bytes() for p in parts.glob("*.json")} == held
    assert again.rows == first.rows
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {
        "summary.json",
        "summary.csv",
        "report.html",
        "fig_seed_0001.png",
        "fig_seeds.png",
    } <= names
    with pytest.raises(RunFolderError):
        sweep(nets(3), teacher(), **settings)


def test_models_of_a_sweep_must_be_alike():
    other = models.fully_connected(*SIZES, width=8, depth=2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"models\[1\].*weight"):
        sweep([*nets(1), other], teacher(), **SWEEP)
    broken = nets(1)[0]
    with torch.no_grad():
        broken[0].weight[0] = float("nan")
    with pytest.raises(ValueError, match=r"weight must be finite.*models\[1\]"):
        sweep([*nets(1), broken], teacher(), **SWEEP)
    with pytest.raises(ValueError, match="at least one model"):
        sweep([], teacher(), **SWEEP)
    with pytest.raises(TypeError, match=r"models\[1\] must be a torch.nn.Module"):
        sweep([*nets(1), 3], teacher(), **SWEEP)


def test_models_that_cannot_be_stacked_are_swept_one_after_the_other():
    def net(seed):
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.PReLU(), torch.nn.Linear(8, 3))

    pair = [net(seed).double() for seed in range(2)]
    found = sweep(pair, teacher(), **SWEEP)
    for one, model in zip(found, pair, strict=True):
        assert one.rows == sweep(model, teacher(), **SWEEP).rows
