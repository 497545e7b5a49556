"""Stacked dense networks against one network after the other."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from catapult_ext import data, models
from catapult_ext.experiments.stacked import StackedDense
from catapult_ext.linops import NTK


def nets(activation, count=3):
    return [
        models.fully_connected(6, 1, width=9, depth=2, activation_name=activation, seed=s).double()
        for s in range(count)
    ]


@pytest.mark.parametrize("activation", ["relu", "tanh", "linear"])
def test_every_replica_is_its_own_descent(activation):
    d = data.gaussian(7, in_features=6, dtype=torch.float64)
    x, y = d.train
    models_ = nets(activation)
    eta = torch.tensor([0.05, 0.3, 60.0], dtype=torch.float64)
    cut = torch.full_like(eta, 1e4)
    stack = StackedDense(models_, x, y)
    first = stack.top_eigenvalue()
    record = stack.descend(eta, 12, cut)
    for i, net in enumerate(models_):
        top = torch.linalg.eigvalsh(NTK(net, x).dense())[-1] / len(x)
        assert first[i].item() == pytest.approx(top.item(), rel=1e-10)
        net = copy.deepcopy(net)
        curve, gone = [], -1
        for step in range(13):
            loss = (net(x) - y).square().sum() / (2 * len(x))
            curve.append(loss.item())
            if not loss.item() <= 1e4:
                gone = step
                break
            if step < 12:
                gradients = torch.autograd.grad(loss, list(net.parameters()))
                for p, g in zip(net.parameters(), gradients, strict=True):
                    p.data -= eta[i] * g
        assert record.diverged_at[i] == gone
        kept = record.loss[i, : len(curve)]
        expected = torch.tensor(curve, dtype=kept.dtype)
        torch.testing.assert_close(kept, expected, rtol=1e-10, atol=0)
        if gone >= 0:
            assert (record.loss[i, gone:] == record.loss[i, gone]).all()
            assert math.isnan(record.lambda_end[i])
        else:
            top = torch.linalg.eigvalsh(NTK(net, x).dense())[-1] / len(x)
            assert record.lambda_end[i].item() == pytest.approx(top.item(), rel=1e-9)
    assert record.diverged_at.tolist()[2] >= 0


def test_inactive_share_is_that_of_the_activation_inputs():
    d = data.gaussian(5, in_features=6)
    net = models.fully_connected(6, 1, width=9, depth=1, seed=0)
    record = StackedDense([net], *d.train).descend(torch.tensor([1e-9]), 1, torch.tensor([1e9]))
    before = net[0](d.x_train)
    assert record.inactive[0].item() == pytest.approx((before <= 0).float().mean().item())


def test_what_cannot_be_stacked_is_refused():
    d = data.gaussian(5, in_features=6)
    with pytest.raises(ValueError, match="layers must have no bias, and one output"):
        StackedDense([models.fully_connected(6, 2, width=4)], *d.train)
    with pytest.raises(ValueError, match="layers must have no bias"):
        StackedDense([models.fully_connected(6, 1, width=4, sigma_b=0.1)], *d.train)
    both = [models.fully_connected(6, 1, width=4, depth=k) for k in (1, 2)]
    with pytest.raises(ValueError, match="depths must agree"):
        StackedDense(both, *d.train)
