"""learning_rate_window on training: trials, groups, optimizers, activations, flags."""

import copy
import importlib.util
import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.probes.activation_table import activation_row
from catapult_ext.probes.observables import activity

spec = importlib.util.spec_from_file_location(
    "window_problems", Path(__file__).with_name("window_problems.py")
)
problems = importlib.util.module_from_spec(spec)
spec.loader.exec_module(problems)
NETS, X, Y = problems.NETS, problems.X, problems.Y
mlp, diverges = problems.mlp, problems.diverges


def default_mlp(activation):
    torch.manual_seed(0)
    sizes = [64, 96, 96, 96, 10]
    layers = [nn.Linear(sizes[0], sizes[1])]
    for d, p in itertools.pairwise(sizes[1:]):
        layers += [activation(), nn.Linear(d, p)]
    return nn.Sequential(*layers).double()


def trains(model, loss, y, optimizer_of, eta, steps=200):
    """Whether the loss ends below its start and no layer is dead."""
    model = copy.deepcopy(model)
    optimizer = optimizer_of(model.parameters(), eta)
    losses = []
    for _ in range(steps + 1):
        optimizer.zero_grad()
        value = loss(model(X), y)
        value.backward()
        losses.append(value.item())
        optimizer.step()
    found = activity(model, X)[1]
    return losses[-1] < losses[0] and (found is None or found.worst_inactive <= 0.95)


def largest_that_trains(model, loss, y, optimizer_of, eta):
    """The last that trains before two in a row fail, going up in quarters."""
    last, failures = 0.0, 0
    while failures < 2:
        good = trains(model, loss, y, optimizer_of, eta)
        last, failures = (eta, 0) if good else (last, failures + 1)
        eta *= 1.25
    return last


def sgd(weights, eta):
    return torch.optim.SGD(weights, lr=eta)


def heavy(weights, eta):
    return torch.optim.SGD(weights, lr=eta, momentum=0.9)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh])
def test_default_initialisation_and_cross_entropy(activation):
    """Curvature grows tens of times from this start: no rate near eta_crit trains."""
    model, labels = default_mlp(activation), Y.argmax(1)
    window = cx.learning_rate_window(model, "cross_entropy", (X, labels))
    loss = nn.functional.cross_entropy
    assert not trains(model, loss, labels, sgd, window.eta_crit)
    assert window.eta_max[1] < window.eta_crit
    largest = largest_that_trains(model, loss, labels, sgd, window.start)
    assert window.eta_max[0] <= largest <= window.eta_max[1]
    assert largest <= 5 * window.start
    assert window.evidence["table"] is None


def test_heavy_ball_on_squared_loss():
    """The table of gradient descent times the threshold's ratio was two to four times too high."""
    model = NETS["relu3"]()
    held = heavy(model.parameters(), 1.0)
    window = cx.learning_rate_window(model, "half_mse", (X, Y), held)
    assert window.eta_crit == pytest.approx(3.8 / window.lambda0)
    assert window.evidence["table"] is None

    def half(f, y):
        return (f - y).square().sum() / (2 * len(f))

    largest = largest_that_trains(model, half, Y, heavy, window.start)
    assert window.eta_max[0] <= largest <= window.eta_max[1]
    assert largest <= 5 * window.start
    assert largest < 4 * window.eta_crit  # where the old range began


def test_a_measurement_overrules_the_linearised_edge():
    model, labels = default_mlp(nn.ReLU), Y.argmax(1)
    window = cx.learning_rate_window(model, "cross_entropy", (X, labels), measure=60)
    low, high = window.eta_max_measured
    assert high < window.eta_crit
    assert window.start < low
    text = window.advice()
    assert f"{low:.3g} trained for 60 steps and {high:.3g} did not" in text
    assert "the measurement overrules it" in text


class Functional(nn.Module):
    def __init__(self, body, activation):
        super().__init__()
        self.layers = nn.ModuleList(m for m in body if list(m.parameters()))
        self.activation = activation

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def row_of(model, x=X):
    return activation_row(model, x, lambda m: m(x))


