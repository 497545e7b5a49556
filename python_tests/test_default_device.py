"""Entry points on CPU data while torch's default device is another one."""

from contextlib import contextmanager

import pytest
import torch

import catapult_ext as cx

A = torch.diag(torch.tensor([3.0, 1.0, 1.0, 0.5]))
X, Y = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.ones(12, 3)


@contextmanager
def default_device(name):
    before = torch.get_default_device()
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(before if before.type != "cpu" else None)


def _tracked(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with cx.CurvatureTracker(model, "half_mse", (X, Y), optimizer=optimizer, kernel_samples=4) as t:
        for _ in range(12):
            optimizer.zero_grad()
            loss = (model(X) - Y).square().sum() / 24
            loss.backward()
            optimizer.step()
            t.step(loss)
    return torch.as_tensor(t.probes[-1]["values"], device="cpu")


def _window(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found = cx.learning_rate_window(model, "half_mse", (X, Y), optimizer, measure=5)
    return torch.as_tensor([found.eta_crit, *found.eta_max_measured], device="cpu")


def _simulated(_, **changed):
    given = {"c": [0.5, 1.0], "width": 100, "x": X, "y": Y[:, 0], "steps": 3}
    return cx.toy.simulate(**(given | changed)).loss


DATA = (X, Y)
CALLS = {
    "eigsh": lambda m: cx.eigsh(A, 3).eigenvalues,
    "mixed": lambda m: cx.eigsh(A, precision="mixed").eigenvalues,
    "GGN": lambda m: cx.eigsh(cx.GGN(m, "half_mse", DATA), 2).eigenvalues,
    "GGN_autograd": lambda m: (
        cx.eigsh(cx.GGN(m, "half_mse", DATA, engine="autograd"), 2).eigenvalues
    ),
    "Hessian": lambda m: cx.eigsh(cx.Hessian(m, "half_mse", DATA), 2).eigenvalues,
    "EmpiricalFisher": lambda m: cx.eigsh(cx.EmpiricalFisher(m, "half_mse", DATA)).eigenvalues,
    "StreamedGGN": lambda m: cx.eigsh(cx.StreamedGGN(m, "half_mse", [DATA])).eigenvalues,
    "NTK": lambda m: cx.eigsh(cx.NTK(m, X), 2).eigenvalues,
    "dense": lambda m: cx.NTK(m, X).dense(outputs="trace"),
    "lanczos_dense": lambda m: cx.ops.lanczos_dense(A[None], 2).eigenvalues,
    "trace": lambda m: cx.hutchinson_trace(A).value,
    "diagonal": lambda m: cx.hutchinson_diagonal(A).value,
    "solve": lambda m: cx.solve(A, A[:, 0] + 1, shift=1.0, method="cg", preconditioner=1).x,
    "solve, operator": lambda m: cx.solve(cx.NTK(m, X), cx.NTK(m, X).diagonal(), shift=1.0).x,
    "cholesky": lambda m: cx.cholesky(A, shift=1.0).solve(A[:, 0]).x,
    "left out": lambda m: cx.leave_one_out(cx.cholesky(A, shift=1.0), A[:, 0]).errors,
    "logdet": lambda m: cx.logdet(cx.NTK(m, X), shift=1.0, samples=2).value,
    "function": lambda m: cx.matrix_function(A, torch.exp, A[:, 0]).value,
    "density": lambda m: cx.spectral_density(A).nodes,
    "TopTracker": lambda m: cx.TopTracker(2).update(A).eigenvalues,
    "CurvatureTracker": _tracked,
    "window": _window,
    "simulate": _simulated,
    "simulate_relu": lambda m: _simulated(m, activation="relu", c=[0.5]),
    "simulate_lists": lambda m: cx.toy.simulate(eta=[0.1], width=9, x=[[1.0]], y=[0], steps=2).loss,
    "schedule": lambda m: _simulated(m, c=cx.toy.warm_up([0.5], 3, 2)),
    "phase_diagram": lambda m: torch.from_numpy(
        cx.toy.phase_diagram(resolution=3, steps=9).eta_lambda
    ),
    "digits": lambda m: cx.data.digits(train=20).x_train,
    "synthetic": lambda m: cx.data.synthetic_images(train=4).x_train,
}


@pytest.fixture
def model():
    return cx.models.fully_connected(6, 3, width=8, depth=2, seed=1)


@pytest.mark.parametrize("name", list(CALLS))
def test_results_are_those_without_a_default_device(name, model):
    copy = cx.models.fully_connected(6, 3, width=8, depth=2, seed=1)
    want = CALLS[name](copy)
    with default_device("meta"):
        got = CALLS[name](model)
    assert got.device == want.device
    assert torch.allclose(got, want, rtol=0, atol=0, equal_nan=True)


def test_models_are_made_on_the_default_device():
    with default_device("meta"):
        for kind in ("standard", "ntk"):
            made = cx.models.fully_connected(6, 3, width=8, depth=2, parameterisation=kind)
            assert {p.device.type for p in made.parameters()} == {"meta"}
