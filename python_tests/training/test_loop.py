"""The training loop against torch's optimizers, and what a caller may do between two steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from catapult_ext import losses, training

LOSS = losses.resolve("half_mse")


def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double(), x, y


def by_optimizer(rates, **options):
    model, x, y = problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, **options)
    found = []
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = (model(x) - y).square().sum() / (2 * len(x))
        loss.backward()
        found.append(loss.item())
        optimizer.step()
    return found, model


@pytest.mark.parametrize(("momentum", "l2"), [(0.0, 0.0), (0.6, 0.0), (0.0, 0.1), (0.6, 0.1)])
def test_descent_is_that_of_torch(momentum, l2):
    model, x, y = problem()
    weights = training.moved(model)
    move = training.Descent(weights, 0.3, momentum, l2)
    seen = list(training.steps(model, weights, training.whole(x, y), LOSS, 5, move))
    expected, twin = by_optimizer([0.3] * 5, momentum=momentum, weight_decay=l2)
    assert [step.loss for step in seen[:-1]] == pytest.approx(expected, rel=1e-12)
    assert [step.number for step in seen] == [0, 1, 2, 3, 4, 5]
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-12)


def test_a_step_is_shown_before_it_is_made():
    model, x, y = problem()
    start = [p.clone() for p in model.parameters()]
    loop = training.full_batch(model, (x, y), LOSS, 2, 0.1)
    step = next(loop)
    assert all(torch.equal(p, s) for p, s in zip(model.parameters(), start, strict=True))
    assert torch.equal(step.outputs, model(x).detach())
    assert torch.allclose(step.residual, (model(x).detach() - y) / len(x), rtol=1e-14)
    assert not step.outputs.requires_grad
    next(loop)
    assert not any(torch.equal(p, s) for p, s in zip(model.parameters(), start, strict=True))


def test_the_caller_may_change_the_rate_and_stop():
    rates = [0.1, 0.2, 0.05]
    model, x, y = problem()
    weights = training.moved(model)
    move = training.Descent(weights, 0.0)
    found = []
    for step in training.steps(model, weights, training.whole(x, y), LOSS, 99, move):
        if step.number == len(rates):
            break
        found.append(step.loss)
        move.rate = rates[step.number]
    expected, twin = by_optimizer(rates)
    assert found == pytest.approx(expected, rel=1e-12)
    assert torch.allclose(model[0].weight, twin[0].weight, rtol=1e-12)


@pytest.mark.parametrize("rate", [1e3, math.inf])
def test_divergence_ends_the_loop_before_another_step(rate):
    model, x, y = problem()
    weights, moves = training.moved(model), []
    descent = training.Descent(weights, rate)

    def move(gradients):
        moves.append(len(gradients))
        descent(gradients)

    seen = list(training.steps(model, weights, training.whole(x, y), LOSS, 9, move, cut=50.0))
    assert [step.diverged for step in seen] == [False] * (len(seen) - 1) + [True]
    assert not seen[-1].loss <= 50.0
    assert len(moves) == len(seen) - 1 < 9


def test_weights_that_the_loss_does_not_need_stay():
    model, x, y = problem()
    model.register_parameter("spare", nn.Parameter(torch.ones(2)))
    model[0].bias.requires_grad_(False)
    held = model[0].bias.clone()
    list(training.full_batch(model, (x, y), LOSS, 3, 0.1, momentum=0.5))
    assert torch.equal(model.spare, torch.ones(2))
    assert torch.equal(model[0].bias, held)


def test_batches():
    x, y = torch.arange(10.0)[:, None], torch.arange(10.0)[:, None]
    loop = training.epochs(x, y, 4, seed=0)
    first = torch.cat([next(loop)[0] for _ in range(2)])
    assert len(first.unique()) == 8  # without replacement, the last two of the epoch are dropped
    assert all(torch.equal(a, b) for a, b in (next(loop) for _ in range(3)))
    assert torch.equal(next(training.epochs(x, y, 10, seed=0))[0], x)
    assert torch.equal(next(training.epochs(x, y, None, 0, lambda x, _: x + 1))[0], x + 1)
    whole = next(training.drawn(x, y, None, seed=0))[0]
    assert not torch.equal(whole, x)
    assert torch.equal(whole.sort(dim=0).values, x)
    assert len(next(training.drawn(x, y, 3, seed=0))[0].unique()) == 3
