"""learning_rate_window against closed forms: the linearised edge, the first step, quadratics."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import catapult_ext as cx

spec = importlib.util.spec_from_file_location(
    "window_problems", Path(__file__).with_name("window_problems.py")
)
problems = importlib.util.module_from_spec(spec)
spec.loader.exec_module(problems)
NETS, X, Y = problems.NETS, problems.X, problems.Y
mlp, diverges = problems.mlp, problems.diverges


def linearised_edge(model, beta):
    """Rate beyond which heavy-ball training of the linearised model grows, by bisection."""
    theta = cx.NTK(model, X).dense() / len(X)
    start = (model(X) - Y).detach().reshape(-1)

    def grows(eta):
        residual, velocity = start.clone(), torch.zeros_like(start)
        for _ in range(1200):
            velocity = beta * velocity + theta @ residual
            residual = residual - eta * velocity
        return not bool(residual.norm() <= start.norm())

    low = 1 / torch.linalg.matrix_norm(theta).item()
    high = 8 / torch.linalg.matrix_norm(theta, 2).item()
    while high / low > 1.004:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if grows(middle) else (middle, high)
    return math.sqrt(low * high)


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("name", NETS)
def test_eta_crit_is_where_the_linearised_model_diverges(name, beta):
    model = NETS[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=beta)
    window = cx.learning_rate_window(model, "half_mse", (X, Y), optimizer)
    assert window.eta_crit == pytest.approx(linearised_edge(model, beta), rel=0.01)
    assert window.eta_crit_error <= 1.1e-3 * window.eta_crit


def step_curvature(model, eta):
    """Curvature averaged over the step -eta g, from gradients along it (no loss differences)."""
    weights = list(model.parameters())

    def gradient():
        loss = (model(X) - Y).square().sum() / (2 * len(X))
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, weights)])

    held, first = [p.detach().clone() for p in weights], gradient()
    parts, slopes = first.split([p.numel() for p in weights]), []
    for s in (torch.arange(400, dtype=torch.float64) + 0.5) / 400:
        with torch.no_grad():
            for p, start, g in zip(weights, held, parts, strict=True):
                p.copy_(start - s * eta * g.view(p.shape))
        slopes.append((gradient() @ first).item())
    size = (first @ first).item()
    return 2 * (size - sum(slopes) / len(slopes)) / (eta * size)


@pytest.mark.parametrize("name", NETS)
def test_first_step(name):
    model = NETS[name]()
    window = cx.learning_rate_window(model, "half_mse", (X, Y))
    assert window.eta_c == pytest.approx(2 / step_curvature(model, window.eta_c), rel=0.03)
    assert window.evidence["first_step"]["passes"] <= 16


def test_first_step_of_a_quadratic():
    model = nn.Linear(64, 10, bias=False).double()
    window = cx.learning_rate_window(model, "half_mse", (X, Y))
    hessian = cx.Hessian(model, "half_mse", (X, Y))
    g = hessian.gradient
    directional = (g @ (hessian @ g) / (g @ g)).item()
    assert window.eta_c == pytest.approx(2 / directional, rel=0.01)


@pytest.mark.parametrize("name", NETS)
def test_the_range_holds_the_measured_value(name):
    model = NETS[name]()
    window = cx.learning_rate_window(model, "half_mse", (X, Y))
    measured = cx.learning_rate_window(model, "half_mse", (X, Y), measure=60)
    low, high = measured.eta_max_measured
    assert low < high <= 1.02 * low
    assert measured.eta_max == (low, high)
    assert measured.eta_max_from == "measured"
    assert window.eta_max_from == "trials"
    assert window.eta_max[0] <= low <= high <= window.eta_max[1] <= 4.001 * window.eta_max[0]
    assert window.start < low
    assert window.evidence["trial_steps"] == sum(t.steps for t in window.evidence["trials"])
    # the table's protocol holds on all of these nets
    c = [low * window.lambda0, high * window.lambda0]
    assert window.evidence["c_act"][0] <= c[0] <= c[1] <= window.evidence["c_act"][1]


@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 3.0},
        {"momentum": 0.8, "nesterov": True},
        {"momentum": 0.8, "dampening": 0.5},
        {"momentum": 0.6, "weight_decay": 1.0},
    ],
    ids=["l2", "nesterov", "dampening", "both"],
)
def test_sgd_options_on_a_quadratic(options):
    """A linear model's loss is a quadratic: the edge is exact, and training shows it."""
    model = nn.Linear(64, 10, bias=False).double()

    def optimizer_of(parameters, eta):
        return torch.optim.SGD(parameters, lr=eta, **options)

    held = optimizer_of(model.parameters(), 1.0)
    window = cx.learning_rate_window(model, "half_mse", (X, Y), held, tol=1e-6)
    assert not diverges(model, optimizer_of, 0.99 * window.eta_crit, 1500)
    assert diverges(model, optimizer_of, 1.01 * window.eta_crit, 1500)


