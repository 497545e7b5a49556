"""The runs behind the experiments at the edge of stability, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from catapult_ext import losses, models
from catapult_ext.experiments import edge_runs, noisy_edge

HALF = losses.resolve("half_mse")


class Line(nn.Module):
    """f = w x, one parameter: under half_mse with y = 0 the loss is w^2 mean(x^2) / 2."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[start]], dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w


def line_data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    return x, torch.zeros_like(x)


def test_a_quadratic_has_the_chi_and_zeta_of_its_rate():
    data = line_data()
    curvature = (1 + 4 + 9) / 3
    for k in (0.5, 1.9, 2.1):
        model = Line(1.0)
        optimizer = edge_runs.OPTIMIZERS["gd"](model.parameters(), k / curvature)
        record = edge_runs.follow(model, HALF, data, optimizer, 12, 4)
        assert record["at"] == [0, 4, 8]
        assert record["chi"] == pytest.approx([k / 2] * 3, rel=1e-6)
        assert record["zeta"][:-1] == pytest.approx([k / 2] * 11, rel=1e-6)
        assert record["zeta"][-1] is None  # no loss follows
        assert record["diverged"] is False
        chi, zeta = edge_runs.near_the_edge(record)
        assert len(chi) == (0 if k == 0.5 else 3)
        assert len(zeta) == (0 if k == 0.5 else 9)


def test_a_run_ends_where_it_diverges():
    model = Line(1.0)
    optimizer = edge_runs.OPTIMIZERS["gd"](model.parameters(), 10.0)
    record = edge_runs.follow(model, HALF, line_data(), optimizer, 50, 1)
    assert record["diverged"] is True
    assert record["loss"][-1] > edge_runs.CUT * record["loss"][0]
    assert len(record["loss"]) < 5


def test_the_stay_near_the_edge_lasts_from_the_first_reading_above_to_the_last():
    record = {
        "at": [0, 2, 4, 6, 8],
        "chi": [0.1, 0.8, 0.3, 1.2, 0.7],
        "zeta": [0.0, 0.1, 0.2, None, 0.4, 0.5, 0.6, 0.7, 0.8],
    }
    assert edge_runs.near_the_edge(record) == ([0.8, 0.3, 1.2], [0.2, 0.4, 0.5, 0.6])
    assert edge_runs.near_the_edge(record | {"chi": [0.1, 0.75, None, 0.2, 0.3]}) == ([], [])


def net() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    data = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    model = models.fully_connected(
        3, 2, width=4, depth=1, activation_name="tanh", seed=1, dtype=torch.float64
    )
    return model, data


def dense_terms(model, x, y):
    """g.Hg and |g|^2 with the Hessian written out."""
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    shapes = [p.shape for p in model.parameters()]

    def value(flat):
        parts = [v.view(s) for v, s in zip(flat.split(sizes), shapes, strict=True)]
        out = torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (x,))
        return (out - y).square().sum() / (2 * len(x))

    at = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    g = torch.func.grad(value)(at)
    return (g @ torch.func.hessian(value)(at) @ g).item(), (g @ g).item()


def test_batch_sharpness_is_the_mean_over_all_batches():
    model, (x, y) = net()
    whole = noisy_edge.batch_sharpness(model, HALF, (x, y), 6, torch.Generator())
    bent, square = dense_terms(model, x, y)
    assert whole.mean == whole.weighted == pytest.approx(bent / square, rel=1e-10)
    assert whole.error == 0
    single = [dense_terms(model, x[i : i + 1], y[i : i + 1]) for i in range(6)]
    ratios = torch.tensor([b / s for b, s in single], dtype=torch.float64)
    found = noisy_edge.batch_sharpness(
        model, HALF, (x, y), 1, torch.Generator().manual_seed(0), draws=400, within=0.0
    )
    assert abs(found.mean - ratios.mean().item()) < 4 * found.error
    assert found.error == pytest.approx(ratios.std(correction=0).item() / math.sqrt(400), rel=0.15)
    weighted = sum(b for b, _ in single) / sum(s for _, s in single)
    assert found.weighted == pytest.approx(weighted, rel=0.05)
    assert abs(weighted / ratios.mean().item() - 1) > 0.1  # the two are not the same number


def test_drawing_ends_at_the_error_asked_for():
    model, data = net()
    counts = []
    model.register_forward_hook(lambda *_: counts.append(1))
    generator = torch.Generator().manual_seed(0)
    noisy_edge.batch_sharpness(model, HALF, data, 5, generator, draws=1000, within=0.2)
    assert len(counts) < 1000


def test_follow_batches_reads_both_sharpnesses_and_changes_options():
    data = line_data()
    model = Line(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    record = noisy_edge.follow_batches(
        model, HALF, data, optimizer, 1, 8, 4, 0, draws=200, change=(4, {"lr": 0.02, "batch": 3})
    )
    assert record["at"] == [0, 4, 8]
    assert record["sharpness"] == pytest.approx([14 / 3] * 3, rel=1e-6)
    assert record["error"][1:] == [0.0, 0.0]
    assert record["batch_sharpness"][1:] == pytest.approx([14 / 3] * 2, rel=1e-9)
    assert record["batch_sharpness"][0] == pytest.approx(14 / 3, abs=5 * record["error"][0])
    assert optimizer.param_groups[0]["lr"] == 0.02
    # four full-batch steps: w shrinks by 1 - eta 14/3 each
    assert record["loss"][2] / record["loss"][1] == pytest.approx((1 - 0.02 * 14 / 3) ** 8)
    wild = torch.optim.SGD(model.parameters(), lr=100.0)
    assert noisy_edge.follow_batches(model, HALF, data, wild, 3, 8, 4, 0, draws=2)["diverged"]
