from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from catapult_ext import data, models
from catapult_ext.experiments import SweepConfig, sweep
from catapult_ext.probes.record import Projection
from catapult_ext.training import probe_schedule


def problem(outputs=3, classes=True, dtype=torch.float64, **settings):
    found = data.teacher(
        12, 8, in_features=5, out_features=outputs, classes=classes, seed=1, dtype=dtype
    )
    settings = {"width": 16, "depth": 2, "seed": 2, **settings}
    return models.fully_connected(5, outputs, dtype=dtype, **settings), found


def jacobian(model, x):
    """(N*O, P) by one backward pass per output: slow and plain."""
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(f, list(model.parameters()))])
        for f in (model(x[i : i + 1])[0, o] for i in range(len(x)) for o in range(3))
    ]
    return torch.stack(rows)


def descent(model, x, y, eta, steps):
    """Explicit gradient descent on 1/(2N) |f - y|^2, recording loss and residuals."""
    losses, residuals = [], []
    for _ in range(steps + 1):
        residual = model(x) - y
        loss = residual.square().sum() / (2 * len(x))
        losses.append(loss.item())
        residuals.append(residual.detach().reshape(-1))
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= eta * g
    return losses, residuals


def test_sweep_is_gradient_descent_with_the_curvature_of_the_loss():
    model, found = problem()
    result = sweep(model, found, c=[1.0, 3.0], steps=20, tol=1e-9)
    x, y = found.train
    theta = jacobian(model, x) @ jacobian(model, x).T
    values, vectors = torch.linalg.eigh(theta)
    assert result.lambda0 == pytest.approx(values[-1].item() / 12, rel=1e-8)
    assert result.eta == pytest.approx([1.0 / result.lambda0, 3.0 / result.lambda0])
    for eta, record in zip(result.eta, result.records, strict=True):
        twin, _ = problem()
        losses, residuals = descent(twin, x, y, eta, 20)
        assert record["loss"] == pytest.approx(losses, rel=1e-10)
        top = torch.stack(residuals) @ vectors[:, -3:]
        norms = top.norm(dim=1) / top[0].norm()
        assert record["projection"] == pytest.approx(norms.tolist(), rel=1e-4)
        twin, _ = problem()
        descent(twin, x, y, eta, 19)  # 20 updates
        end = torch.linalg.eigvalsh(jacobian(twin, x) @ jacobian(twin, x).T)[-1].item() / 12
        assert record["lambda"][-1] == pytest.approx(end, rel=1e-7)
        norm = math.sqrt(sum(p.square().sum().item() for p in twin.parameters()))
        assert record["weight_norm"][-1] == pytest.approx(norm, rel=1e-12)
        hits = twin(found.x_test).argmax(1) == found.y_test.argmax(1)
        assert record["test_accuracy"][-1] == pytest.approx(hits.double().mean().item())


def test_model_is_left_alone_and_rates_do_not_influence_each_other():
    model, found = problem(dtype=torch.float32)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    many = sweep(model, found, c=[3.0, 0.5, 2.5], steps=8)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert many.c == [0.5, 2.5, 3.0]
    for i, c in enumerate(many.c):  # trained together, and alone
        one, of_many = sweep(model, found, c=[c], steps=8).records[0], many.records[i]
        found_by = [(r.pop("lambda"), r.pop("lambda_error")) for r in (one, of_many)]
        (here, bars), (there, others) = found_by
        for a, e, b, f in zip(here, bars, there, others, strict=True):
            assert abs(a - b) <= e + f  # rates are solved for together
        assert one == of_many  # bit for bit


def test_batch_norm_buffers_start_afresh_for_every_rate():
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    _, found = problem()
    result = sweep(model.eval(), found, eta=[0.01, 0.02], steps=3)
    alone = sweep(model, found, eta=[0.02], steps=3)
    assert alone.records[0]["loss"] == result.records[1]["loss"]


