"""Sweeps and stacked networks on a device: the same runs, and looks that are few."""

import pytest
import torch

import catapult_ext as cx
from catapult_ext import models
from catapult_ext.experiments import descent
from catapult_ext.experiments.stacked import StackedDense
from catapult_ext.testing import pretended
from catapult_ext.testing.pretended import DEVICE, moved, pretended_cuda
from catapult_ext.training import Descent, epochs, steps, whole
from catapult_ext.training import moved as weights_of

pytestmark = pytest.mark.skipif(
    bool(pretended.why_unavailable("cpu")), reason=pretended.why_unavailable("cpu")
)


def problem():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 5, dtype=torch.float64, generator=g)
    net = models.fully_connected(5, 1, width=16, depth=1, seed=1).double()
    return net, x, torch.randn(20, 1, dtype=torch.float64, generator=g)


def test_a_sweep_gives_the_same_runs_and_looks_every_16_steps():
    net, x, y = problem()
    settings = {"c": [1.0, 2.6, 30.0], "steps": 40}
    here = cx.sweep(net, (x, y), **settings)
    with pretended_cuda("cpu") as device:
        there = cx.sweep(moved(net), moved((x, y)), **settings)
        looks = sum(n for place, n in device.places.items() if "descent.py:" in place)
    assert there.phases == here.phases == ["lazy", "catapult", "divergent"]
    for one, two in zip(there.records, here.records, strict=True):
        assert one["diverged_at"] == two["diverged_at"]
        for name in ("loss", "growth", "projection", "probe_steps"):
            torch.testing.assert_close(torch.tensor(one[name]), torch.tensor(two[name]))
    probes = sum(len(record["probe_steps"]) for record in here.records)
    assert looks <= 2 * probes + 3 * (40 // 16 + 2)


@pytest.mark.parametrize("loss", ["half_mse", "cross_entropy"])
@pytest.mark.parametrize("size", [None, 6])
def test_a_step_of_training_waits_for_nothing(loss, size):
    net, x, y = problem()
    if loss == "cross_entropy":
        net = models.fully_connected(5, 3, width=16, depth=1, seed=1).double()
        y = torch.arange(20) % 3
    loss = cx.losses.resolve(loss)
    with pretended_cuda("cpu") as device:
        weights, (x, y) = weights_of(moved(net)), moved((x, y))
        batches = whole(x, y) if size is None else epochs(x, y, size, seed=0)
        made = steps(net, weights, batches, loss, 12, Descent(weights, 0.01), ahead=True)
        next(made)
        device.reset()
        values = [step.value for step in made]
        assert device.waits.total() <= (0 if size is None else 4)  # one order for each epoch
        assert values[0].device == DEVICE
        assert len(values) == 12


def test_stacked_networks_run_as_one_graph_with_the_same_numbers():
    net, x, y = problem()
    net = models.fully_connected(5, 1, width=16, depth=1, seed=1, parameterisation="ntk").double()
    eta = torch.tensor([0.05, 60.0], dtype=torch.float64)
    cut = torch.full_like(eta, 1e4)
    here = StackedDense([net, net], x, y).descend(eta, 12, cut)
    with pretended_cuda("cpu") as device:
        x, y, eta, cut = moved((x, y, eta, cut))
        stack = StackedDense([moved(net), net], x, y)
        there = stack.descend(eta, 12, cut)
        assert device.kernels["graph"] == 12
        assert device.kernels["lanczos_dense"] == 1
        curves, top = there.loss.cpu(), there.lambda_end.cpu()
    torch.testing.assert_close(curves, here.loss)
    torch.testing.assert_close(top, here.lambda_end, rtol=1e-9, atol=0, equal_nan=True)


def test_a_look_beyond_a_divergence_changes_nothing(monkeypatch):
    _, x, y = problem()
    records = []
    for every in (1, 16):
        monkeypatch.setattr(descent, "LOOK_EVERY", every)
        with pretended_cuda("cpu"):
            run = cx.sweep(moved(problem()[0]), moved((x, y)), c=[30.0], steps=40)
        records.append(run.records[0])
    assert records[0]["diverged_at"] > 0
    assert records[0]["loss"] == records[1]["loss"]
    assert records[0]["growth"] == records[1]["growth"]
