"""The training run of the paper's experiments, against hand-written loops."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from catapult_ext import data, models
from catapult_ext.experiments.descent import Recipe, start, train

F64 = torch.float64


@pytest.fixture(scope="module")
def digits():
    return data.digits(train=24, test=20, dtype=F64)


@pytest.fixture(scope="module")
def net():
    return models.build("fc", (64,), 10, width=12, depth=2, seed=0, dtype=F64)


def by_hand(net, d, eta, steps, momentum=0.0, l2=0.0, rates=None):
    """Full-batch heavy ball on half_mse plus l2/2 |theta|^2; losses without the penalty."""
    net = copy.deepcopy(net)
    optimiser = torch.optim.SGD(net.parameters(), lr=eta, momentum=momentum, weight_decay=l2)
    losses = []
    for step in range(steps + 1):
        if rates is not None and step < steps:
            optimiser.param_groups[0]["lr"] = rates[step]
        optimiser.zero_grad()
        loss = (net(d.x_train) - d.y_train).square().sum() / (2 * len(d.x_train))
        losses.append(loss.item())
        loss.backward()
        if step < steps:
            optimiser.step()
    return losses, net


def test_momentum_l2_and_last_stage_are_those_of_torch(net, digits):
    recipe = Recipe(steps=6, momentum=0.5, l2=0.01, final_rate=0.01, final_steps=3)
    problem = start(net, digits, "half_mse", recipe)
    eta = problem.eta(1.5, recipe)
    assert eta == pytest.approx(1.5 / (problem.lambda0 + 0.01))
    record = train(problem, eta, recipe)
    expected, _ = by_hand(net, digits, eta, 9, 0.5, 0.01, [eta] * 6 + [0.01] * 3)
    assert record["loss"] == pytest.approx(expected, rel=1e-10)
    marks = [row["mark"] for row in record["probes"]]
    assert marks[-2:] == ["end", "final"]
    assert [row["step"] for row in record["probes"]] == [0, 1, 2, 4, 6, 9]
    again = train(problem, eta, recipe)
    assert again == record  # no state carries over from one run to the next


def test_lambda_is_that_of_the_dense_gauss_newton_matrix(net, digits):
    recipe = Recipe(steps=4, tol=1e-6)
    problem = start(net, digits, "half_mse", recipe)
    eta = problem.eta(1.0, recipe)
    record = train(problem, eta, recipe)
    _, moved = by_hand(net, digits, eta, 4)
    for model, value in ((net, problem.lambda0), (moved, record["probes"][-1]["lambda"])):
        outputs = model(digits.x_train).flatten()
        rows = [
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(f, list(model.parameters()), retain_graph=True)
                ]
            )
            for f in outputs
        ]
        jacobian = torch.stack(rows)
        top = torch.linalg.matrix_norm(jacobian, 2).square().item() / len(digits.x_train)
        assert value == pytest.approx(top, rel=1e-5)


def test_physical_time_sets_the_number_of_steps_and_the_reading(net, digits):
    recipe = Recipe(time=3.0, probe_times=(1.0,))
    problem = start(net, digits, "half_mse", recipe)
    for eta, steps, read in ((0.1, 30, 10), (0.07, 43, 15), (5.0, 1, 1)):
        assert recipe.steps_at(eta) == steps
        assert recipe.probe_steps(eta)[read] in {"time", "end"}
    record = train(problem, 0.1, recipe)
    assert record["steps"] == 30
    row = next(r for r in record["probes"] if r["mark"] == "time")
    assert (row["step"], row["time"]) == (10, pytest.approx(1.0))


def test_batches_cover_an_epoch_without_repetition_and_follow_the_seed(net, digits):
    seen = []

    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            if self.training:
                seen.append(x[:, 20].clone())
            return self.net(x)

    recipe = Recipe(steps=5, batch=8, probe_factor=100.0)
    problem = start(Recorder(), digits, "half_mse", recipe)
    first = train(problem, 0.01, recipe, seed=3)
    epoch = torch.cat(seen[:3]).sort().values
    assert torch.equal(epoch, digits.x_train[:, 20].sort().values)
    assert train(problem, 0.01, recipe, seed=3)["loss"] == first["loss"]
    assert train(problem, 0.01, recipe, seed=4)["loss"] != first["loss"]


def test_divergence_stops_the_run_and_leaves_finite_numbers(net, digits):
    recipe = Recipe(steps=50, top=10)
    problem = start(net, digits, "half_mse", recipe)
    record = train(problem, problem.eta(500.0, recipe), recipe)
    assert 0 < record["diverged_at"] < 10
    assert 0 < record["rose_at"] <= record["diverged_at"]
    assert record["probes"][-1]["mark"] == "schedule"
    assert len(record["loss"]) == record["diverged_at"] + 1
    lazy = train(problem, problem.eta(1.0, recipe), recipe)
    assert (lazy["diverged_at"], lazy["rose_at"], lazy["loss_peak_at"]) == (-1, -1, 0)


def test_cross_entropy_batch_norm_and_augmentation_run_together():
    d = data.digits(train=16, test=8, flatten=False)
    net = models.build("wrn-10-1", (1, 8, 8), 10, seed=0)
    recipe = Recipe(steps=3, batch=8, augment=data.Augment(1), probe_samples=8)
    problem = start(net, d, nn.CrossEntropyLoss(), recipe)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    record = train(problem, 0.05, recipe)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert record["loss0"] == pytest.approx(2.3, abs=1.5)
    assert 0 <= record["probes"][-1]["test_accuracy"] <= 1
    assert record["probes"][-1]["lambda"] > 0


def test_long_curves_are_thinned_but_keep_start_peak_and_end(net, digits):
    recipe = Recipe(steps=400, probe_factor=1000.0)
    problem = start(net, digits, "half_mse", recipe)
    record = train(problem, problem.eta(0.5, recipe), recipe)
    steps = record["loss_steps"]
    assert steps[:101] == list(range(101))
    assert steps[-1] == 400
    assert len(steps) < 190
    assert record["loss_peak"] == record["loss0"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give either steps or time"),
        ({"steps": 3, "time": 1.0}, "give either steps or time"),
        ({"time": -1.0}, "time must be finite and > 0, got -1.0"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"steps": 3, "momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"steps": 3, "l2": -1.0}, "l2 must be >= 0"),
        ({"steps": 3, "final_steps": 3}, "final_rate and final_steps go together"),
        ({"steps": 3, "batch": 2, "top": 1}, "top needs full-batch steps"),
    ],
)
def test_bad_recipes(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)
