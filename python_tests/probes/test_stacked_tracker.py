"""StackedCurvatureTracker: models that train together, each as if it were followed alone."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

import catapult_ext as cx

DOUBLE = {"dtype": torch.float64}
RATES = [0.05, 0.1, 0.2]


def nets(count=3):
    return [
        cx.models.fully_connected(5, 2, width=8, depth=2, seed=s, **DOUBLE) for s in range(count)
    ]


def problem():
    g = torch.Generator().manual_seed(0)
    return torch.randn(12, 5, generator=g, **DOUBLE), torch.randn(12, 2, generator=g, **DOUBLE)


def loss_of(net, x, y):
    return (net(x) - y).square().sum() / 24


def train(models, x, y, tracker, steps):
    """Descent of a list of modules, in place."""
    for _ in range(steps):
        values = []
        for net, rate in zip(models, RATES, strict=False):
            value = loss_of(net, x, y)
            slopes = torch.autograd.grad(value, list(net.parameters()))
            with torch.no_grad():
                for p, slope in zip(net.parameters(), slopes, strict=True):
                    p -= rate * slope
            values.append(value.item())
        tracker.step(values)


@pytest.mark.parametrize("quantity", ["ggn", "hessian", "ntk"])
def test_each_model_is_followed_as_alone(quantity):
    x, y = problem()
    models = nets()
    kind = {"ggn": cx.GGN, "hessian": cx.Hessian}.get(quantity)
    settings = {"quantity": quantity, "k": 2, "every": 3, "rates": RATES}
    with cx.StackedCurvatureTracker(models, "half_mse", (x, y), **settings) as tracker:
        for _ in range(5):
            train(models, x, y, tracker, 3)
            row = tracker.probes[-1]
            for r, net in enumerate(models):
                operator = cx.NTK(net, x) if kind is None else kind(net, "half_mse", (x, y))
                exact = torch.linalg.eigvalsh(operator.dense()).flip(0)[:2]
                found, errors = torch.tensor([row["values"][r], row["errors"][r]], **DOUBLE)
                assert ((found - exact).abs() <= errors).all()
                assert row["eta_lambda"][r] == RATES[r] * row["values"][r][0]
    assert [row["step"] for row in tracker.probes] == [0, 3, 6, 9, 12, 15]
    assert tracker.probes[0]["flags"] == [["checked"]] * 3
    assert "inherited" in {check for row in tracker.probes for check in row["index_check"]}
    assert "6 probes of 3 models in 15 steps" in repr(tracker)
    table = tracker._table()
    assert len(table) == 18
    assert (table[4]["step"], table[4]["replica"]) == (3, 1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"count": 2}, "state must have models = 2, got 3"),
        ({"k": 1}, "state must have k = 1, got 2"),
        ({"quantity": "hessian"}, "state must have quantity = 'hessian', got 'ggn'"),
    ],
)
def test_the_state_of_other_models_is_refused(other, message):
    x, y = problem()
    with cx.StackedCurvatureTracker(nets(), "half_mse", (x, y), k=2) as tracker:
        state = tracker.state_dict()
    given = {"count": 3, "k": 2, "quantity": "ggn"} | other
    fresh = cx.StackedCurvatureTracker(nets(given.pop("count")), "half_mse", (x, y), **given)
    with pytest.raises(ValueError, match=f"load_state_dict: {message}"):
        fresh.load_state_dict(state)
    assert fresh.probes == []
    kept = nets(2)
    tracker.keep([0, 2])
    fresh = cx.StackedCurvatureTracker(kept, "half_mse", (x, y), k=2)
    fresh.load_state_dict(tracker.state_dict())  # of the models that are left


def test_stacked_state_that_every_step_makes_new():
    x, y = problem()
    module = nets(1)[0].to("meta")
    params, buffers = stack_module_state(nets())

    def loss(p, b):
        return (functional_call(module, (p, b), (x,)) - y).square().sum() / 24

    step = vmap(grad_and_value(loss))
    models = (params, buffers, module)
    with cx.StackedCurvatureTracker(models, "half_mse", (x, y), every=2) as tracker:
        for _ in range(4):
            slopes, values = step(params, buffers)
            params = {n: (p - 0.1 * slopes[n]).detach() for n, p in params.items()}
            tracker.step(values, models=(params, buffers, module))
    assert [row["step"] for row in tracker.probes] == [0, 2, 4]
    last = nets()
    for r, net in enumerate(last):
        net.load_state_dict({n: p[r] for n, p in params.items()})
        top = torch.linalg.eigvalsh(cx.GGN(net, "half_mse", (x, y)).dense())[-1]
        row = tracker.probes[-1]
        assert abs(row["values"][r][0] - top) <= row["errors"][r][0]


def test_a_model_that_diverges_and_those_that_are_kept():
    x, y = problem()
    models = nets()
    with cx.StackedCurvatureTracker(models, "half_mse", (x, y), every=1, rates=RATES) as tracker:
        with torch.no_grad():
            models[1][0].weight.fill_(math.inf)
        row = tracker.step([1.0, math.nan, 1.0])
        assert row["flags"][1] == ["diverged"]
        assert math.isnan(row["values"][1][0])
        assert all(math.isfinite(row["values"][r][0]) for r in (0, 2))
        tracker.keep([2, 0])
        later = tracker.step([1.0, 1.0])
    assert later["values"][0][0] == pytest.approx(row["values"][2][0], rel=2e-3)
    assert later["eta_lambda"][1] == RATES[0] * later["values"][1][0]


def test_a_jump_of_one_loss_probes_all_with_a_check():
    x, y = problem()
    tracker = cx.StackedCurvatureTracker(nets(), "half_mse", (x, y), every=4)
    made = [tracker.step([1.0, 1.0, 1.0]) for _ in range(5)]
    assert [row is not None for row in made] == [False] * 3 + [True, False]
    row = tracker.step([1.0, 3.0, 1.0])
    assert row["step"] == 6
    assert row["flags"] == [["checked"]] * 3


def test_a_probe_that_fails_later_ends_no_loop():
    x, y = problem()
    tracker = cx.StackedCurvatureTracker(nets(), "half_mse", (x, y), every=1, rates=RATES)
    tracker.step()
    with pytest.warns(RuntimeWarning, match="after step 2 failed"):
        row = tracker.step(models=[*nets(2), nn.Linear(5, 2).double()])
    assert row["flags"] == [["failed"]] * 3
    assert "models[2]" in row["reason"]
    assert tracker.step(models=nets())["flags"][0] != ["failed"]


def test_a_state_resumes_with_the_same_bits():
    x, y = problem()
    whole, parts = nets(), nets()
    settings = {"every": 2, "k": 2, "rates": RATES}
    one = cx.StackedCurvatureTracker(whole, "half_mse", (x, y), **settings)
    train(whole, x, y, one, 7)
    first = cx.StackedCurvatureTracker(parts, "half_mse", (x, y), **settings)
    train(parts, x, y, first, 3)
    second = cx.StackedCurvatureTracker(parts, "half_mse", (x, y), **settings)
    second.load_state_dict(first.state_dict())
    train(parts, x, y, second, 4)
    assert second.probes == one.probes
    other = cx.StackedCurvatureTracker(parts, "half_mse", (x, y), quantity="hessian")
    with pytest.raises(ValueError, match="quantity"):
        other.load_state_dict(first.state_dict())


def test_bad_input():
    x, y = problem()
    make = cx.StackedCurvatureTracker
    for wrong, text in (
        ({"quantity": "fisher"}, "quantity must be one of"),
        ({"every": 0}, "every must be >= 1"),
        ({"k": 0}, "k must be >= 1"),
        ({"rates": [[0.1]]}, "rates must be a list of numbers"),
        ({"rates": [0.1, float("nan"), 0.1]}, "rates must be finite"),
    ):
        with pytest.raises(ValueError, match=text):
            make(nets(), "half_mse", (x, y), **wrong)
    with pytest.raises(ValueError, match="rates must be 3 numbers"):
        make(nets(), "half_mse", (x, y), rates=[0.1]).start()
    with pytest.raises(ValueError, match=r"models\[1\]"):
        make([*nets(1), nn.Linear(5, 2).double()], "half_mse", (x, y)).start()
    tracker = make(nets(), "half_mse", (x, y))
    tracker.step([1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="losses must be 3"):
        tracker.step([1.0])
