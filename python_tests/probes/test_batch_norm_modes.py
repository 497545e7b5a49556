"""Tracker and window take batch norms in the mode they are in; truth is dense, in float64."""

import copy
import types

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.probes.integrations import trainer_callback

torch.manual_seed(11)
X, Y = torch.randn(8, 3).double(), torch.randn(8, 2).double()
NAMES = ("training", "evaluation", "one layer fixed", "no averages, evaluation")


def net(name):
    """Running averages far from the statistics of X."""
    torch.manual_seed(1)
    first, second = nn.BatchNorm1d(6), nn.BatchNorm1d(5, track_running_stats="no" not in name)
    layers = [nn.Linear(3, 6), first, nn.Tanh(), nn.Linear(6, 5), second, nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(5, 2)).double()
    for layer in (first, second):
        if layer.running_mean is not None:
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.2, 0.6)
    model.train("evaluation" not in name)
    if name == "one layer fixed":
        first.eval()
    return model


def dense(model):
    """Top eigenvalue of the GGN of half the mean squared error, of the model in its mode."""
    model = copy.deepcopy(model)
    weights = list(model.parameters())
    rows = [
        torch.autograd.grad(value, weights, retain_graph=True) for value in model(X).reshape(-1)
    ]
    j = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])
    return torch.linalg.eigvalsh(j @ j.T / len(X))[-1].item()


@pytest.mark.parametrize("name", NAMES)
def test_the_default_follows_the_mode(name):
    model = net(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    top = dense(model)
    tracker = cx.CurvatureTracker(model, "half_mse", (X, Y), tol=1e-6)
    tracker.start()
    assert tracker.probes[-1]["values"][0] == pytest.approx(top, rel=1e-5)
    window = cx.learning_rate_window(model, "half_mse", (X, Y), tol=1e-6)
    assert window.eta_crit == pytest.approx(2 / top, rel=1e-5)
    operator = cx.GGN(model, "half_mse", (X, Y), batch_stats="coupled")
    assert cx.eigsh(operator, tol=1e-6).eigenvalues.item() == pytest.approx(top, rel=1e-5)
    held = cx.models.with_batch_stats(model, None)
    torch.testing.assert_close(held(X), copy.deepcopy(model)(X))
    assert [m.training for m in model.modules()] == modes
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_the_modes_differ_and_a_policy_overrules_them():
    model, fixed = net("training"), net("evaluation")
    assert dense(model) > 2 * dense(fixed)
    for policy, top in (("coupled", dense(model)), ("running", dense(fixed))):
        for given in (model, fixed):
            tracker = cx.CurvatureTracker(given, "half_mse", (X, Y), tol=1e-6, batch_stats=policy)
            tracker.start()
            assert tracker.probes[-1]["values"][0] == pytest.approx(top, rel=1e-5)


def test_the_mode_at_the_step_counts():
    model = net("training")
    tracker = cx.CurvatureTracker(model, "half_mse", (X, Y), every=1, tol=1e-6)
    tracker.start()
    model.eval()
    tracker.step()
    values = [row["values"][0] for row in tracker.probes]
    assert values[1] == pytest.approx(dense(model), rel=1e-5)
    assert values[0] == pytest.approx(dense(model.train()), rel=1e-5)


def test_a_trainer_trains_a_model_that_comes_in_evaluation_mode(monkeypatch):
    stand_in = types.SimpleNamespace(TrainerCallback=object)
    handlers = types.SimpleNamespace(CallbackHandler=type("CallbackHandler", (), {}))
    modules = __import__("sys").modules
    monkeypatch.setitem(modules, "transformers", stand_in)
    monkeypatch.setitem(modules, "transformers.trainer_callback", handlers)
    model = net("evaluation")
    tracker = cx.CurvatureTracker(model, "half_mse", (X, Y), tol=1e-6)
    callback = trainer_callback(tracker)
    state = types.SimpleNamespace(log_history=[], global_step=0)
    callback.on_train_begin(None, state, None, model=model)
    assert not any(m.training for m in model.modules())
    assert tracker.probes[-1]["values"][0] == pytest.approx(dense(model.train()), rel=1e-5)
