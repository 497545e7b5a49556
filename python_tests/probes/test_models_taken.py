"""Window, tracker and edge meter on complex parameters, derivatives inside, wrapped optimizers.

Truth is brute force in float64: Jacobians by autograd, second moments by hand.
"""

import copy

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.probes.problem import Problem

NORMAL = torch.Generator().manual_seed(3)
X = torch.rand(6, 2, generator=NORMAL).double()
Y = torch.randn(6, 2, generator=NORMAL).double()
SIGNALS = torch.randn(6, 8, generator=NORMAL).double()


class Forces(nn.Module):
    """Minus the gradient of a potential, made inside of ``forward``."""

    def __init__(self):
        super().__init__()
        self.potential = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x):
        x = x.detach().requires_grad_()
        return -torch.autograd.grad(self.potential(x).sum(), x, create_graph=True)[0]


class Spectral(nn.Module):
    """A Fourier layer with complex weights, or with the same numbers in pairs of real ones."""

    def __init__(self, weights):
        super().__init__()
        self.weights, self.out = nn.Parameter(weights.clone()), nn.Linear(8, 2)

    def forward(self, x):
        w = self.weights if self.weights.is_complex() else torch.view_as_complex(self.weights)
        return self.out(torch.fft.irfft(torch.tanh(torch.fft.rfft(x) * w), n=8))


def forces():
    torch.manual_seed(0)
    return Forces().double()


def spectral():
    """The same model with complex and with real parameters."""
    torch.manual_seed(0)
    start = torch.randn(5, dtype=torch.cdouble)
    net = Spectral(start)
    net.out.double()
    pairs = Spectral(torch.view_as_real(start))
    pairs.out = copy.deepcopy(net.out)
    return net, pairs


def jacobian(model, x):
    """(N O, P) of real parameters, by one backward pass an output."""
    weights = list(model.parameters())
    rows = []
    for value in model(x).reshape(-1):
        found = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
        pairs = zip(found, weights, strict=True)
        rows.append(
            torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
        )
    return torch.stack(rows)


def test_derivatives_by_the_inputs_inside_of_forward():
    model = forces()
    before = copy.deepcopy(model.state_dict())
    window = cx.learning_rate_window(model, "half_mse", (X, Y))
    j = jacobian(model, X)
    top = torch.linalg.eigvalsh(j.T @ j / len(X))[-1].item()
    assert window.eta_crit == pytest.approx(2 / top, rel=2e-3)
    weights = [p for p in model.parameters()]

    def loss(rate):
        value = (model(X) - Y).square().sum() / (2 * len(X))
        found = torch.autograd.grad(value, weights, allow_unused=True)
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, g in zip(moved.parameters(), found, strict=True):
                p -= 0.0 if g is None else rate * g
        return ((moved(X) - Y).square().sum() / (2 * len(X))).item()

    assert loss(0.98 * window.eta_c) < loss(0.0) < loss(1.02 * window.eta_c)
    assert window.start is not None
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_pass_without_gradients_keeps_no_graph():
    model = forces()
    problem = Problem.of("half_mse", (X, Y), "test")
    with torch.no_grad():
        out = problem.outputs(model)
    assert not out.requires_grad
    torch.testing.assert_close(out, model(X).detach())
    assert problem.outputs(model).requires_grad
    seen, _ = cx.probes.activity(model, X)
    assert torch.equal(seen, out)
    assert not seen.requires_grad


def test_an_error_of_the_model_itself_is_shown():
    class Broken(nn.Linear):
        def forward(self, x):
            raise RuntimeError("no such layer")

    with pytest.raises(ValueError, match="no such layer"), torch.no_grad():
        Problem.of("half_mse", (X, Y), "test").outputs(Broken(2, 2))


@pytest.mark.parametrize("inside", [False, True])
def test_under_inference_mode(inside):
    model = forces()
    expected = cx.learning_rate_window(model, "half_mse", (X, Y))
    with torch.inference_mode():
        data = (X.clone(), Y.clone()) if inside else (X, Y)
        window = cx.learning_rate_window(model, "half_mse", data)
        assert torch.is_inference_mode_enabled()
    assert window.eta_crit == expected.eta_crit
    assert window.eta_c == expected.eta_c
    assert window.start == expected.start


