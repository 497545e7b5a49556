"""The tracker on a device: no waits between probes, and its work is charged where it is done."""

import itertools

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext import models
from catapult_ext.testing import pretended
from catapult_ext.testing.attention import GPT
from catapult_ext.testing.pretended import moved, pretended_cuda

pytestmark = pytest.mark.skipif(
    bool(pretended.why_unavailable("cpu")), reason=pretended.why_unavailable("cpu")
)


def chain():
    g = torch.Generator().manual_seed(0)
    net = models.fully_connected(12, 3, width=16, depth=2, seed=1)
    return net, torch.randn(20, 12, generator=g), torch.arange(20) % 3


def resnet():
    g = torch.Generator().manual_seed(0)
    return (
        models.resnet(20, 10, width=0.25).eval(),
        torch.randn(4, 3, 4, 4, generator=g),
        torch.arange(4),
    )


def transformer():
    torch.manual_seed(0)
    return GPT(), torch.randint(0, 7, (6, 5)), torch.arange(6)


def train(problem, tracker_of, steps, seen=lambda step: None):
    net, x, y = problem
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    loss_of = nn.CrossEntropyLoss()
    with tracker_of(net, loss_of, (x, y), optimizer=optimizer) as tracker:
        for step in range(steps):
            optimizer.zero_grad()
            loss = loss_of(net(x), y)
            loss.backward()
            optimizer.step()
            seen(step)
            tracker.step(loss)
    return tracker


@pytest.mark.parametrize(
    "make", [chain, pytest.param(resnet, marks=pytest.mark.nightly), transformer]
)
def test_no_step_between_probes_waits(make):
    steps = 7
    waits = []

    def tracker_of(*args, **kwargs):
        return cx.CurvatureTracker(*args, every=3, **kwargs)

    with pretended_cuda("cpu") as device:
        net, x, y = make()
        problem = moved(net), *moved((x, y))

        def seen(step):
            waits.append(device.waits.total())

        tracker = train(problem, tracker_of, steps, seen)
        rows = tracker.steps_seen
    between = [b - a for a, b in itertools.pairwise(waits)]
    # probed after steps 3 and 6
    assert [i for i, n in enumerate(between) if n] == [2, 5]
    here = train(make(), tracker_of, steps)
    assert [row["step"] for row in tracker.probes] == [row["step"] for row in here.probes]
    assert len(rows) == steps
    for one, two in zip(rows, here.steps_seen, strict=True):
        for key in ("loss", "gradient"):
            assert one[key] == pytest.approx(two[key], rel=1e-3)
    for one, two in zip(tracker.probes, here.probes, strict=True):
        assert one["values"] == pytest.approx(two["values"], rel=1e-2)


@pytest.mark.parametrize("budget", [None, 20.0])
def test_the_budget_counts_the_work_of_the_device_where_it_is_done(budget):
    """Launches take no time here; each kernel takes the device one second."""
    with pretended_cuda("cpu", kernel_seconds=1.0) as device:
        net, x, y = chain()
        problem = moved(net), *moved((x, y))
        trained = []

        def tracker_of(*args, **kwargs):
            tracker = cx.CurvatureTracker(*args, every=4, budget=budget, samples=20, **kwargs)
            tracker.overhead.clock = device.clock
            device.host = device.done = 0.0
            device.reset()
            return tracker

        def seen(step):
            trained.append(device.kernels.total())

        tracker = train(problem, tracker_of, 13, seen)
        device.wait("the end")
        total = device.kernels.total()
    overhead = tracker.overhead
    assert len(tracker.probes) >= 2
    # a step of training: forward, backward and the optimizer
    step = min(b - a for a, b in itertools.pairwise(trained))
    assert overhead.training + overhead.probing <= total
    # what follows the last probe is not waited for
    assert overhead.training >= tracker.probes[-1]["step"] * step
    assert overhead.training <= 14 * (step + 12)
    assert overhead.probing >= 0.8 * (total - 14 * (step + 12))
