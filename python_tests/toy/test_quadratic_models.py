"""Quadratic models: against autograd, their recursion, and the two-direction catapult."""

import pytest
import torch
from torch.func import jacrev

from catapult_ext import toy
from catapult_ext.toy.quadratic_models import (
    neural_quadratic,
    quadratic_net,
    second_order_regression,
)


def randn(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=g)


def descend(f, y, theta, eta, steps, normaliser):
    """Autograd gradient descent: losses and kernels."""
    losses, kernels = [], []
    for _ in range(steps + 1):
        J, z = jacrev(f)(theta), f(theta) - y
        losses.append(z.square().sum() / (2 * normaliser))
        kernels.append(J @ J.mT / normaliser)
        theta = theta - eta / normaliser * (z @ J)
    return torch.stack(losses), torch.stack(kernels)


def neural_case():
    width, inputs = 12, 3
    U = randn(width, inputs)
    v = randn(width, seed=1).sign()
    x = randn(5, inputs, seed=2)
    y = randn(5)
    gate = (x @ U.mT >= 0).double()

    def f(theta):
        W, w = theta[:-width].view(width, inputs), theta[-width:]
        # relu is linear on the pattern of the start, so the net is bilinear: its own Taylor model.
        return (gate * (x / inputs**0.5 @ W.mT)) @ w / width**0.5

    return neural_quadratic(U, v, x, y), f, torch.cat([U.flatten(), v]), y, 1.0


def net_case(phi, diagonal):
    samples, p = 4, 9
    theta, y = randn(p), randn(samples, seed=3)
    full = torch.diag_embed(randn(samples, p, seed=4)) if diagonal else randn(samples, p, p, seed=4)
    full = (full + full.mT) / 2
    psi = full.diagonal(dim1=1, dim2=2) if diagonal else full
    bias = randn(samples, p, seed=5) if phi else None

    def f(t):
        z = (p / 2) ** -0.5 / 2 * torch.einsum("p,npq,q->n", t, full, t)
        return z + bias @ t if phi else z

    return quadratic_net(theta, psi, y, phi=bias), f, theta, y, float(samples)


def regression_case():
    samples, p = 4, 6
    z, J, Q = randn(samples), randn(samples, p, seed=1), 0.2 * randn(samples, p, p, seed=2)
    Q = Q + Q.mT

    def f(t):
        return z + J @ t + torch.einsum("p,npq,q->n", t, Q, t) / 2

    return second_order_regression(z, J, Q), f, torch.zeros(p).double(), torch.zeros(samples), 1.0


CASES = {
    "neural": neural_case,
    "pure": lambda: net_case(False, False),
    "diagonal": lambda: net_case(False, True),
    "bias": lambda: net_case(True, False),
    "regression": regression_case,
}


@pytest.mark.parametrize("c", [0.8, 2.3])
@pytest.mark.parametrize("case", CASES)
def test_is_gradient_descent(case, c):
    model, f, theta, y, normaliser = CASES[case]()
    eta = c / float(torch.linalg.eigvalsh(model.kernel())[-1])
    loss, kernels = descend(f, y, theta, eta, 12, normaliser)
    run = model.run(eta, 12, k=2)
    assert run.diverged_at == -1
    assert (run.loss - loss).abs().max() <= 1e-10 * loss.max()
    exact = torch.linalg.eigvalsh(kernels)[:, -2:].flip(1)
    assert (run.eigenvalues - exact).abs().max() <= 1e-10 * exact.max()
    assert torch.allclose(run.projected_loss.sum(1) <= run.loss * (1 + 1e-12), torch.tensor(True))


@pytest.mark.parametrize("case", CASES)
def test_the_curvature_recursion_is_exact(case):
    model = CASES[case]()[0]
    K = model.kernel()
    eta = 2.2 / float(torch.linalg.eigvalsh(K)[-1])
    for _ in range(15):
        K, model = model.kernel_step(K, eta), model.step(eta)
        assert (K - model.kernel()).abs().max() <= 1e-12 * K.abs().max()