def test_activations_are_read_from_operations():
    body = NETS["relu3"]()
    assert row_of(body)[0] == "ReLU, two or more hidden layers"
    for call in (nn.functional.relu, torch.relu, lambda z: z.relu_()):
        assert row_of(Functional(body, call)) == row_of(body)
    assert row_of(Functional(mlp(1, "gelu"), nn.functional.gelu))[0] == "GELU, one hidden layer"
    assert row_of(mlp(1, nn.Identity))[0] == "linear, one hidden layer"
    assert row_of(nn.Linear(64, 10).double())[0] == "a model linear in its parameters"
    for outside in (
        mlp(2, nn.Mish),
        Functional(body, lambda z: z + torch.relu(z)),
        default_mlp(nn.ReLU),
        nn.Sequential(nn.Linear(64, 10), nn.LayerNorm(10), nn.ReLU(), nn.Linear(10, 4)).double(),
        nn.Sequential(nn.Linear(64, 10), nn.LeakyReLU(0.01), nn.Linear(10, 4)).double(),
    ):
        assert row_of(outside) is None
    encoder = nn.TransformerEncoderLayer(64, 2, 32, dropout=0.0, batch_first=True).double()
    assert row_of(encoder, X[:, None]) is None


def test_dead_functional_units_are_seen():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(64, 8).double(), nn.Linear(8, 10).double()

        def forward(self, x):
            return self.two(torch.relu_(self.one(x)))

    model = Dead()
    with torch.no_grad():
        model.one.bias.fill_(-100.0)
    outputs, found = activity(model, X)
    assert found.worst_inactive == 1.0
    assert torch.equal(outputs, model.two.bias.expand(len(X), 10))
    encoder = nn.TransformerEncoderLayer(64, 2, 32, dropout=0.0, batch_first=True).double().eval()
    assert 0 < activity(encoder, X[:, None])[1].inactive < 1


def test_burn_in_and_curvature_use_one_mode_of_batch_norm():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    model, labels = body.double(), Y.argmax(1)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    data = (X, labels)
    window = cx.learning_rate_window(
        model, "cross_entropy", data, adam, burn_in=10, tol=1e-6, trial_steps=0
    )
    held = cx.models.with_batch_stats(model, "coupled")
    own = torch.optim.Adam(held.parameters(), lr=1e-2)
    for _ in range(10):
        own.zero_grad()
        nn.functional.cross_entropy(held(X), labels).backward()
        own.step()
    seen = cx.Preconditioned(cx.GGN(held, "cross_entropy", data), own, held)
    top = cx.eigsh(seen, tol=1e-8).eigenvalues.item()
    assert window.lambda0 == pytest.approx(top, rel=1e-5)
    assert int(model[1].num_batches_tracked) == 0


def test_groups_of_different_rates_and_decays():
    """On a quadratic the edge is exact: the first rate scales all groups."""
    torch.manual_seed(0)
    model = nn.Linear(64, 10).double()
    ratio, alphas = 0.01, (2.0, 0.5)

    def optimizer_of(weights, eta):
        weight, bias = weights
        groups = [
            {"params": [weight], "lr": eta, "weight_decay": alphas[0]},
            {"params": [bias], "lr": ratio * eta, "weight_decay": alphas[1]},
        ]
        return torch.optim.SGD(groups, lr=eta, momentum=0.5)

    held = optimizer_of(model.parameters(), 0.3)
    window = cx.learning_rate_window(model, "half_mse", (X, Y), held, tol=1e-8)
    sizes = torch.tensor([640, 10])
    rates = torch.tensor([1.0, ratio]).double().repeat_interleave(sizes)
    decays = torch.tensor(alphas).double().repeat_interleave(sizes)
    hessian = cx.GGN(model, "half_mse", (X, Y)).dense() + decays.diag()
    top = torch.linalg.eigvals(rates[:, None] * hessian).real.max().item()
    assert window.lambda0 == pytest.approx(top, rel=1e-6)
    assert window.eta_crit == pytest.approx(3 / top, rel=1e-6)
    assert not diverges(model, optimizer_of, 0.99 * window.eta_crit, 1500)
    assert diverges(model, optimizer_of, 1.01 * window.eta_crit, 1500)
    two = [{"params": [model.weight], "momentum": 0.9}, {"params": [model.bias]}]
    window = cx.learning_rate_window(model, "half_mse", (X, Y), torch.optim.SGD(two, lr=0.1))
    assert math.isnan(window.eta_crit)
    assert "different thresholds" in window.advice()
    assert "group=" not in window.advice()


LINEAR = {
    "RMSprop": lambda w: torch.optim.RMSprop(w, lr=1e-3, momentum=0.5),
    "Adagrad": lambda w: torch.optim.Adagrad(w, lr=1e-2),
    "NAdam": lambda w: torch.optim.NAdam(w, lr=1e-3),
    "Adamax": lambda w: torch.optim.Adamax(w, lr=1e-3),
}


