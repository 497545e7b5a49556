"""Right numbers of models that keep state, share modules or derive weights, against brute force."""

import copy
import importlib.util
import random as python_random
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import catapult_ext as cx


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hard = load(Path(__file__).with_name("hard_models.py"))


def moved(model):
    return [p for p in model.parameters() if p.requires_grad]


def flat(grads, params):
    pairs = zip(grads, params, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs])


def jacobian(outputs, params):
    """J row by row, of outputs with a graph."""
    return torch.stack(
        [
            flat(torch.autograd.grad(o, params, retain_graph=True, allow_unused=True), params)
            for o in outputs.reshape(-1)
        ]
    )


def second(loss, params):
    """The Hessian of a scalar, row by row."""
    first = flat(torch.autograd.grad(loss, params, create_graph=True, allow_unused=True), params)
    return torch.stack(
        [
            flat(torch.autograd.grad(g, params, retain_graph=True, allow_unused=True), params)
            if g.requires_grad
            else torch.zeros_like(first)
            for g in first
        ]
    )


@pytest.fixture(autouse=True)
def exact_weight_norm(monkeypatch):
    """Weight norm of plain operations: the double backward of torch's fused one is wrong."""

    def composed(v, g, dim=0):
        rest = [i for i in range(v.dim()) if i != dim]
        return v * (g / torch.linalg.vector_norm(v, dim=rest, keepdim=True))

    monkeypatch.setattr(torch, "_weight_norm", composed)
    monkeypatch.setattr(sys.modules["torch.nn.utils.weight_norm"], "_weight_norm", composed)


def close(got, exact, tol=1e-9):
    assert got.shape == exact.shape
    assert (got - exact).norm() <= tol * exact.norm()


def check(model, x, reference, tol=1e-9, second_order=True):
    """J, NTK, GGN and Hessian of ``model`` against those of ``reference``, another instance."""
    y = torch.linspace(-1, 1, 2 * len(x), dtype=x.dtype).view(len(x), 2)
    params, f = moved(reference), reference(x.clone())
    j, eye = jacobian(f, params), torch.eye(2 * len(x)).to(x)
    kernel = cx.NTK(model, x)
    close(kernel.dense(), j @ j.T, tol)
    close(kernel @ eye, j @ j.T, tol)
    close(cx.Jacobian(model, x).T @ eye, j.T, tol)
    one = torch.eye(j.shape[1]).to(x)
    close(cx.GGN(model, "half_mse", (x, y)) @ one, j.T @ j / len(x), tol)
    if second_order:
        h = second((f - y).square().mean(), params)
        close(cx.Hessian(model, nn.MSELoss(), (x, y)) @ one, h, tol)


@pytest.mark.parametrize("name", [n for n in hard.MODELS if n != "scripted"])
def test_against_another_instance(name):
    check(*hard.MODELS[name](), hard.MODELS[name]()[0])


def test_scripted_parts():
    model, x = hard.MODELS["scripted"]()
    check(model, x, hard.MODELS["scripted"]()[0], second_order=False)


# MONAI DynUNet, performer, SchNet, prefix tuning: modules registered twice, trained meanwhile
@pytest.mark.parametrize("name", ["twice", "sequential_twice", "aliased"])
def test_following_the_curvature_does_not_change_the_training(name):
    def trained(follow):
        model, x = hard.MODELS[name]()
        y = torch.sin(x[:, :2])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"optimizer": optimizer, "every": 10}
        tracker = cx.CurvatureTracker(model, "half_mse", (x, y), **options) if follow else None
        for _ in range(30):
            optimizer.zero_grad()
            loss = (model(x) - y).square().sum() / 64
            loss.backward()
            optimizer.step()
            if tracker:
                tracker.step(loss.detach())
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    assert torch.equal(trained(False), trained(True))


