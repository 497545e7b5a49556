"""stability_threshold: closed forms, companion matrices, and the reasons for none."""

import importlib.util
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import catapult_ext as cx

spec = importlib.util.spec_from_file_location("filters", Path(__file__).with_name("filters.py"))
filters = importlib.util.module_from_spec(spec)
spec.loader.exec_module(filters)
Filtered, two_poles = filters.Filtered, filters.two_poles
ema, qhm = filters.ema, filters.qhm
multipliers, spectral_radius = filters.multipliers, filters.spectral_radius
optim = torch.optim


def weights(count=1):
    return [torch.nn.Parameter(torch.randn(3, 2)) for _ in range(count)]


CLOSED = {
    "gradient descent": (lambda w: optim.SGD(w, lr=0.1), 2.0),
    "heavy ball": (lambda w: optim.SGD(w, lr=0.1, momentum=0.9), 3.8),
    "dampening": (lambda w: optim.SGD(w, lr=0.1, momentum=0.9, dampening=0.5), 7.6),
    "Nesterov": (lambda w: optim.SGD(w, lr=0.1, momentum=0.9, nesterov=True), 3.8 / 2.8),
    "weight decay": (lambda w: optim.SGD(w, lr=0.1, weight_decay=0.3), 2.0),
    "Adam": (lambda w: optim.Adam(w), 38.0),
    "AMSGrad": (lambda w: optim.Adam(w, betas=(0.5, 0.9), amsgrad=True), 6.0),
    "AdamW": (lambda w: optim.AdamW(w, lr=0.3), 38.0),
    "NAdam": (lambda w: optim.NAdam(w), 38.0 / 2.8),
    "RAdam": (lambda w: optim.RAdam(w), 38.0),
    "Adamax": (lambda w: optim.Adamax(w), 38.0),
    "RMSprop": (lambda w: optim.RMSprop(w), 2.0),
    "RMSprop with momentum": (lambda w: optim.RMSprop(w, momentum=0.9, centered=True), 3.8),
    "Adagrad": (lambda w: optim.Adagrad(w), 2.0),
    "Adagrad, lr_decay": (lambda w: optim.Adagrad(w, lr_decay=0.1), 2.0),
    "Adadelta": (lambda w: optim.Adadelta(w), 2.0),
    "ASGD": (lambda w: optim.ASGD(w), 2.0),
    "EMA": (lambda w: Filtered(w, 0.1, *ema(0.9)), 38.0),
    "QHM": (lambda w: Filtered(w, 0.1, *qhm(0.9, 0.7)), 3.8 / (1.9 * 0.3 + 0.7 * 0.1)),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms(name):
    make, k = CLOSED[name]
    found = cx.stability_threshold(make(weights()))
    assert found.reason is None
    assert found.k == pytest.approx(k, rel=1e-10)
    assert found.omega == math.pi
    assert found.gamma == pytest.approx(2 / k, rel=1e-10)


TWO_POLES = [((0.4, 0.7), 2.5714, 26.44), ((0.7, 0.85), 0.68067, 139.8)]


@pytest.mark.parametrize(("poles", "k", "naive"), TWO_POLES)
def test_the_first_crossing_is_not_always_at_pi(poles, k, naive):
    found = cx.stability_threshold(Filtered(weights(), 0.1, *two_poles(*poles)))
    assert found.k == pytest.approx(k, rel=2e-5)
    one, two = poles
    assert 2 * (1 + one) * (1 + two) / ((1 - one) * (1 - two)) == pytest.approx(naive, rel=1e-3)
    assert spectral_radius(found.k, *two_poles(*poles)) == pytest.approx(1, abs=1e-10)
    if poles == (0.4, 0.7):
        assert found.omega / math.pi == pytest.approx(0.263, abs=1e-3)


def test_companion_matrices_of_200_random_filters():
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        b, a = filters.random_filter(generator)
        found = cx.stability_threshold(Filtered(weights(), 0.1, b, a))
        if found.reason is not None:  # then no k may reach the circle
            assert all(spectral_radius(k, b, a) < 1 for k in np.geomspace(1e-3, 1e6, 60))
            continue
        inside += found.omega < 3
        on_circle = multipliers(found.k, b, a)
        assert abs(on_circle - np.exp(1j * found.omega)).min() < 1e-8
        assert spectral_radius(found.k, b, a) == pytest.approx(1, abs=1e-8)
        assert all(spectral_radius(t * found.k, b, a) < 1 for t in np.linspace(0.01, 0.999, 60))
        # the crossing by the companion matrix alone
        low, high = 0.99 * found.k, 1.01 * found.k
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if spectral_radius(middle, b, a) > 1 else (middle, high)
        assert found.k == pytest.approx(low, rel=1e-10)
    assert 20 < inside < 180  # both kinds of crossing were met


REASONS = {
    "Rprop": (lambda w: optim.Rprop(w), "not linear"),
    "Adafactor": (lambda w: optim.Adafactor(w), "not linear"),
    "Muon": (lambda w: optim.Muon(w), "not diagonal"),
    "LBFGS": (lambda w: optim.LBFGS(w), "LBFGS"),
    "SparseAdam": (lambda w: optim.SparseAdam(w), "cannot be probed"),
    "maximize": (lambda w: optim.SGD(w, lr=0.1, maximize=True), "ascends"),
    "ascent": (lambda w: Filtered(w, 0.1, (-1.0,)), "does not descend"),
    "growing": (lambda w: Filtered(w, 0.1, (1.0,), (1.0, -1.1)), "not finite|lasts"),
}


@pytest.mark.parametrize("name", REASONS)
def test_reasons(name):
    make, reason = REASONS[name]
    found = cx.stability_threshold(make(weights()))
    assert math.isnan(found.k)
    assert math.isnan(found.omega)
    assert re.search(reason, found.reason), found.reason


class Sign(optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(0.1 * p.grad.sign())


class Averaged(optim.Optimizer):
    """Pulls the parameters towards a slow copy: its steps depend on where they are."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            slow = self.state[p].setdefault("slow", p.detach().clone())
            p.sub_(self.param_groups[0]["lr"] * (p.grad + 0.1 * (p - slow)))


@pytest.mark.parametrize(("kind", "reason"), [(Sign, "not linear"), (Averaged, "parameters")])
def test_users_own_without_a_filter(kind, reason):
    assert reason in cx.stability_threshold(kind(weights())).reason


def test_nothing_of_the_users_is_touched():
    model = torch.nn.Linear(3, 2)
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 2)
    called = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    model(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()
    scheduler.step()
    before = [p.detach().clone() for p in model.parameters()]
    state = [{k: t.clone() for k, t in optimizer.state[p].items()} for p in model.parameters()]
    cx.stability_threshold(optimizer)
    assert called == [1]
    for p, old, held in zip(model.parameters(), before, state, strict=True):
        assert torch.equal(p, old)
        assert p.grad is not None
        assert all(torch.equal(optimizer.state[p][k], t) for k, t in held.items())


def test_groups():
    one, two = weights(2)
    groups = [{"params": [one], "lr": 0.1}, {"params": [two], "lr": 0.2, "weight_decay": 0.1}]
    assert cx.stability_threshold(optim.SGD(groups, momentum=0.9)).k == pytest.approx(3.8)
    groups[1]["momentum"] = 0.5
    mixed = optim.SGD(groups, lr=0.1, momentum=0.9)
    found = cx.stability_threshold(mixed)
    assert math.isnan(found.k)
    assert "different thresholds (3.8, 3)" in found.reason
    assert cx.stability_threshold(mixed, group=1).k == pytest.approx(3.0)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"stability_threshold: optimizer must be a torch\.optim"):
        cx.stability_threshold(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="group must be one of 1 parameter groups, got 1"):
        cx.stability_threshold(optim.SGD(weights(), lr=0.1), group=1)