def test_adam():
    model = nn.Linear(64, 10, bias=False).double()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.99))
    with pytest.raises(ValueError, match="burn_in"):
        cx.learning_rate_window(model, "half_mse", (X, Y), adam)
    before = model.weight.clone()
    window = cx.learning_rate_window(model, "half_mse", (X, Y), adam, burn_in=20, tol=1e-6)
    assert torch.equal(model.weight, before)
    assert not adam.state
    for _ in range(20):
        adam.zero_grad()
        ((model(X) - Y).square().sum() / (2 * len(X))).backward()
        adam.step()
    stepped = cx.learning_rate_window(model, "half_mse", (X, Y), adam, tol=1e-6)
    assert stepped.lambda0 == pytest.approx(window.lambda0, rel=1e-6)
    state = adam.state[model.weight]
    p = (state["exp_avg_sq"] / (1 - 0.99**20)).sqrt().reshape(-1) + 1e-8
    ggn = cx.GGN(model, "half_mse", (X, Y)).dense()
    exact = torch.linalg.eigvals(ggn / p[:, None]).real.max().item()
    assert window.lambda0 == pytest.approx(exact, rel=1e-5)
    assert window.eta_crit == pytest.approx(2 * 1.9 / 0.1 / exact, rel=1e-5)


def test_advice():
    model = NETS["relu3"]()
    window = cx.learning_rate_window(model, "half_mse", (X, Y))
    for value in (window.eta_crit, window.start, *window.eta_max):
        assert f"{value:.3g}" in window.advice()
    assert f"{window.evidence['trial_steps']} steps in all" in window.advice()
    table = cx.learning_rate_window(model, "half_mse", (X, Y), trial_steps=0)
    assert "ReLU, two or more hidden layers" in table.advice()
    assert "NTK-like initialisation" in table.advice()
    assert table.start is None
    labels = Y.argmax(1)
    nothing = cx.learning_rate_window(model, "cross_entropy", (X, labels), trial_steps=0)
    assert nothing.eta_max is None
    assert "Nothing is known about training" in nothing.advice()
    for said in (window, table, nothing):
        assert "stabl" not in said.advice()


def test_a_model_linear_in_its_parameters_has_no_catapult():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    window = cx.learning_rate_window(model, "half_mse", (X, Y), tol=1e-6)
    assert window.eta_max == pytest.approx((window.eta_crit,) * 2)
    assert not window.evidence["trials"]
    assert "no catapult" in window.advice()
    measured = cx.learning_rate_window(model, "half_mse", (X, Y), measure=400)
    assert measured.eta_max_measured == pytest.approx((window.eta_crit,) * 2, rel=0.05)
    # the curvature of cross-entropy falls with confidence
    labels = Y.argmax(1)
    softer = cx.learning_rate_window(model, "cross_entropy", (X, labels))
    assert softer.eta_max_from == "trials"
    assert softer.eta_max[1] > softer.eta_crit


