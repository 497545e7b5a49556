"""Stacked dense networks against one network after the other."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from catapult_ext import data, models
from catapult_ext.experiments import stacked
from catapult_ext.experiments.stacked import StackedDense
from catapult_ext.linops import NTK

F64 = torch.float64


def nets(activation, outputs=1):
    settings = {"width": 9, "depth": 2, "activation_name": activation, "dtype": F64}
    return [models.fully_connected(6, outputs, seed=s, **settings) for s in range(3)]


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("activation", ["relu", "tanh", "linear"])
def test_every_replica_is_its_own_descent(activation, outputs, monkeypatch):
    monkeypatch.setattr(stacked, "KERNEL_VALUES", 2 * (7 * outputs) ** 2)  # two kernels at once
    d = data.gaussian(7, in_features=6, out_features=outputs, dtype=F64)
    x, y = d.train
    models_ = nets(activation, outputs)
    eta = torch.tensor([0.05, 0.3, 60.0], dtype=F64)
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
    without = StackedDense(models_, x, y).descend(eta, 12, cut, curvature=False)
    assert torch.equal(without.loss, record.loss)
    assert without.lambda_end.isnan().all()


def test_diverged_replicas_leave_the_stack_and_disturb_nobody():
    """Beyond step 16 only one of three is left; its curve is that of the net alone."""
    d = data.gaussian(7, in_features=6, dtype=F64)
    eta = torch.tensor([0.05, 60.0, 90.0], dtype=F64)
    cut = torch.full_like(eta, 1e4)
    seen = []
    stack = StackedDense(nets("tanh"), *d.train)
    record = stack.descend(eta, 30, cut, watch=lambda held, _: seen.append(held.tolist()))
    alone = StackedDense(nets("tanh")[:1], *d.train).descend(eta[:1], 30, cut[:1])
    torch.testing.assert_close(record.loss[:1], alone.loss, rtol=1e-12, atol=0)
    assert len(seen) == 31
    assert (seen[0], seen[-1]) == ([0, 1, 2], [0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_graph_of_a_gpu_takes_the_same_steps():
    d = data.gaussian(7, in_features=6, out_features=3, dtype=F64)
    eta = torch.tensor([0.05, 0.3, 60.0], dtype=F64)
    cut = torch.full_like(eta, 1e4)
    on_cpu = StackedDense(nets("relu", 3), *d.train).descend(eta, 30, cut)
    there = [net.cuda() for net in nets("relu", 3)]
    x, y = (v.cuda() for v in d.train)
    on_gpu = StackedDense(there, x, y).descend(eta.cuda(), 30, cut.cuda())
    torch.testing.assert_close(on_gpu.loss.cpu(), on_cpu.loss, rtol=1e-8, atol=0)
    assert torch.equal(on_gpu.diverged_at.cpu(), on_cpu.diverged_at)


def test_inactive_share_is_that_of_the_activation_inputs():
    d = data.gaussian(5, in_features=6)
    net = models.fully_connected(6, 1, width=9, depth=1, seed=0)
    record = StackedDense([net], *d.train).descend(torch.tensor([1e-9]), 1, torch.tensor([1e9]))
    before = net[0](d.x_train)
    assert record.inactive[0].item() == pytest.approx((before <= 0).float().mean().item())


def test_what_cannot_be_stacked_is_refused():
    d = data.gaussian(5, in_features=6)
    with pytest.raises(ValueError, match="y must have a column per output"):
        StackedDense([models.fully_connected(6, 2, width=4)], *d.train)
    with pytest.raises(ValueError, match="layers must have no bias"):
        StackedDense([models.fully_connected(6, 1, width=4, sigma_b=0.1)], *d.train)
    both = [models.fully_connected(6, 1, width=4, depth=k) for k in (1, 2)]
    with pytest.raises(ValueError, match="depths must agree"):
        StackedDense(both, *d.train)