def test_divergent_rate_stops_stays_finite_and_leaves_the_others_alone():
    model, found = problem(dtype=torch.float32)
    result = sweep(model, found, c=[0.5, 1e4], steps=30)
    assert result.phases == ["lazy", "divergent"]
    record = result.records[1]
    assert 0 < record["diverged_at"] < 10
    assert all(math.isfinite(v) for v in record["loss"])
    assert len(record["loss"]) in (record["diverged_at"], record["diverged_at"] + 1)
    assert len(result.records[0]["loss"]) == 31
    assert result.rows[1]["lambda_end"] is None


def test_cut_can_be_given():
    model, found = problem()
    bounded = sweep(model, found, c=[1.0], steps=5)
    assert bounded.phases == ["lazy"]
    cut = sweep(model, found, c=[1.0], steps=5, cut=0.9 * bounded.records[0]["loss"][0])
    assert cut.phases == ["divergent"]
    assert cut.verdicts[0].evidence.diverged_at == 0


def test_a_linear_model_is_its_own_linearisation_and_crosses_at_two():
    model, found = problem(depth=0)
    result = sweep(
        model, found, c=[1.9, 1.99, 2.01, 2.1], steps=60, tol=1e-10, top=1, linearised=True
    )
    assert result.linearised is not None
    for record, linear in zip(result.records, result.linearised, strict=True):
        assert record["loss"] == pytest.approx(linear["loss"], rel=1e-9)
        assert record["growth"] == pytest.approx(linear["growth"], rel=1e-7)
    assert result.summary["c_linearised"]["c"] == 2.01
    assert result.summary["c_proj"]["c"] == 2.01
    assert result.summary["c_proj"]["below"] == 1.99


def test_linearised_columns_leave_at_the_cut_without_disturbing_the_others():
    model, found = problem()
    both = sweep(model, found, c=[1.0, 50.0], steps=40, linearised=True, tol=1e-8)
    alone = sweep(model, found, c=[1.0], steps=40, linearised=True, tol=1e-8)
    assert both.linearised[1]["diverged_at"] > 0
    assert both.linearised[0]["loss"] == pytest.approx(alone.linearised[0]["loss"], rel=1e-12)
    assert len(both.linearised[0]["loss"]) == 41


@pytest.mark.parametrize(
    ("loss", "factor"),
    [
        ("half_mse", 1.0),
        ("half_mse_mean", 1 / 3),
        (nn.MSELoss(), 2 / 3),
        (nn.MSELoss(reduction="sum"), 24),
    ],
)
def test_lambda_is_that_of_the_loss_trained(loss, factor):
    model, found = problem()
    reference = sweep(model, found, c=[1.0], steps=1, tol=1e-9)
    result = sweep(model, found, c=[1.0], steps=1, tol=1e-9, loss=loss)
    assert result.lambda0 == pytest.approx(factor * reference.lambda0, rel=1e-8)
    # The same c is the same step in function space, whatever the loss's factor.
    ratio = [v / result.records[0]["loss"][0] for v in result.records[0]["loss"]]
    wanted = [v / reference.records[0]["loss"][0] for v in reference.records[0]["loss"]]
    assert ratio == pytest.approx(wanted, rel=1e-9)


def test_cross_entropy_uses_its_gauss_newton_matrix():
    model, found = problem()
    result = sweep(model, found, c=[0.5, 1.0], steps=4, loss=nn.CrossEntropyLoss(), tol=1e-8)
    x, y = found.train
    p = torch.softmax(model(x), 1).detach()
    blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    j = jacobian(model, x).reshape(12, 3, -1)
    ggn = torch.einsum("nop,noq,nqr->pr", j, blocks, j) / 12
    assert result.lambda0 == pytest.approx(torch.linalg.eigvalsh(ggn)[-1].item(), rel=1e-7)
    assert result.records[0]["loss"][0] == pytest.approx(
        nn.functional.cross_entropy(model(x), y).item()
    )
    assert result.records[1]["loss"][-1] < result.records[1]["loss"][0]