def test_the_optimizer_must_be_the_models():
    model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)).double()
    some = torch.optim.SGD(model[2].parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"freeze those it leaves out\), got 0.weight, 0.bias"):
        cx.learning_rate_window(model, "half_mse", (X, Y), some)
    model[0].requires_grad_(False)
    found = cx.learning_rate_window(model, "half_mse", (X, Y), some, tol=1e-6)
    top = cx.eigsh(cx.GGN(model, "half_mse", (X, Y), params="2.*"), tol=1e-6).eigenvalues.item()
    assert found.eta_crit == pytest.approx(2 / top, rel=1e-5)
    other = torch.optim.SGD([*model[2].parameters(), nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match="and no others, got 1 of another model"):
        cx.learning_rate_window(model, "half_mse", (X, Y), other)
    groups = [{"params": [model[2].weight], "lr": 0.0}, {"params": [model[2].bias]}]
    with pytest.raises(ValueError, match="first parameter group's learning rate must be > 0"):
        cx.learning_rate_window(model, "half_mse", (X, Y), torch.optim.SGD(groups, lr=0.1))


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_chosen_parameters_keep_their_groups_and_state(kind):
    def made(frozen):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)).double()
        groups = [
            {"params": [model[0].bias], "lr": 0.5},
            {"params": [model[0].weight, model[2].weight], "lr": 0.02, "weight_decay": 1e-3},
            {"params": [model[2].bias], "lr": 0.01},
        ]
        if kind == "sgd":
            optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        else:
            optimizer = torch.optim.AdamW(groups, lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (model(X) - Y).square().mean().backward()
            optimizer.step()
        if frozen:  # the same by hand: groups and state of what is left
            model[0].requires_grad_(False)
            for p in model[0].parameters():
                del optimizer.state[p]
            optimizer.param_groups.pop(0)
            optimizer.param_groups[0]["params"].pop(0)
        return model, optimizer

    model, optimizer = made(True)
    right = cx.learning_rate_window(model, "half_mse", (X, Y), optimizer, trial_steps=4)
    model, optimizer = made(False)
    before = [p.clone() for p in model.parameters()]
    found = cx.learning_rate_window(
        model, "half_mse", (X, Y), optimizer, trial_steps=4, params="2.*"
    )
    for name in ("lambda0", "eta_crit", "eta_c", "eta_max", "start", "rule"):
        assert getattr(found, name) == getattr(right, name), name
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.requires_grad for p in model.parameters())
    assert [len(g["params"]) for g in optimizer.param_groups] == [1, 2, 1]
    assert len(optimizer.state) == 4
    some = torch.optim.SGD([model[0].weight, model[2].weight], lr=0.1)
    with pytest.raises(ValueError, match=r"freeze those it leaves out\), got 2.bias"):
        cx.learning_rate_window(model, "half_mse", (X, Y), some, params="2.*")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"burn_in": -1}, ValueError, "burn_in"),
        ({"burn_in": 3}, ValueError, "burn_in must be 0 without an optimizer"),
        ({"measure": -1}, ValueError, "measure"),
        ({"trial_steps": -1}, ValueError, "trial_steps"),
        ({"data": X}, TypeError, "data must be a pair"),
        ({"loss": "quarter_mse"}, ValueError, "loss must be one of"),
        ({"optimizer": torch.optim.LBFGS([nn.Parameter(X)])}, TypeError, "needs no closure"),
        ({"optimizer": "adam"}, TypeError, "torch.optim.Optimizer"),
        ({"model": nn.Sequential(nn.Linear(64, 10), nn.Dropout(0.5))}, ValueError, "dropout"),
    ],
)
def test_refused(change, error, text):
    arguments = {"model": NETS["relu1"](), "loss": "half_mse", "data": (X, Y)} | change
    with pytest.raises(error, match=text):
        cx.learning_rate_window(**arguments)


def test_a_loss_may_be_any_function():
    def half_mse(f, y):
        return (f - y).square().sum() / (2 * len(f))

    named, own = (
        cx.learning_rate_window(NETS["relu1"](), loss, (X, Y)) for loss in ("half_mse", half_mse)
    )
    assert own.eta_crit == pytest.approx(named.eta_crit, rel=1e-3)
    assert own.eta_c == pytest.approx(named.eta_c, rel=1e-3)
