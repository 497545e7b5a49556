"""Runs of several starts as one program, and what happens where memory does not suffice."""

import pytest
import torch
from experiments.test_stacked_descent import NETS, SIZES, equal, numbers, teacher

from catapult_ext import models
from catapult_ext.experiments.descent import descend
from catapult_ext.experiments.stacked_chain import StackedChain
from catapult_ext.experiments.stacked_descent import chunks, descend_all, descend_runs
from catapult_ext.experiments.start import start
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
