"""A tracker says since when its values are inherited, and checks where a free observable jumps."""

import pytest
import torch

import catapult_ext as cx
from catapult_ext.probes.jumps import Jumps

DATA = cx.data.digits(train=32)


def _trained(steps, disturb=None, at=None, noise=0.0):
    """A tracker (a probe every ten steps, checks every ten probes) along plain descent."""
    model = cx.models.fully_connected(64, 10, width=16, depth=2, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x, y = DATA.train
    g = torch.Generator().manual_seed(0)
    tracker = cx.CurvatureTracker(model, "half_mse", DATA.train, optimizer=optimizer, every=10)
    with tracker:
        for step in range(steps):
            if step == at:
                disturb(model)
            optimizer.zero_grad()
            scatter = 1 + noise * (2 * torch.rand((), generator=g) - 1)
            loss = scatter * (model(x) - y).square().sum() / (2 * len(x))
            loss.backward()
            optimizer.step()
            tracker.step(loss)
    return tracker


def test_records_say_since_when_they_are_inherited():
    rows = _trained(35).probes
    assert [row["step"] for row in rows] == [0, 10, 20, 30]
    assert [row["index_check"] for row in rows] == ["random(0.99)"] + 3 * ["inherited since step 0"]
    assert [row["flags"] for row in rows] == [["checked"], [], [], []]


@torch.no_grad()
def _grow(model):
    """A direction that no followed vector points into becomes the top one."""
    for p in model.parameters():
        p.mul_(2)


def test_a_jump_of_the_loss_is_checked_at_once():
    rows = _trained(48, _grow, at=33).probes
    assert [row["step"] for row in rows] == [0, 10, 20, 30, 34, 44]
    assert rows[4]["flags"] == ["checked"]


def test_the_scatter_of_batches_is_no_jump():
    """Losses that vary by a factor of 2.3 from step to step."""
    rows = _trained(60, noise=0.4).probes
    assert [row["step"] for row in rows] == list(range(0, 61, 10))


@pytest.mark.parametrize(("values", "jumped"), [
    ([3, 3, 3], False), ([5.9, 1, 2], False), ([3, 6.1], True), ([None, None], False),
    ([float("inf")], True), ([float("nan")], False),
])  # fmt: skip
def test_jumps_are_seen_against_the_range_of_the_last_probes(values, jumped):
    jumps = Jumps()
    assert not jumps.follow(loss=1.0)  # nothing to compare with yet
    jumps.follow(loss=3.0)
    jumps.probed()
    assert any([jumps.follow(loss=value) for value in values]) == jumped


def test_observables_are_compared_with_themselves():
    jumps = Jumps()
    jumps.follow(loss=1.0, gradient=100.0)
    jumps.probed()
    assert not jumps.follow(loss=1.5, gradient=150.0)
    assert jumps.follow(loss=1.5, gradient=201.0)
