"""What simulate records besides loss and curvature, the scalar form, and what stops a replica."""

import numpy as np
import pytest
import torch

import catapult_ext as cx
from catapult_ext.testing.toy_cases import stretched_data


@pytest.fixture
def data():
    return stretched_data(10, 3)


def relative(got, want):
    return float((got - want).abs().max() / want.abs().max())


def at_start(x, y, U, v):
    """Kernel, residual, Hessian, loss and gradient of the linear network by autograd."""
    shape = U.shape

    def f(theta):
        return x @ theta[: U.numel()].view(shape).mT @ theta[U.numel() :] / len(v) ** 0.5

    def loss(theta):
        return (f(theta) - y).square().mean() / 2

    theta = torch.cat([U.flatten(), v])
    J = torch.func.jacrev(f)(theta)
    hessian = torch.func.hessian(loss)(theta)
    return J @ J.mT / len(x), f(theta) - y, hessian, loss, torch.func.grad(loss)(theta), theta


@pytest.mark.parametrize("form", ["direct", "reduced"])
@pytest.mark.parametrize("width", [2, 3, 15])
def test_observables_at_the_start(data, form, width):
    x, y = data
    U, v = cx.toy.draw_weights(width, 3, np.random.default_rng(1))
    run = cx.toy.simulate(
        0.2, x=x, y=y, steps=0, init=(U, v), form=form, observe=cx.toy.OBSERVABLES, k=2
    )
    kernel, residual, hessian, loss, gradient, theta = at_start(x, y, U, v)
    values, vectors = torch.linalg.eigh(kernel)
    parts = (vectors.mT @ residual).square() / 20
    got = {name: value[0, 0] for name, value in run.observed.items()}
    assert relative(got["eigenvalues"], values[-2:].flip(0)) < 1e-12
    assert relative(got["projected_loss"], parts[-2:].flip(0)) < 1e-11
    assert float(got["sharpness"]) == pytest.approx(
        float(torch.linalg.eigvalsh(hessian)[-1]), 1e-12
    )
    assert float(got["imbalance"]) == pytest.approx(
        float(U.square().sum() - v.square().sum()), 1e-11
    )
    gain = loss(theta - 0.2 * gradient) - loss(theta)
    r = 2 / 0.2 + 2 * gain / (0.2 * gradient).square().sum()
    assert float(got["step_curvature"]) == pytest.approx(float(r), rel=1e-10)


def test_step_curvature_crosses_two_over_eta_where_the_loss_rises(data):
    x, y = data
    run = cx.toy.simulate(
        c=[2.6], width=10**6, x=x, y=y, steps=60, curvature_every=1, observe="step_curvature"
    )
    above = run.observed["step_curvature"][0, :-1] > 2 / run.eta[0]
    rises = run.loss[0, 1:] > run.loss[0, :-1]
    assert rises.any()
    assert torch.equal(above[:40], rises[:40])


@pytest.mark.parametrize("second", [0.2, 0.3, 0.45])
@pytest.mark.parametrize(("width", "error"), [(10**9, 1e-4), (10**12, 1e-4), (10**3, 0.02)])
def test_the_second_eigenvalue_follows_the_first(second, width, error):
    """Theory 2.3: lambda_2 falls to (1 + lambda_1,f / lambda_1,0) / 2 of itself, 0.7077 at 2.6."""
    g = torch.Generator().manual_seed(1)
    left, right = (
        torch.linalg.qr(torch.randn(n, 3, dtype=torch.float64, generator=g))[0] for n in (8, 3)
    )
    x = left @ torch.tensor([8.0, 8 * second, 0.8], dtype=torch.float64).sqrt().diag() @ right
    y = torch.randn(8, dtype=torch.float64, generator=g).sign()
    run = cx.toy.simulate(c=[2.6], width=width, x=x, y=y, steps=4000, observe="eigenvalues", k=3)
    first, last = run.observed["eigenvalues"][0]
    top, kept = (last / first)[:2].tolist()  # here the top direction stays above the second
    assert kept == pytest.approx(0.7077, abs=error)
    assert kept == pytest.approx((1 + top) / 2, abs=error)


