"""CurvatureTracker beside an optimizer: its metric, threshold, rates and steps, to a net's end."""

import importlib.util
import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import catapult_ext as cx

HERE = Path(__file__)
spec = importlib.util.spec_from_file_location("problems", HERE.with_name("edge_problems.py"))
problems = importlib.util.module_from_spec(spec)
spec.loader.exec_module(problems)
LINEAR, OTHERS = problems.LINEAR, problems.OTHERS
Problem, plain_zeta = problems.Problem, problems.plain_zeta
optim = torch.optim
LOSS = nn.CrossEntropyLoss()


def tracked(problem, optimizer, **options):
    options = {"quantity": "hessian", "every": 1, "tol": 1e-8, **options}
    return cx.CurvatureTracker(
        problem.model, LOSS, (problem.x, problem.y), optimizer=optimizer, **options
    )


def dense(problem, scale=None):
    """Top eigenvalue of the Hessian by torch.func, with the diagonal metric ``scale``."""
    weights = list(problem.model.parameters())
    h = problem.hessian([w.detach() for w in weights], weights)
    if scale is not None:
        root = torch.cat([s.reshape(-1) for s in scale]).sqrt()
        h = root[:, None] * h * root
    return torch.linalg.eigvalsh(h)[-1].item()


def adam(state, group):
    corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
    return 1 / (corrected.sqrt() + group["eps"])


METRICS = {
    "Adam": (adam, 38.0),
    "AdamW": (adam, 38.0),
    "NAdam": (adam, 2 * 1.9 / (0.1 * 2.8)),
    "RMSprop": (lambda s, g: 1 / (s["square_avg"].sqrt() + g["eps"]), 2.0),
    "Adagrad": (
        lambda s, g: 1 / ((1 + (float(s["step"]) - 1) * 0.1) * (s["sum"].sqrt() + g["eps"])),
        2.0,
    ),
    "Adadelta": (
        lambda s, g: ((s["acc_delta"] + g["eps"]) / (s["square_avg"] + g["eps"])).sqrt(),
        2.0,
    ),
}


@pytest.mark.parametrize("name", METRICS)
def test_adaptive_optimizers_are_seen_in_their_own_metric(name):
    inverse, threshold = METRICS[name]
    problem = Problem("mlp")
    optimizer = LINEAR[name](problem.model.parameters())
    with tracked(problem, optimizer) as tracker:
        assert tracker.probes == []  # there is no preconditioner before the first step
        for _ in range(4):
            row = tracker.step(problem.step(optimizer))
            scale = [
                inverse(optimizer.state[p], optimizer.param_groups[0])
                for p in problem.model.parameters()
            ]
            assert row["values"][0] == pytest.approx(dense(problem, scale), rel=1e-6)
    eta = optimizer.param_groups[0]["lr"]
    assert row["preconditioned"]
    assert row["threshold"] == pytest.approx(threshold, rel=1e-9)
    assert row["eta_lambda"] == pytest.approx(eta * row["values"][0])
    assert row["reason"] is None


def test_the_gauss_newton_matrix_in_the_metric_and_the_residual_s_shares():
    problem = Problem("mlp")
    y = nn.functional.one_hot(problem.y, 3).double()
    optimizer = LINEAR["RMSprop"](problem.model.parameters())
    options = {"optimizer": optimizer, "every": 1, "tol": 1e-9, "k": 3, "quantity": "ggn"}
    with cx.CurvatureTracker(problem.model, "half_mse", (problem.x, y), **options) as tracker:
        row = tracker.step(problem.step(optimizer))
    weights = list(problem.model.parameters())
    scale = [1 / (optimizer.state[p]["square_avg"].sqrt() + 1e-8) for p in weights]
    names = [n for n, _ in problem.model.named_parameters()]

    def outputs(*values):
        return torch.func.functional_call(
            problem.model, dict(zip(names, values, strict=True)), (problem.x,)
        ).reshape(-1)

    parts = torch.autograd.functional.jacobian(outputs, tuple(w.detach() for w in weights))
    j = torch.cat(
        [(p.flatten(1) * s.reshape(-1).sqrt()) for p, s in zip(parts, scale, strict=True)], 1
    )
    values, vectors = torch.linalg.eigh(j @ j.T / len(y))
    residual = (problem.model(problem.x) - y).detach().reshape(-1)
    shares = (vectors.T @ residual).square() / residual.square().sum()
    assert row["values"] == pytest.approx(values.flip(0)[:3].tolist(), rel=1e-6)
    assert row["top_shares"] == pytest.approx(shares.flip(0)[:3].tolist(), rel=1e-3)


