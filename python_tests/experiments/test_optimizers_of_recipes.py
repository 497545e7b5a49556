"""Recipes with optimizers of torch."""

from __future__ import annotations

import functools

import pytest
import torch

from catapult_ext import data, models
from catapult_ext.experiments.descent import Recipe, descend, start

OPTIMIZERS = {
    "adam": functools.partial(torch.optim.Adam, betas=(0.8, 0.9)),
    "adamw": torch.optim.AdamW,
    "nesterov": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}


def problem(recipe):
    found = data.teacher(12, 4, in_features=5, out_features=2, seed=1, dtype=torch.float64)
    net = models.fully_connected(5, 2, width=8, depth=2, seed=2, dtype=torch.float64)
    return start(net, found, "half_mse", recipe)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_runs_are_those_of_a_plain_loop(name):
    recipe = Recipe(6, optimizer=lambda p, eta: OPTIMIZERS[name](p, lr=eta), probes=False)
    begun = problem(recipe)
    found = descend(begun, 0.03, recipe)
    again = descend(begun, 0.03, recipe)  # no state of the optimizer is left
    net, (x, y) = begun.model, begun.data.train
    net.load_state_dict(begun.state)
    optimizer = OPTIMIZERS[name](net.parameters(), lr=0.03)
    wanted = []
    for _ in range(7):
        value = (net(x) - y).square().sum() / 24
        wanted.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert found.losses == pytest.approx(wanted, rel=1e-12)
    assert again.losses == found.losses


def test_the_last_stage_has_its_rate():
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    recipe = Recipe(
        2, optimizer=lambda p, eta: Watched(p, lr=eta), final_rate=0.5, final_steps=3, probes=False
    )
    descend(problem(recipe), 0.1, recipe)
    assert seen == [0.1, 0.1, 0.5, 0.5, 0.5]


def test_heavy_ball_is_that_of_torch():
    own = Recipe(8, momentum=0.9, probes=False)
    other = Recipe(
        8, optimizer=lambda p, eta: torch.optim.SGD(p, lr=eta, momentum=0.9), probes=False
    )
    one, two = (descend(problem(recipe), 0.05, recipe).losses for recipe in (own, other))
    assert one == pytest.approx(two, rel=1e-12)


def test_wrong_optimizers():
    with pytest.raises(ValueError, match="momentum and l2 must be 0 beside optimizer"):
        Recipe(1, momentum=0.9, optimizer=lambda p, eta: torch.optim.SGD(p, lr=eta))
    recipe = Recipe(1, optimizer=lambda p, eta: "sgd")
    with pytest.raises(TypeError, match=r"optimizer must return a torch.optim.Optimizer, got str"):
        descend(problem(recipe), 0.1, recipe)