def test_schedule_is_dense_early_and_ends_at_the_last_step():
    assert probe_schedule(100, 2.0) == (0, 1, 2, 4, 8, 16, 32, 64, 100)
    assert probe_schedule(5, 1.01) == (0, 1, 2, 3, 4, 5)
    assert probe_schedule(1, 2.0) == (0, 1)


def test_growth_ignores_components_that_are_small_at_the_start():
    vectors = torch.eye(4)[:, :2]
    projection = Projection(vectors)
    projection.follow(torch.tensor([[10.0], [0.1], [7.0], [7.0]]))
    projection.follow(torch.tensor([[5.0], [1.0], [70.0], [7.0]]))
    assert projection.growth[0] == [1.0, 0.5]
    assert projection.norm[0][1] == pytest.approx(math.hypot(5, 1) / math.hypot(10, 0.1))
    both = Projection(vectors, share=0.001)
    both.follow(torch.tensor([[10.0], [0.1], [7.0], [7.0]]))
    both.follow(torch.tensor([[5.0], [1.0], [70.0], [7.0]]))
    assert both.growth[0][1] == pytest.approx(10.0)


def test_exactly_two_is_the_catapult_side_whatever_rounding_does():
    model, found = problem()
    for seed in range(3):
        model, found = problem(seed=seed)
        assert sweep(model, found, c=[2.0], steps=1).phases == ["catapult"]


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({}, TypeError, "give either c or eta"),
        ({"c": [1.0], "eta": [1.0]}, TypeError, "give either c or eta"),
        ({"eta": [0.0]}, ValueError, "eta must be finite and > 0, got 0.0"),
        ({"eta": [-0.1]}, ValueError, "eta must be finite and > 0, got -0.1"),
        ({"c": [float("nan")]}, ValueError, "c must be finite and > 0, got nan"),
        ({"c": []}, ValueError, "c must hold at least one learning rate"),
        ({"c": [1.0, 1.0]}, ValueError, "c must hold distinct rates"),
        ({"c": [1.0], "steps": 0}, ValueError, "steps must be >= 1, got 0"),
        ({"c": [1.0], "probe_factor": 1.0}, ValueError, "probe_factor must be > 1"),
        ({"c": [1.0], "tol": 0.0}, ValueError, r"tol must be in \(0, 1\)"),
        ({"c": [1.0], "loss": "mae"}, ValueError, "loss must be one of"),
        ({"c": [1.0], "loss": lambda f, y: f.sum()}, ValueError, "must have a Gauss-Newton matrix"),
        ({"c": [1.0], "loss": nn.CrossEntropyLoss(), "linearised": True}, ValueError, "squared"),
    ],
)
def test_bad_settings(settings, kind, message, tmp_path):
    model, found = problem()
    with pytest.raises(kind, match=message):
        sweep(model, found, out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def _integer_model():
    model, _ = problem()
    model.register_parameter("n", nn.Parameter(torch.arange(3), requires_grad=False))
    return model


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (lambda: "net", TypeError, "model must be a torch.nn.Module, got str"),
        (_integer_model, TypeError, "parameter n must have a floating dtype, got torch.int64"),
        (lambda: problem()[0].float(), TypeError, "must have the dtype of the data"),
        (nn.Identity, ValueError, "model needs parameters"),
        (
            lambda: nn.Sequential(problem()[0], nn.Flatten(0)),
            ValueError,
            r"outputs of shape \(12, 3\).*forward=.*got \(36,\)",
        ),
        (
            lambda: nn.Sequential(nn.Linear(5, 3).double(), nn.Dropout(0.5)),
            ValueError,
            "dropout makes every step random",
        ),
    ],
)
def test_bad_models(model, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        sweep(model(), problem()[1], c=[1.0], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_config_is_checked_where_it_is_made():
    with pytest.raises(ValueError, match="c must be finite and > 0"):
        SweepConfig(c=(0.0,))
