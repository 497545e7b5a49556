"""EdgeMeter: the paper's exact examples, path integrals and dense eigenvalues."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.probes.step_metric import step_metric
from catapult_ext.probes.step_watch import StepWatch

HERE = Path(__file__)
spec = importlib.util.spec_from_file_location("problems", HERE.with_name("edge_problems.py"))
problems = importlib.util.module_from_spec(spec)
spec.loader.exec_module(problems)
LINEAR, OTHERS, NETS = problems.LINEAR, problems.OTHERS, problems.NETS
Problem, filters = problems.Problem, problems.filters
optim = torch.optim


class Quadratic(nn.Module):
    """theta'H theta / 2 for H = diag(4, 1), from a given gradient at the start."""

    def __init__(self, gradient):
        super().__init__()
        self.register_buffer("h", torch.tensor([4.0, 1.0], dtype=torch.float64))
        self.theta = nn.Parameter(torch.as_tensor(gradient, dtype=torch.float64) / self.h)

    def forward(self):
        return (self.h * self.theta.square()).sum() / 2


def angle(value):
    return [math.cos(value), math.sin(value)]


EXAMPLES = {
    "e1": ([1.0, 0.0], (1.0, 16 / 39, 1 / 15, 13 / 80)),
    "e2": ([0.0, 1.0], (1 / 4, 38 / 87, 1 / 15, 29 / 760)),
}


@pytest.mark.parametrize("full_batch", [True, False])
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_the_paper(name, full_batch):
    """arXiv 2608.18415, B.7: EMA momentum 1/2, eta = 0.1, the second step."""
    gradient, expected = EXAMPLES[name]
    model = Quadratic(gradient)
    optimizer = filters.Filtered(model.parameters(), 0.1, *filters.ema(0.5))
    meter = cx.EdgeMeter(model, optimizer, full_batch=full_batch, curvature_every=1, tol=1e-13)
    with meter:
        for _ in range(3):
            optimizer.zero_grad()
            loss = model()
            loss.backward()
            optimizer.step()
            meter.step(loss, evaluate=model)
    row = meter.rows[1]
    found = [row[key] for key in ("varsigma", "tau", "chi", "zeta")]
    assert found == pytest.approx(expected, rel=1e-12)
    assert not row["flags"]


def test_the_angle_where_alignment_and_lag_cancel():
    model = Quadratic(angle(1.01024954))
    optimizer = filters.Filtered(model.parameters(), 0.1, *filters.ema(0.5))
    with cx.EdgeMeter(model, optimizer, curvature_every=1, tol=1e-13) as meter:
        for _ in range(2):
            optimizer.zero_grad()
            loss = model()
            loss.backward()
            optimizer.step()
            row = meter.step(loss, evaluate=model)
    assert row["varsigma"] == pytest.approx(0.43040137, abs=2e-8)
    assert row["tau"] == pytest.approx(0.43040137, abs=2e-8)
    assert row["zeta"] == pytest.approx(1 / 15, abs=1e-8)
    assert row["zeta"] == pytest.approx(row["chi"] * row["varsigma"] / row["tau"], rel=1e-12)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", [*LINEAR, *OTHERS])
