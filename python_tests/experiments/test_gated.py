"""The net and its Taylor models of quadratic-models, against the toy companions' recursions."""

from __future__ import annotations

import math

import pytest
import torch

from catapult_ext import data, models
from catapult_ext.experiments.reproduce import gated
from catapult_ext.experiments.stacked import StackedDense
from catapult_ext.toy import neural_quadratic


def problem():
    draw = torch.Generator().manual_seed(3)
    U = torch.randn(20, 4, generator=draw, dtype=torch.float64)
    v = torch.randint(0, 2, (20,), generator=draw).double() * 2 - 1
    x = torch.randn(6, 4, generator=draw, dtype=torch.float64)
    y = torch.randn(6, generator=draw, dtype=torch.float64)
    return U, v, x, y, neural_quadratic(U, v, x, y)


def test_quadratic_model_follows_the_companion():
    U, v, x, y, companion = problem()
    eta = 2.6 / float(torch.linalg.eigvalsh(companion.kernel())[-1])
    expected = companion.run(eta, 15, curvature_every=0).loss
    model = gated._Model("quadratic", U, v)
    losses = [model.step(x / math.sqrt(4), y, eta) for _ in range(16)]
    assert losses == pytest.approx(expected.tolist(), rel=1e-9)


def test_linear_model_follows_its_kernel():
    U, v, x, y, companion = problem()
    kernel = companion.kernel()
    eta, residual = 0.9 / float(torch.linalg.eigvalsh(kernel)[-1]), companion.z
    model = gated._Model("linear", U, v)
    for _ in range(10):
        value = model.step(x / math.sqrt(4), y, eta)
        assert value == pytest.approx(float(residual.square().sum()) / 2, rel=1e-9)
        residual = residual - eta * (kernel @ residual)


def test_net_takes_the_gradient_step_of_torch():
    U, v, x, y, _ = problem()
    model = gated._Model("net", U, v)
    model.step(x / math.sqrt(4), y, 0.1)
    a, b = U.clone().requires_grad_(), v.clone().requires_grad_()
    f = torch.relu(x @ a.mT / math.sqrt(4)) @ b / math.sqrt(20)
    for moved, (start, gradient) in zip(
        (model.U, model.v),
        zip((U, v), torch.autograd.grad((f - y).square().sum() / 2, (a, b)), strict=True),
        strict=True,
    ):
        assert torch.allclose(moved, start - 0.1 * gradient, rtol=1e-10, atol=1e-12)


def test_a_stack_can_be_watched():
    d = data.gaussian(7, in_features=6)
    x, y = d.train
    net = models.fully_connected(6, 1, width=9, depth=1, seed=0)
    seen = []
    eta = torch.tensor([0.1, 1e4])
    StackedDense([net] * 2, x, y).descend(
        eta, 6, torch.full_like(eta, 1e4), watch=lambda held, weights: seen.append(held.tolist())
    )
    assert len(seen) == 7
    assert seen[0] == [0, 1]
    assert seen[-1] == [0]  # the diverged one has left the stack