def test_groups_of_different_rates_count_by_their_own():
    problem = Problem("mlp")
    first, *rest = problem.model.parameters()
    optimizer = optim.SGD([{"params": rest, "lr": 0.05}, {"params": [first], "lr": 0.2}], lr=1.0)
    with tracked(problem, optimizer) as tracker:
        row = tracker.step(problem.step(optimizer))
    scale = [torch.full_like(first, 0.2), *[torch.full_like(p, 0.05) for p in rest]]
    assert row["eta"] == 0.2
    assert row["eta_lambda"] == pytest.approx(dense(problem, [s.detach() for s in scale]), rel=1e-6)
    assert row["threshold"] == 2.0
    with tracked(problem, optimizer, preconditioned=False) as tracker:
        row = tracker.probes[0]
    assert (row["eta"], row["eta_lambda"]) == (None, None)
    assert row["values"][0] == pytest.approx(dense(problem), rel=1e-6)


def test_the_rate_of_the_step_that_was_taken():
    """A scheduler that has gone on to the next rate before the tracker is called is not seen."""
    problem = Problem("mlp")
    optimizer = optim.SGD(problem.model.parameters(), lr=0.4)
    schedule = optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    zetas = []
    with tracked(problem, optimizer, full_batch=True) as tracker:
        for t in range(4):
            loss = problem.step(optimizer)
            schedule.step()
            row = tracker.step(loss)
            assert row["eta"] == 0.4 * 0.5**t
            assert row["eta_lambda"] == pytest.approx(row["eta"] * row["values"][0])
            square = sum(float(p.grad.square().sum()) for p in problem.model.parameters())
            zetas.append(1 + (problem.loss().item() - loss.item()) / (row["eta"] * square))
    for step, zeta in zip(tracker.steps_seen[:-1], zetas, strict=False):
        assert step["zeta"] == pytest.approx(zeta, rel=1e-9)
        assert step["r"] == pytest.approx(2 / step["eta"] * zeta, rel=1e-9)
    assert "zeta" not in tracker.steps_seen[-1]
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("name", ["heavy ball", "Adam", "Muon", "Rprop"])
def test_zeta_comes_free_with_full_batches(name):
    problem = Problem("mlp")
    for layer in problem.model:
        if isinstance(layer, nn.Linear):
            layer.bias = None
    make = (LINEAR | OTHERS)[name]
    optimizer = make(list(problem.model.parameters()))
    with tracked(problem, optimizer, full_batch=True, every=100) as tracker:
        for _ in range(5):
            tracker.step(problem.step(optimizer))
    again = Problem("mlp")
    for layer in again.model:
        if isinstance(layer, nn.Linear):
            layer.bias = None
    expected = plain_zeta(again, lambda w: make(list(w)))
    assert tracker.steps_seen[3]["zeta"] == pytest.approx(expected, rel=1e-8)
    assert tracker.steps_seen[3]["zeta_flags"] == []


@pytest.mark.parametrize("name", ["Rprop", "Adafactor"])
def test_a_filter_that_is_not_linear_has_no_threshold_but_a_reason(name):
    problem = Problem("mlp")
    optimizer = OTHERS[name](list(problem.model.parameters()))
    with tracked(problem, optimizer) as tracker:
        row = tracker.step(problem.step(optimizer))
    assert row["threshold"] is None
    assert row["reason"]
    assert not row["preconditioned"]
    assert row["values"][0] == pytest.approx(dense(problem), rel=1e-6)
    asked = tracked(problem, optimizer, preconditioned=True)
    with pytest.raises(ValueError, match=r"preconditioned=True needs a diagonal"):
        asked.start()


def test_plain_eigenvalues_under_adam_have_no_threshold():
    problem = Problem("mlp")
    optimizer = LINEAR["Adam"](problem.model.parameters())
    with tracked(problem, optimizer, preconditioned=False) as tracker:
        row = tracker.step(problem.step(optimizer))
    assert row["values"][0] == pytest.approx(dense(problem), rel=1e-6)
    assert row["threshold"] is None
    assert "metric" in row["reason"]


def test_the_picture_has_the_optimizer_s_edge_and_zeta(tmp_path):
    pytest.importorskip("matplotlib")
    problem = Problem("mlp")
    optimizer = LINEAR["heavy ball"](problem.model.parameters())
    with tracked(problem, optimizer, full_batch=True) as tracker:
        for _ in range(3):
            tracker.step(problem.step(optimizer))
    axes = tracker.plot(tmp_path / "a.png").axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes[0].get_lines()}
    assert lines[r"$k^*/\eta$"] == pytest.approx([3.8 / 0.05] * 4)
    zetas = [step["zeta"] for step in tracker.steps_seen[:-1]]
    assert list(axes[2].get_lines()[0].get_ydata()) == zetas