def test_against_path_integrals_and_dense_eigenvalues(name, net):
    problem = Problem(net)
    optimizer = (LINEAR | OTHERS)[name](list(problem.model.parameters()))
    weights = [p for g in optimizer.param_groups for p in g["params"]]
    others = [p for p in problem.model.parameters() if all(p is not w for w in weights)]
    for p in others:
        p.requires_grad_(False)
    meter = cx.EdgeMeter(problem.model, optimizer, every=4, curvature_every=4, tol=1e-8)
    for _ in range(5):
        before = [w.detach().clone() for w in weights]
        loss = problem.step(optimizer)
        after = [w.detach().clone() for w in weights]
        row = meter.step(loss, evaluate=problem.loss)
        assert all(torch.equal(w, a) for w, a in zip(weights, after, strict=True))
    moved = torch.cat([(b - a).reshape(-1) for b, a in zip(before, after, strict=True)])
    nodes, sizes = np.polynomial.legendre.leggauss(8)
    path = 0.0
    for node, size in zip((nodes + 1) / 2, sizes / 2, strict=True):
        between = [b + node * (a - b) for b, a in zip(before, after, strict=True)]
        path += size * (1 - node) * float(moved @ problem.hessian(between, weights, moved))
    gradient = torch.cat([w.grad.reshape(-1) for w in weights])
    assert row["flags"] == []
    assert row["change"] + row["descent"] == pytest.approx(path, rel=1e-6)
    assert row["descent"] == pytest.approx(float(gradient @ moved), rel=1e-9)
    assert row["zeta"] == pytest.approx(path / float(gradient @ moved), rel=1e-6)
    assert row["curvature"] == pytest.approx(2 * path / float(moved @ moved), rel=1e-6)
    if name in OTHERS:
        assert row["reason"]
        assert all(math.isnan(row[key]) for key in ("chi", "varsigma", "tau"))
        return
    assert row["reason"] is None
    assert row["zeta"] == pytest.approx(row["chi"] * row["varsigma"] / row["tau"], rel=1e-9)
    adaptive = cx.stability_threshold(optimizer).preconditioned
    parts = [b - a for b, a in zip(before, after, strict=True)]
    rates = [g["lr"] for g in optimizer.param_groups]
    metric = torch.cat([t.reshape(-1) for t in step_metric(optimizer, rates, adaptive, parts)])
    start = problem.hessian(before, weights)
    seen = metric.sqrt()[:, None] * start * metric.sqrt()
    top = torch.linalg.eigvalsh(seen)[-1].item()
    assert row["eta_sharpness"] == pytest.approx(top, rel=1e-6)
    assert row["varsigma"] == pytest.approx(
        2 * path / (top * float(moved @ (moved / metric))), rel=1e-6
    )
    along = metric * gradient
    expected = float(along @ start @ along) / float(gradient @ along)
    assert row["eta_batch_sharpness"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "Adam",
        "AMSGrad",
        "RAdam",
        "Adamax",
        "RMSprop",
        "RMSprop, centred",
        "Adagrad",
        "Adadelta",
        "ASGD",
        "NAdam",
    ],
)
def test_the_metric_is_what_the_class_divides_by(name):
    """From zero state, a class whose filter holds only the present gradient moves by D g."""
    problem = Problem("mlp")
    weights = list(problem.model.parameters())
    optimizer = LINEAR[name](weights)
    for group in optimizer.param_groups:
        for key in ("momentum", "lambd", "weight_decay", "momentum_decay"):
            if key in group:
                group[key] = 0.0
        if "betas" in group:
            group["betas"] = (0.0, 0.9)
    for _ in range(7):
        before = [w.detach().clone() for w in weights]
        problem.step(optimizer)
    parts = [b - w.detach() for b, w in zip(before, weights, strict=True)]
    rates = [g["lr"] for g in optimizer.param_groups]
    for d, m, w in zip(parts, step_metric(optimizer, rates, True, parts), weights, strict=True):
        assert torch.allclose(d, m * w.grad, rtol=1e-6, atol=1e-15)


def test_rounding_bounds_the_error_in_float32():
    wide, narrow = Problem("mlp"), Problem("mlp", torch.float32)
    with torch.no_grad():
        for p, q in zip(wide.model.parameters(), narrow.model.parameters(), strict=True):
            p.copy_(q)
        wide.x.copy_(narrow.x)
    rows = []
    for problem in (wide, narrow):
        optimizer = optim.SGD(problem.model.parameters(), lr=1e-3)
        with cx.EdgeMeter(problem.model, optimizer, full_batch=True) as meter:
            for _ in range(2):
                meter.step(problem.step(optimizer))
        rows.append(meter.rows[0])
    exact, rounded = rows
    size = torch.finfo(torch.float32).eps * rounded["loss"] / rounded["descent"]
    assert rounded["rounding"] == pytest.approx(size, rel=1e-6)
    assert abs(rounded["zeta"] - exact["zeta"]) < 4 * rounded["rounding"]
    assert exact["rounding"] < 1e-8 * rounded["rounding"] * 1.1


def test_batch_sharpness_has_a_standard_error():
    problem = Problem("mlp")
    optimizer = LINEAR["SGD"](problem.model.parameters())
    with cx.EdgeMeter(problem.model, optimizer, curvature_every=1) as meter:
        with pytest.raises(ValueError, match="a row must have curvature"):
            meter.batch_sharpness()
        for _ in range(4):
            meter.step(problem.step(optimizer), evaluate=problem.loss)
    values = np.array([row["eta_batch_sharpness"] for row in meter.rows])
    found = meter.batch_sharpness()
    assert found.value.item() == pytest.approx(values.mean())
    assert found.error.item() == pytest.approx(values.std(ddof=1) / 2)
    assert meter.batch_sharpness(last=2).value.item() == pytest.approx(values[2:].mean())


@pytest.mark.parametrize("parameters", [1, 3])
def test_long_sums_in_float32_keep_their_digits(parameters):
    """Products of 2e7 entries of one sign, as of a gradient with itself, against float64."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.zeros(20_000_000 // parameters)) for _ in range(parameters)]
    optimizer = optim.SGD(weights, lr=0.1)
    watch = StepWatch(optimizer)
    for w in weights:
        w.grad = torch.rand_like(w)
    optimizer.step()
    square = sum(float(w.grad.double().square().sum()) for w in weights)
    assert watch.products.tolist() == pytest.approx([0.1 * square, 0.01 * square], rel=2e-6)
    watch.close()