MAKERS = {
    "gradient descent": lambda p: None,
    "decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.3),
    "two groups": lambda p: torch.optim.SGD(
        [{"params": p[:1], "lr": 0.1, "weight_decay": 0.3}, {"params": p[1:], "lr": 0.05}]
    ),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
}


def stepped(model, make):
    """The optimizer after two steps."""
    optimizer = make(list(model.parameters()))
    for _ in range(0 if optimizer is None else 2):
        optimizer.zero_grad()
        (model(SIGNALS) - Y).square().sum().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", MAKERS)
def test_complex_parameters_are_pairs_of_real_ones(name):
    net, pairs = spectral()
    options = {"trial_steps": 4, "tol": 1e-6}
    found = [
        cx.learning_rate_window(m, "half_mse", (SIGNALS, Y), stepped(m, MAKERS[name]), **options)
        for m in (net, pairs)
    ]
    for attribute in ("lambda0", "eta_crit", "eta_c", "start"):
        values = [getattr(w, attribute) for w in found]
        assert values[0] == pytest.approx(values[1], rel=1e-4), attribute


def test_complex_parameters_under_adam_by_brute_force():
    net, pairs = spectral()
    optimizer, _ = stepped(net, MAKERS["Adam"]), stepped(pairs, MAKERS["Adam"])
    second = []
    for p in net.parameters():
        v = optimizer.state[p]["exp_avg_sq"]
        second.append((torch.view_as_real(v) if v.is_complex() else v).flatten())
    inverse = 1 / ((torch.cat(second) / (1 - 0.999**2)).sqrt() + 1e-8)
    j = jacobian(pairs, SIGNALS) * inverse.sqrt()
    top = torch.linalg.eigvalsh(j @ j.T / len(X))[-1].item()
    window = cx.learning_rate_window(net, "half_mse", (SIGNALS, Y), optimizer)
    assert window.lambda0 == pytest.approx(top, rel=2e-3)
    assert window.eta_crit == pytest.approx(38 / top, rel=2e-3)
    tracker = cx.CurvatureTracker(net, "half_mse", (SIGNALS, Y), optimizer=optimizer, every=1)
    tracker.step(1.0)
    assert tracker.probes[-1]["values"][0] == pytest.approx(top, rel=2e-3)


class Wrapper(torch.optim.Optimizer):
    """Stands in front of an optimizer, as those of training libraries do."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)

    def step(self, closure=None):
        return self.optimizer.step(closure)


@pytest.mark.parametrize("name", [n for n in MAKERS if n != "gradient descent"])
def test_a_wrapped_optimizer_is_the_one_inside(name):
    _, model = spectral()
    optimizer = stepped(model, MAKERS[name])
    data = (SIGNALS, Y)
    plain = cx.learning_rate_window(model, "half_mse", data, optimizer, trial_steps=4)
    window = cx.learning_rate_window(model, "half_mse", data, Wrapper(optimizer), trial_steps=4)
    assert window.eta_crit == plain.eta_crit
    assert window.eta_c == plain.eta_c
    assert window.start == plain.start
    assert window.rule == f"Wrapper of {plain.rule}"


@pytest.mark.parametrize("name", ["gradient descent", "decay", "Adam", "RMSprop", "Adadelta"])
def test_the_edge_meter_takes_complex_parameters_as_pairs(name):
    rows = []
    for model in spectral():
        optimizer = MAKERS[name](list(model.parameters()))
        optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.02)

        def evaluate(model=model):
            return (model(SIGNALS) - Y).square().mean()

        with cx.EdgeMeter(model, optimizer, curvature_every=2, tol=1e-6) as meter:
            for _ in range(5):
                optimizer.zero_grad()
                loss = evaluate()
                loss.backward()
                optimizer.step()
                meter.step(loss.item(), evaluate=evaluate)
        rows.append([dict(row) for row in meter.rows])
    assert any(row["eta_sharpness"] > 0 for row in rows[0])
    numbers = ("descent", "zeta", "curvature", "eta_sharpness", "eta_curvature", "chi", "varsigma")
    for key in (*numbers, "eta_batch_sharpness", "tau"):
        found, expected = ([row[key] for row in each] for each in rows)
        assert found == pytest.approx(expected, rel=1e-4, nan_ok=True), key