def test_a_step_that_a_scaler_skips_and_a_parameter_without_gradient():
    problem = Problem("mlp")
    problem.model.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    optimizer = LINEAR["Adam"](problem.model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    with tracked(problem, optimizer, full_batch=True) as tracker:
        for t in range(3):
            optimizer.zero_grad()
            loss = problem.loss()
            scaler.scale(loss).backward()
            if t == 0:
                problem.model[0].weight.grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            row = tracker.step(loss)
            assert (row is None) == (t == 0)
    assert row["preconditioned"]
    assert row["values"][0] > 0
    assert tracker.steps_seen[0]["zeta"] is None
    assert tracker.steps_seen[0]["zeta_flags"] == ["no optimizer step"]
    assert tracker.steps_seen[1]["zeta_flags"] == ["no gradient of 1 parameters"]


DEATH = {"mse": "half_mse", "cross entropy": LOSS}


@pytest.mark.parametrize(
    ("name", "loss", "bias", "quantity"),
    [
        ("SGD", "mse", False, "hessian"),
        ("SGD", "mse", True, "hessian"),  # what is left of the net then diverges
        ("SGD", "mse", True, "ggn"),
        ("SGD", "cross entropy", True, "ggn"),
        ("Adam", "mse", True, "hessian"),
        ("Adam", "cross entropy", False, "ggn"),
        ("Adam", "cross entropy", True, "hessian"),
    ],
)
def test_a_net_driven_to_death_is_followed_to_its_end(quantity, loss, bias, name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24, bias=bias), nn.ReLU(), nn.Linear(24, 3, bias=bias))
    x = torch.rand(32, 8)
    y = torch.arange(32) % 3
    targets = nn.functional.one_hot(y, 3).float() if loss == "mse" else y
    kind = optim.SGD if name == "SGD" else optim.Adam
    optimizer = kind(model.parameters(), lr=20.0 if name == "SGD" else 5.0)
    options = {"quantity": quantity, "optimizer": optimizer, "every": 1, "full_batch": True}
    with (
        warnings.catch_warnings(),
        cx.CurvatureTracker(model, DEATH[loss], (x, targets), **options) as tracker,
    ):
        warnings.simplefilter("error")
        for _ in range(30):
            optimizer.zero_grad()
            out = model(x)
            if loss == "mse":
                value = (out - targets).square().sum() / (2 * len(x))
            else:
                value = nn.functional.cross_entropy(out, y)
            value.backward()
            optimizer.step()
            tracker.step(value)
    assert not (model[:2](x) > 0).any()
    assert tracker.probes[-1]["step"] == 30
    assert len(tracker.steps_seen) == 30
    for row in tracker.probes:
        assert math.isfinite(row["values"][0]) or row["flags"] == ["diverged"]


def test_a_probe_that_fails_later_is_a_row_and_one_warning():
    problem = Problem("mlp")

    class Broken(nn.Module):
        broken = False

        def __init__(self):
            super().__init__()
            self.net = problem.model

        def forward(self, x):
            if Broken.broken:
                raise RuntimeError("no room for a probe")
            return self.net(x)

    model = Broken()
    optimizer = LINEAR["SGD"](problem.model.parameters())
    data = (problem.x, problem.y)
    tracker = cx.CurvatureTracker(model, LOSS, data, optimizer=optimizer, every=1)
    with tracker:
        tracker.step(problem.step(optimizer))
        Broken.broken = True
        with pytest.warns(RuntimeWarning, match=r"after step 2 failed .*no room for a probe"):
            row = tracker.step(problem.step(optimizer))
        again = tracker.step(problem.step(optimizer))  # says nothing more
        Broken.broken = False
        assert math.isfinite(tracker.step(problem.step(optimizer))["values"][0])
    for lost in (row, again):
        assert lost["flags"] == ["failed"]
        assert "no room for a probe" in lost["reason"]
        assert math.isnan(lost["values"][0])
    assert tracker.probes[0]["flags"] == ["checked"]
    Broken.broken = True
    first = cx.CurvatureTracker(model, LOSS, data, every=1)
    with pytest.raises(ValueError, match="no room for a probe"):
        first.start()


def test_bad_options():
    problem = Problem("mlp")
    data = (problem.x, problem.y)
    with pytest.raises(ValueError, match="full_batch needs the optimizer"):
        cx.CurvatureTracker(problem.model, LOSS, data, full_batch=True).start()
    with pytest.raises(ValueError, match="preconditioned must be None, True or False, got 'yes'"):
        cx.CurvatureTracker(problem.model, LOSS, data, preconditioned="yes")
    with pytest.raises(ValueError, match="the NTK has no preconditioner"):
        cx.CurvatureTracker(problem.model, LOSS, data, quantity="ntk", preconditioned=True)
