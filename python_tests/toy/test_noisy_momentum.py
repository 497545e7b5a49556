"""Heavy ball with a random curvature: its edges against closed forms, recursions, quadrature."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq

from catapult_ext import toy
from catapult_ext._store import RunFolderError

NOISES = ("normal", "uniform", "two-point")


def plane(size):
    beta = torch.linspace(0, 0.99, size, dtype=torch.float64)[:, None]
    return beta, torch.logspace(-3, 3, size, dtype=torch.float64)[None, :]


def growth_along(eta, beta, variance, steps=4096):
    """Log growth per step of E x_t^2 along the recursion, after as many steps of burn-in."""
    rows = toy.second_moment_matrix(eta, beta, variance).unbind(-2)
    (a, b, c), (d, e, _) = (row.unbind(-1) for row in rows[:2])
    xx = xy = yy = torch.ones_like(a)
    for t in range(2 * steps):
        if t == steps:
            start = xx
        moments = (a * xx + b * xy + c * yy, d * xx + e * xy, xx)
        xx, xy, yy = moments
    return (xx / start).log() / steps


def test_mean_square_edge_is_that_of_the_recursion():
    """To 1e-8 over 64 x 64 points: the recursion, run, and the spectral radius of its matrix."""
    beta, variance = plane(64)
    edge = toy.mean_square_edge(beta, variance)
    assert edge.shape == (64, 64)
    below, above = (growth_along(edge * (1 + s), beta, variance) for s in (-1e-5, 1e-5))
    crossing = -1e-5 * (above + below) / (above - below)  # of the line through both
    assert float(crossing.abs().max()) < 1e-8
    for factor, side in ((1 - 1e-8, -1), (1 + 1e-8, 1)):
        growth = toy.second_moment_growth(edge * factor, beta, variance)
        assert (side * (growth - 1) > 0).all()


def test_second_moments_are_those_of_every_path():
    """Two-point noise has finitely many paths: the average over all 2^9 of them is exact."""
    eta, beta = 0.7, 0.8
    a, s = 1.3, 0.9
    matrix = toy.second_moment_matrix(eta, beta, s * s, a)
    moments = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)  # x_0 = 1, x_(-1) = 1 / 2
    paths = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 9)
    x, before = torch.ones(512).double(), torch.full((512,), 0.5).double()
    for step in paths.T:
        x, before = (1 + beta - eta * (a + s * step)) * x - beta * before, x
        moments = matrix @ moments
    exact = [(x * x).mean(), (x * before).mean(), (before * before).mean()]
    torch.testing.assert_close(moments, torch.stack(exact), rtol=1e-12, atol=0)


def test_known_values_of_the_mean_square_edge():
    assert float(toy.mean_square_edge(0.9, 0.2)) == pytest.approx(0.791667, abs=5e-7)
    assert float(toy.mean_square_edge(0.9, 0.0, 4.0)) == pytest.approx(3.8 / 4)
    assert float(toy.mean_square_edge(0.9, 1e9, 2.0)) == pytest.approx(4 * 0.1 / 1e9, rel=1e-6)
    assert float(toy.mean_square_edge(0.0, 3.0, 1e-200)) == pytest.approx(2e-200 / 3)


def quadrature(eta, noise, a=1.0, s=1.0):
    """E log |1 - eta h|, h of mean a and standard deviation s."""
    if noise == "two-point":
        return 0.5 * sum(math.log(abs(1 - eta * (a + sign * s))) for sign in (-1, 1))
    if noise == "uniform":

        def antiderivative(h):  # of log |1 - eta h|
            t = eta * h - 1
            return (t * math.log(abs(t)) - t) / eta

        half = math.sqrt(3) * s
        return (antiderivative(a + half) - antiderivative(a - half)) / (2 * half)
    root = (1 / eta - a) / s  # z = root + u^3: the logarithm is integrated without its pole

    def weighed(u, sign):
        density = math.exp(-((root + sign * u**3) ** 2) / 2) / math.sqrt(2 * math.pi)
        return density * math.log(eta * s * u**3) * 3 * u * u

    reach = (9 + abs(root)) ** (1 / 3)
    return sum(quad(weighed, 0, reach, args=(sign,), limit=500)[0] for sign in (-1, 1))


@pytest.mark.parametrize("noise", NOISES)
def test_exponent_without_momentum_is_an_integral_and_the_bars_cover_it(noise):
    eta = torch.tensor([0.4, 1.9, 3.0]).double()
    exact = torch.tensor([quadrature(float(e), noise, 0.8, 0.7) for e in eta]).double()
    inside, spread = [], []
    for seed in range(100):
        got = toy.lyapunov_exponent(eta, 0.0, 0.49, 0.8, noise=noise, steps=200, seed=seed)
        inside.append((got.value - exact).abs() <= got.error)
        spread.append(got.value - exact)
    deviation = torch.stack(spread)
    assert float((deviation.mean(0) / deviation.std(0)).abs().max()) < 0.4  # no bias: 4 sigma
    share = torch.stack(inside).double().mean(0)  # 95 %, each from 100 seeds
    assert float(share.min()) >= 0.87
    assert float(share.mean()) < 0.99


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("variance", [0.09, 0.4, 4.0])
def test_edge_without_momentum_is_the_root_of_that_integral(noise, variance):
    a, s = 2.0, 2 * variance**0.5
    start = float(toy.mean_square_edge(0.0, s * s, a))
    rates = start * np.geomspace(1.0, 1000, 4000)
    first = next(r for r in rates if quadrature(r, noise, a, s) > 0)
    exact = brentq(lambda eta: quadrature(eta, noise, a, s), start * 0.9, first, xtol=1e-12)
    inside = 0
    for seed in range(20):
        got = toy.lyapunov_edge(0.0, s * s, a, noise=noise, tolerance=0.05, seed=seed)
        assert float(got.error) <= 0.05 * float(got.value)
        inside += abs(float(got.value) - exact) <= float(got.error)
    assert inside >= 16  # 19 expected


def test_edge_without_noise_is_that_of_gradient_descent_with_momentum():
    beta = torch.tensor([0.0, 0.3, 0.9, 0.99]).double()
    got = toy.lyapunov_edge(beta, 0.0, tolerance=1e-3)
    assert ((got.value - 2 * (1 + beta)).abs() <= got.error).all()
    assert (got.error <= 1e-3 * got.value).all()


def test_exponent_is_bounded_by_that_of_the_second_moment_and_the_sum_rule():
    """Jensen: exponent <= log(growth of E x^2) / 2; and never below log(beta) / 2."""
    eta, beta = torch.linspace(0.05, 3.0, 12).double()[:, None], torch.tensor([0.2, 0.9]).double()
    got = toy.lyapunov_exponent(eta, beta, 0.5, steps=2000)
    assert got.value.shape == (12, 2)
    above = 0.5 * toy.second_moment_growth(eta, beta, 0.5).log()
    assert (got.value - 2 * got.error <= above).all()
    assert (got.value + 2 * got.error + 1e-3 >= 0.5 * beta.log()).all()


def test_edges_with_momentum_agree_with_long_paths_and_scale_with_the_curvature():
    beta, variance = torch.tensor([0.5, 0.9]).double(), torch.tensor([0.3, 2.0]).double()
    got = toy.lyapunov_edge(beta, variance, tolerance=0.02)
    assert (got.value >= toy.mean_square_edge(beta, variance)).all()
    # An independent, ten times longer estimate changes its sign within twice the bar.
    for factor, sign in ((-2, -1), (2, 1)):
        eta = got.value + factor * got.error
        there = toy.lyapunov_exponent(eta, beta, variance, steps=40_000, seed=77)
        assert (sign * there.value > 0).all()
    scaled = toy.lyapunov_edge(beta, 9 * variance, 3.0, tolerance=0.02)
    torch.testing.assert_close(3 * scaled.value, got.value)


def test_plane_holds_both_edges_and_chunks_change_nothing(tmp_path):
    options = {"resolution": (7, 3), "beta": (0.0, 0.8), "tolerance": 0.1, "paths": 16}
    made = toy.noise_plane(**options)
    beta, variance = torch.from_numpy(made.beta)[:, None], torch.from_numpy(made.variance)
    np.testing.assert_array_equal(made.mean_square, toy.mean_square_edge(beta, variance))
    assert (made.error <= 0.1 * made.lyapunov).all()
    whole = toy.lyapunov_edge(beta, variance, tolerance=0.1, paths=16)
    np.testing.assert_array_equal(made.lyapunov, whole.value)
    alone = toy.lyapunov_edge(made.beta[1], made.variance[5], tolerance=0.1, paths=16)
    assert float(alone.value) == made.lyapunov[1, 5]

    def interrupted(done, rows):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy.noise_plane(**options, out=tmp_path / "run", progress=interrupted)
    again = toy.noise_plane(**options, out=tmp_path / "run")
    np.testing.assert_array_equal(again.lyapunov, made.lyapunov)
    with np.load(tmp_path / "run" / "plane.npz") as file:
        np.testing.assert_array_equal(file["error"], made.error)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["largest relative bar"] == float((made.error / made.lyapunov).max())
    with pytest.raises(RunFolderError):
        toy.noise_plane(**options, noise="uniform", out=tmp_path / "run")
    assert made.plot(tmp_path / "plane.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        (toy.mean_square_edge, {"beta": 1.0, "variance": 0.1}, r"beta must be in \[0, 1\)"),
        (toy.mean_square_edge, {"beta": -0.1, "variance": 0.1}, "beta must be in .*, got -0.1"),
        (toy.mean_square_edge, {"beta": 0.5, "variance": -1.0}, "variance must be >= 0 and finite"),
        (toy.mean_square_edge, {"beta": 0.5, "variance": 1.0, "mean": 0.0}, "mean must be > 0"),
        (toy.mean_square_edge, {"beta": math.nan, "variance": 1.0}, "finite, got nan"),
        (
            toy.mean_square_edge,
            {"beta": torch.zeros(2), "variance": torch.ones(3)},
            r"must broadcast, got \[\(\), \(2,\), \(3,\)",
        ),
        (
            toy.second_moment_growth,
            {"eta": -1.0, "beta": 0.5, "variance": 1.0},
            "second_moment_growth: eta must be >= 0 and finite, got -1.0",
        ),
        (toy.second_moment_growth, {"eta": 1e200, "beta": 0, "variance": 1.0}, "fit float64"),
        (toy.lyapunov_edge, {"beta": 1 - 1e-9, "variance": 1.0}, r"in \[1e-30, 1 - 1e-6\]"),
        (toy.lyapunov_edge, {"beta": 0.5, "variance": 1.0, "tolerance": 0.0}, "tolerance must be"),
        (toy.lyapunov_edge, {"beta": 0.5, "variance": 1.0, "paths": 2}, "paths must be in"),
        (toy.lyapunov_edge, {"beta": 0.5, "variance": 1e30}, "at most 1e20 mean"),
        (
            toy.lyapunov_edge,
            {"beta": 0.99, "variance": 1.0, "max_steps": 100},
            "max_steps must be at least 3980 at beta = 0.99, got 100",
        ),
        (toy.lyapunov_edge, {"beta": 0.5, "variance": 1.0, "noise": "gamma"}, "noise must be one"),
        (
            toy.lyapunov_exponent,
            {"eta": 1e29, "beta": 0.5, "variance": 4.0},
            r"eta \(mean \+ 9 variance\^\(1/2\)\) must be at most 1e\+30",
        ),
        (toy.noise_plane, {"beta": (0.5, 1.0)}, r"noise_plane: beta must be in \[0, 1\)"),
        (toy.noise_plane, {"resolution": (2, 2, 2)}, r"resolution must be \(columns, rows\)"),
        (toy.noise_plane, {"variance": (0.0, 1.0)}, "variance must start above 0"),
    ],
)
def test_bad_input(call, arguments, message):
    with pytest.raises(ValueError, match=message):
        call(**arguments)