def one_sample(width=300, d=4):
    x = torch.randn(1, d, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return (
        x,
        torch.tensor([0.7], dtype=torch.float64),
        cx.toy.draw_weights(width, d, np.random.default_rng(0)),
    )


@pytest.mark.parametrize("strides", [(1, 1), (3, 2), (4, None)])
def test_scalar_form_is_the_reduced_form(strides):
    x, y, init = one_sample()
    kwargs = {
        "c": [0.8, 2.6, 3.4, 6.0],
        "x": x,
        "y": y,
        "steps": 80,
        "init": init,
        "record_every": strides[0],
        "curvature_every": strides[1],
    }
    scalar, direct = (cx.toy.simulate(form=form, **kwargs) for form in ("auto", "direct"))
    assert scalar.form == "scalar"
    assert scalar.diverged_at.tolist() == direct.diverged_at.tolist()
    for name in ("loss", "weight_norm", "curvature"):
        got, want = getattr(scalar, name), getattr(direct, name)
        assert got.shape == want.shape
        assert max(relative(a, b) for a, b in zip(got[:3], want[:3], strict=True)) <= 1e-12


def test_scalar_form_with_momentum():
    x, y, init = one_sample()
    kwargs = {"c": [0.8, 3.2], "x": x, "y": y, "steps": 60, "init": init, "momentum": 0.5}
    scalar = cx.toy.simulate(form="scalar", **kwargs)
    direct = cx.toy.simulate(form="direct", **kwargs)
    assert relative(scalar.loss, direct.loss) <= 1e-11


def test_one_sample_sharpness_and_imbalance():
    x, y, init = one_sample()
    run = cx.toy.simulate(
        c=[2.6],
        x=x,
        y=y * 0,
        steps=40,
        init=init,
        curvature_every=1,
        observe=("sharpness", "imbalance"),
    )
    square, lam, f2 = float(x.square().sum()), run.curvature[0], 2 * run.loss[0]
    closed = lam / 2 + (lam.square() / 4 + 3 * square * f2 / 300).sqrt()
    assert relative(run.observed["sharpness"][0], closed) < 1e-12
    u0 = init[0] @ x[0] / square**0.5
    outside = init[0].square().sum() - u0.square().sum()
    D = run.observed["imbalance"][0] - outside
    a2 = run.eta[0] ** 2 * square * f2 / 300
    assert relative(D[1:], (D * (1 - a2))[:-1]) < 1e-10


def test_stop(data):
    x, y = data
    y = x @ torch.ones(3, dtype=torch.float64)
    kwargs = {"c": [1.0, 2.6, 9.0], "width": 10**6, "x": x, "y": y, "steps": 4000}
    run = cx.toy.simulate(stop=cx.toy.Stop(converged=1e-14), **kwargs)
    assert run.outcomes == ["converged", "converged", "diverged"]
    full = cx.toy.simulate(**kwargs)
    assert full.outcomes == ["steps", "steps", "diverged"]
    for i in (0, 1):
        at = int(run.converged_at[i])
        assert 0 < at < 4000
        assert (run.loss[i, at:] == run.loss[i, at]).all()
        assert run.loss[i, -1] < 1e-9 * run.loss[i, 0]
    early = cx.toy.simulate(stop=cx.toy.Stop(diverged=2 * float(full.loss[1, 0])), **kwargs)
    assert early.outcomes[:2] == ["steps", "diverged"]
    assert torch.equal(full.peak_step, full.loss.argmax(1))
    assert torch.equal(full.peak_loss, full.loss.amax(1))


def test_verdict_counts_steps(data):
    x, y = data
    run = cx.toy.simulate(
        c=[2.6],
        width=10**6,
        x=x,
        y=y,
        steps=90,
        record_every=3,
        curvature_every=2,
        observe="projected_loss",
    )
    e = run.verdicts[0].evidence
    assert e.loss_rose_at % 3 == 0
    assert e.projection_grew_at % 2 == 0
    assert e.projection_peak > 10


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"form": "scalar"}, ValueError, "the scalar form takes one sample"),
        ({"form": "cubic"}, ValueError, "form must be one of"),
        ({"observe": "depth"}, ValueError, "observe must name some of"),
        ({"observe": "sharpness", "activation": "relu"}, ValueError, "sharpness needs the linear"),
        ({"k": 0}, ValueError, "k must be >= 1"),
        ({"k": 99, "observe": "eigenvalues"}, ValueError, r"k must be in \[1,"),
        ({"k": 1.0}, TypeError, "k must be an int"),
        ({"stop": 1e-3}, TypeError, "stop must be a toy.Stop"),
        ({"stop": cx.toy.Stop(converged=0.0)}, ValueError, "stop.converged must be positive"),
    ],
)
def test_bad_input(data, change, error, message):
    with pytest.raises(error, match=message):
        cx.toy.simulate(**{"eta": 0.1, "width": 9, "x": data[0], "y": data[1], "steps": 2} | change)
