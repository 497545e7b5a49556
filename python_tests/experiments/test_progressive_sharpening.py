"""The third derivative and the bookkeeping of progressive-sharpening."""

from __future__ import annotations

import pytest
import torch

from catapult_ext import losses, models
from catapult_ext.experiments.reproduce import progressive_sharpening as eos
from catapult_ext.experiments.reproduce import self_stabilisation


def test_gradient_of_the_sharpness_is_its_derivative():
    torch.manual_seed(0)
    data = torch.randn(12, 3, dtype=torch.float64), torch.randn(12, 1, dtype=torch.float64)
    model = models.fully_connected(
        3, 1, width=4, depth=2, activation_name="tanh", seed=1, dtype=torch.float64
    )
    land = self_stabilisation._Landscape(model, losses.resolve("half_mse"), data)
    place = land.at()
    _, u = land.sharpness(place)
    gradient, rising = land.third(place, u)
    direction = torch.randn(len(place), dtype=torch.float64)
    direction /= direction.norm()
    step = 1e-4

    def curved(t):
        land.go(place + t * direction)
        x, y = data
        loss = land.loss(model(x), y)
        slope = self_stabilisation._join(torch.autograd.grad(loss, land.weights, create_graph=True))
        return (u @ self_stabilisation._join(torch.autograd.grad(slope @ u, land.weights))).item()

    assert (curved(step) - curved(-step)) / (2 * step) == pytest.approx(
        (rising @ direction).item(), rel=1e-5
    )
    up, down = (land.go(place + t * direction).item() for t in (step, -step))
    assert (up - down) / (2 * step) == pytest.approx((gradient @ direction).item(), rel=1e-5)


def record(sharpness, loss, beta=0.0):
    return {
        "ratio": 4.0, "momentum": beta, "seed": 0, "eta": 1.0, "every": 2,
        "loss": loss, "sharpness": sharpness,
    }  # fmt: skip


def test_a_run_is_judged_from_its_crossing_on():
    row = eos._row(record([0.5, 1.0, 2.2, 1.8], [9, 8, 7, 6, 4, 5, 3, 2]))
    assert (row["crossed_at"], row["mean"], row["loss_then"]) == (4, 2.0, 4)
    assert row["rises"] == pytest.approx(1 / 3)
    for claim in (eos._claim_hovers([row], "x", "2/eta"), eos._claim_loss([row])):
        assert claim.holds is None  # three steps at the edge are no long time
    long = eos._row(
        record([0.5, 2.1] + [2.0] * 60, [9, 8] + [8 - 0.1 * (i // 2) + i % 2 for i in range(121)])
    )
    assert eos._claim_loss([long]).holds is True
    assert eos._claim_hovers([long], "x", "2/eta").holds is True
    late = eos._row(record([0.5, 1.0, 1.2], [9, 8, 7]))
    assert late["crossed_at"] is None
    assert eos._claim_hovers([late], "x", "2/eta").holds is None
    assert eos._claim_sharpens([row, late]).holds is False
    # With momentum the edge lies at (2 + 2 beta) / eta.
    assert eos._row(record([0.5, 2.5, 3.0], [3, 2, 1, 1, 1], beta=0.5))["crossed_at"] == 4