@pytest.fixture(scope="module")
def two_clouds():
    """The setting of Zhu et al.: x around +-2 in one dimension, so the kernel has rank two."""
    samples, width = 32, 3000
    side = torch.where(torch.arange(samples) < 18, 1.0, -1.0).double()
    x = (2 * side + randn(samples, seed=4))[:, None]
    model = neural_quadratic(
        randn(width, 1, seed=5), randn(width, seed=6).sign(), x, randn(samples, seed=7).sign()
    )
    values = torch.linalg.eigvalsh(model.kernel()).flip(0)
    assert values[2] < 1e-10 * values[0]
    assert 0.5 < values[1] / values[0] < 0.95
    return model, values


def along(start, K):
    """Rayleigh quotients of K along the top two eigenvectors of the kernel ``start``."""
    vectors = torch.linalg.eigh(start).eigenvectors[:, -2:].flip(1)
    return ((K @ vectors) * vectors).sum(0)


def test_only_the_first_direction_catapults_between_the_thresholds(two_clouds):
    model, values = two_clouds
    eta = float(1 / values[0] + 1 / values[1])  # halfway from 2 / lambda_1 to 2 / lambda_2
    run = model.run(eta, 80, curvature_every=0)
    growth = run.projected_loss.amax(0) / run.projected_loss[0]
    kept = along(model.kernel(), run.model.kernel()) / values[:2]
    assert growth[0] > 4
    assert growth[1] <= 1 + 1e-9
    assert eta * kept[0] * values[0] < 2
    assert kept[0] < 0.8
    assert kept[1] > 0.97


def test_both_directions_catapult_above_the_second_threshold(two_clouds):
    model, values = two_clouds
    eta = float((2 / values[1] + 4 / values[0]) / 2)
    run = model.run(eta, 80, curvature_every=80)
    growth = run.projected_loss.amax(0) / run.projected_loss[0]
    assert run.diverged_at == -1
    assert (growth > 10).all()
    assert (along(model.kernel(), run.model.kernel()) < 0.9 * values[:2]).all()
    assert eta * run.eigenvalues[-1, 0] < 2
    # The other components never move: they lie outside the range of the kernel.
    rest = run.loss - run.projected_loss.sum(1)
    assert (rest - rest[0]).abs().max() <= 1e-9 * run.loss.max()


def test_lazy_below_and_divergent_above(two_clouds):
    model, values = two_clouds
    lazy = model.run(float(1.8 / values[0]), 50, curvature_every=50)
    assert (lazy.loss[1:] <= lazy.loss[:-1] + 1e-12).all()
    assert (lazy.eigenvalues[-1] / lazy.eigenvalues[0] - 1).abs().max() < 0.02
    high = model.run(float(6 / values[0]), 60, curvature_every=0)
    assert high.diverged_at > 0
    assert high.loss.isfinite().all()


def test_progressive_sharpening_to_the_edge():
    """Random second-order regression sharpens up to 2 / eta and stays there."""
    samples, p = 40, 80
    Q = randn(samples, p, p, seed=2)
    Q = 0.7 * (Q + Q.mT) / 2**0.5 / p
    model = second_order_regression(randn(samples), randn(samples, p, seed=1) / p**0.5, Q)
    top = float(torch.linalg.eigvalsh(model.kernel())[-1])
    edge = model.run(1.5 / top, 1200, curvature_every=20)
    assert 1.5 / top * float(edge.eigenvalues[-10:, 0].mean()) == pytest.approx(2, abs=0.06)
    assert edge.diverged_at == -1
    below = model.run(0.8 / top, 600, curvature_every=600)
    assert 0.8 < 0.8 / top * float(below.eigenvalues[-1, 0]) < 1.9


def test_public_names_and_errors():
    assert toy.neural_quadratic is neural_quadratic
    model = regression_case()[0]
    for change, message in (
        ({"eta": 0.0}, "eta must be positive"),
        ({"k": 9}, "k must be in"),
        ({"steps": -1}, "steps must be >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            model.run(**({"eta": 0.1, "steps": 2} | change))
    with pytest.raises(ValueError, match="Q must be symmetric"):
        second_order_regression(randn(2), randn(2, 3), randn(2, 3, 3))
    with pytest.raises(ValueError, match=r"psi must be \(2, 3"):
        quadratic_net(randn(3), randn(2, 4), randn(2))
    with pytest.raises(ValueError, match=r"v must have shape \(4,\)"):
        neural_quadratic(randn(4, 2), randn(3), randn(5, 2), randn(5))