def test_a_sweep_reports_the_phases_of_the_same_function_without_sharing():
    class Once(nn.Module):
        def __init__(self, twice):
            super().__init__()
            self.a, self.o = twice[0], twice[4]

        def forward(self, x):
            return self.o(torch.tanh(self.a(torch.tanh(self.a(x)))))

    model, x = hard.MODELS["sequential_twice"]()
    plain = Once(copy.deepcopy(model))
    y = torch.sin(x[:, :2])
    one, two = (cx.sweep(m, (x, y), c=[0.5, 1.5, 12.0], steps=20) for m in (model, plain))
    assert list(one.phases) == list(two.phases)


@pytest.mark.parametrize(
    "wrap",
    [parametrizations.orthogonal, parametrizations.weight_norm, parametrizations.spectral_norm],
)
@pytest.mark.parametrize("passed_before", [False, True])
def test_inside_cached_parametrizations(wrap, passed_before):
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 2)).double().eval()
    x, y = hard.vectors(), torch.zeros(5, 2, dtype=torch.float64)
    reference = model(x)
    h = second((reference - y).square().mean(), moved(model))
    j, own = jacobian(reference, moved(model)), moved(model)
    one = torch.eye(j.shape[1]).double()
    with parametrize.cached():
        if passed_before:
            model(x)
        kernel = cx.NTK(model, x)
        close(kernel.dense(), j @ j.T)
        close(kernel @ torch.eye(10).double(), j @ j.T)
        close(cx.Hessian(model, nn.MSELoss(), (x, y)) @ one, h)
        close(cx.Hessian(model, nn.MSELoss(), (x, y), hvp="forward") @ one, h)
        loss = (model(x) - y).square().mean()  # the user's own pass computes by its own weights
        grads = torch.autograd.grad(loss, own, allow_unused=True)
    expected = torch.autograd.grad((model(x) - y).square().mean(), own)
    close(flat(grads, own), flat(expected, own))


def test_operators_of_threads_share_nothing():
    model, x = hard.MODELS["carried"]()
    reference = hard.MODELS["carried"]()[0]
    j = jacobian(reference(x), moved(reference))
    eye, found = torch.eye(10).double(), []

    def work():
        for _ in range(4):
            found.append(cx.NTK(model, x) @ eye)

    threads = [threading.Thread(target=work) for _ in range(4)]
    before = torch.utils.checkpoint.CheckpointFunction
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    for kernel in found:
        close(kernel, j @ j.T)
    assert torch.utils.checkpoint.CheckpointFunction is before


def test_no_second_copy_of_frozen_parameters():
    model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2))
    model[0].requires_grad_(False)
    operator = cx.NTK(model, hard.vectors().float())
    snapshot = operator.linearization.snapshot
    tree = snapshot._template.tree(snapshot._tensors(snapshot.params)).model
    held = {**snapshot.params, **snapshot.constants}
    assert all(p is held[name] for name, p in tree.named_parameters())


def test_a_generator_that_cannot_be_copied_is_named():
    class Draws(nn.Linear):
        def __init__(self):
            super().__init__(4, 2)
            self.factors = (k for k in range(100))

        def forward(self, x):
            return super().forward(x) * next(self.factors)

    model = Draws().double()
    with pytest.raises((TypeError, ValueError), match="Python generator"):
        cx.NTK(model, hard.vectors())
    assert next(model.factors) == 0


class Drawing(nn.Linear):
    """Draws random numbers past torch: they matter, or a layer is dropped in training alone."""

    def __init__(self, draw, matters):
        super().__init__(4, 2)
        self.draw, self.matters = draw, matters

    def forward(self, x):
        factor = self.draw()
        return super().forward(x) * (factor if self.matters else 1)


def of_python():
    return python_random.random()


def of_numpy():
    return np.random.random()


@pytest.mark.parametrize("draw", [of_python, of_numpy])
def test_random_numbers_of_python_and_numpy(draw):
    x = hard.vectors()
    before = python_random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]
    with pytest.raises(ValueError, match="two forward passes must give the same outputs"):
        cx.NTK(Drawing(draw, True).double(), x, engine="autograd")
    kernel = cx.NTK(Drawing(draw, False).double(), x, engine="autograd")
    assert kernel.diagonal().min() > 0
    after = python_random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]
    assert before == after