@pytest.mark.parametrize("name", LINEAR)
def test_every_linear_optimizer_has_its_edge(name):
    model = NETS["tanh2"]()
    optimizer = LINEAR[name](model.parameters())
    for _ in range(5):
        optimizer.zero_grad()
        ((model(X) - Y).square().sum() / (2 * len(X))).backward()
        optimizer.step()
    window = cx.learning_rate_window(model, "half_mse", (X, Y), optimizer, trial_steps=0)
    assert window.eta_crit == pytest.approx(cx.stability_threshold(optimizer).k / window.lambda0)
    state = optimizer.state[next(model.parameters())]
    key = {"RMSprop": "square_avg", "Adagrad": "sum", "NAdam": "exp_avg_sq"}.get(name)
    if key is None:
        inverse = torch.cat(
            [1 / optimizer.state[p]["exp_inf"].flatten() for p in model.parameters()]
        )
    else:
        fade = 1 - 0.999 ** float(state["step"]) if name == "NAdam" else 1.0
        seconds = [optimizer.state[p][key].flatten() / fade for p in model.parameters()]
        inverse = 1 / (torch.cat(seconds).sqrt() + optimizer.param_groups[0]["eps"])
    seen = cx.GGN(model, "half_mse", (X, Y))
    top = cx.eigsh(cx.Preconditioned.by(seen, inverse), tol=1e-6).eigenvalues.item()
    assert window.lambda0 == pytest.approx(top, rel=2e-3)


def test_burn_in_of_a_state_that_is_filled_from_the_start():
    model = NETS["tanh2"]()
    adagrad = torch.optim.Adagrad(model.parameters(), lr=1e-2)
    with pytest.raises(ValueError, match="Adagrad must have taken steps"):
        cx.learning_rate_window(model, "half_mse", (X, Y), adagrad)
    window = cx.learning_rate_window(
        model, "half_mse", (X, Y), adagrad, burn_in=3, trial_steps=0, tol=1e-2
    )
    assert window.evidence["burn_in"] == 3


@pytest.mark.parametrize("kind", [torch.optim.Rprop, torch.optim.Adafactor])
def test_an_optimizer_without_threshold_is_tried(kind):
    model = NETS["tanh2"]()
    optimizer = kind(model.parameters(), lr=1e-3)
    window = cx.learning_rate_window(model, "half_mse", (X, Y), optimizer, trial_steps=8)
    assert math.isnan(window.eta_crit)
    assert window.eta_c is None
    assert window.evidence["reason"] in window.advice()
    assert not optimizer.state
    if kind is torch.optim.Rprop:
        assert window.eta_max_from == "trials"
    else:  # its steps do not grow with the rate
        assert window.eta_max is None
        assert "every rate that was tried trained" in window.advice()
        assert "Nothing is known" not in window.advice()


def test_a_top_vector_held_by_eps_is_flagged():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)).double()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        adam.zero_grad()
        ((model(X) - Y).square().sum() / (2 * len(X))).backward()
        adam.step()
    assert not cx.learning_rate_window(model, "half_mse", (X, Y), adam, trial_steps=0).flags
    adam.state[model[2].bias]["exp_avg_sq"].zero_()  # as of a gradient that cancels
    window = cx.learning_rate_window(model, "half_mse", (X, Y), adam, trial_steps=0)
    assert window.evidence["held_by_eps"] > 0.9
    assert "second moment is about eps" in window.flags[0]
    assert window.flags[0] in window.advice()


def test_everything_is_left_as_it_is():
    model, labels = default_mlp(nn.GELU), Y.argmax(1)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    cx.learning_rate_window(model, "cross_entropy", (X, labels), adam, burn_in=5, trial_steps=8)
    assert all(torch.equal(before[k], t) for k, t in model.state_dict().items())
    assert not adam.state
    assert adam.param_groups[0]["lr"] == 1e-2
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["relu-mlp-default", "relu-mlp-ntk"])
def test_the_nets_of_the_benchmark(name):
    """On a seed that neither set the rule nor is kept with the results."""
    command = ["-m", "benchmarks.largest_rates.check", "--seeds", "30", "--nets", name]
    ran = subprocess.run(
        [sys.executable, *command],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"start_trains": 1' in ran.stdout
    assert '"start_at_least_a_fifth": 1' in ran.stdout
    assert '"range_holds": 1' in ran.stdout
