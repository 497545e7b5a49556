"""The acceptance numbers of the one-sample model: exactness, phases, peaks, doublings, momentum."""

import math

import pytest
import torch

from catapult_ext import ops
from catapult_ext.toy.bifurcation import bifurcation
from catapult_ext.toy.maps import pm_step, run_scalar, state_of, uv_step


def descend(width, c, label, momentum, steps, seed):
    """Heavy ball on the weights themselves, x = 1: f, eta * lambda, and eta."""
    g = torch.Generator().manual_seed(seed)
    u, v = torch.randn(2, width, dtype=torch.float64, generator=g)
    eta = c / float((u @ u + v @ v) / width)
    mu, mv = torch.zeros_like(u), torch.zeros_like(v)
    f, curvature = [], []
    for _ in range(steps + 1):
        f.append(u @ v / width**0.5)
        curvature.append(eta * (u @ u + v @ v) / width)
        slope = eta * (f[-1] - label) / width**0.5
        mu, mv = momentum * mu - slope * v, momentum * mv - slope * u
        u, v = u + mu, v + mv
    return torch.stack(f), torch.stack(curvature), eta


@pytest.mark.parametrize(("c", "label", "momentum"), [
    (1.0, 0.0, 0.0), (2.5, 0.0, 0.0), (3.2, 0.0, 0.0), (1.3, 2.0, 0.0), (2.6, 2.0, 0.0),
    (2.6, -3.0, 0.0), (2.4, 0.0, 0.5), (3.3, 1.0, 0.5), (1.5, 1.0, 0.9),
])  # fmt: skip
@pytest.mark.parametrize("seed", [0, 1])
def test_is_gradient_descent_on_the_weights(c, label, momentum, seed):
    width, steps = 300, 80
    f, curvature, eta = descend(width, c, label, momentum, steps, seed)
    runs = run_scalar(
        c,
        steps=steps,
        width=width,
        f0=float(f[0]),
        label=label,
        momentum=momentum,
        lambda0=c / eta,
        record_every=1,
    )
    loss = (f - label).square() / 2
    assert (runs.loss_record - loss).abs().max() <= 1e-12 * loss.max()
    assert (runs.eta_lambda_record - curvature).abs().max() <= 1e-12 * curvature.max()
    assert int(runs.peak_step) == int(loss.argmax())
    assert float(runs.peak_loss) == pytest.approx(float(loss.max()), rel=1e-12)


@pytest.mark.parametrize("c", [0.7, 2.6, 3.4])
def test_agrees_with_the_u_v_and_the_p_m_map(c):
    u, v, b = torch.tensor([1e-3], dtype=torch.float64), torch.tensor([c]).double(), 0.1
    h, k = state_of(v, u.sqrt())
    plain = ops.toy_scalar(h, k, 50, record_every=1)
    labelled = ops.toy_scalar(h, k, 50, b=torch.full_like(h, b), record_every=1)
    P, M = (h + k).square(), (h - k).square()
    for t in range(51):
        assert float(plain.record_a[0, t] ** 2) == pytest.approx(float(u), rel=1e-10, abs=1e-13)
        assert float(plain.record_v[0, t]) == pytest.approx(float(v), rel=1e-12)
        assert float(labelled.record_a[0, t]) == pytest.approx(float((P - M) / 4 - b), abs=1e-12)
        assert float(labelled.record_v[0, t]) == pytest.approx(float((P + M) / 2), rel=1e-12)
        (u, v), (P, M) = uv_step(u, v), pm_step(P, M, b)


def test_below_four_converges_and_above_diverges():
    g = torch.Generator().manual_seed(0)
    draw = torch.rand(2, 4000, dtype=torch.float64, generator=g)
    width = 10 ** (15 * draw[0])
    below = run_scalar(0.05 + 3.9 * draw[1], steps=20000, width=width, f0=0.4)
    assert (below.diverged_at < 0).all()
    assert (below.eta_lambda <= 2 + 1e-9).all()
    bound = width * below.c.square() / (8 * below.eta.square())  # L_peak <= W lambda_0^2 / 8
    assert (below.peak_loss <= bound * (1 + 1e-12)).all()
    assert (run_scalar(4.05 + 4 * draw[1], steps=2000, width=width, f0=0.4).diverged_at > 0).all()


def test_with_a_label_the_limit_is_four_plus_a_b():
    """s = v - 4 - a b obeys s' = s (1 + a (a + b)): its sign decides, for every |b| < 2."""
    g = torch.Generator().manual_seed(0)
    draw = torch.rand(3, 50_000, dtype=torch.float64, generator=g)
    b, start = 3.9 * draw[0] - 1.95, 2 * draw[1] - 1
    v = 2 * start.abs() + 6 * draw[2]
    margin = v - 4 - b * (start - b)
    run = ops.toy_scalar(*state_of(v, start), 2000, b=b)
    assert torch.equal(run.diverged_at >= 0, margin > 0)
    assert (run.peak[margin < 0] <= 4 + 1e-9).all()
    short = ops.toy_scalar(*state_of(v, start), 8, b=b, record_every=1)
    a, s = short.record_a, short.record_v - 4 - b[:, None] * short.record_a
    step = (s[:, 1:] - s[:, :-1] * (1 + a * (a + b[:, None]))[:, :-1]).abs()
    assert step[margin < 0].max() < 1e-12


def test_exactly_four_is_the_chebyshev_map():
    angle = 0.3
    start = torch.tensor([4.0, 2 * math.cos(angle)], dtype=torch.float64)
    h, k = state_of(start[:1], start[1:])
    run = ops.toy_scalar(h, k, 8, record_every=1)
    exact = torch.tensor([2 * math.cos(3**t * angle) for t in range(9)], dtype=torch.float64)
    assert (run.record_a[0] - exact).abs().max() < 1e-9
    assert (run.record_v - 4).abs().max() < 1e-9


# Range (and mean) of the final eta * lambda, and of u_peak, over the phase of log u_0.
TABLE = {
    2.1: ((1.893, 1.893, None), (0.0053, 0.0053), 3),
    2.5: ((1.282, 1.282, None), (0.159, 0.171), 3),
    3.0: ((0.185, 0.247, 0.216), (0.66, 0.83), 3),
    3.5: ((0.001, 1.272, 0.569), (1.33, 2.08), None),
    3.9: ((0.000, 1.542, 0.473), (1.87, 3.56), None),
}


@pytest.mark.parametrize("c", TABLE)
def test_range_of_the_final_curvature(c):
    (low, high, mean), (peak_low, peak_high), digits = TABLE[c]
    s = torch.arange(400, dtype=torch.float64) / 400
    u0 = torch.exp(-40 + 2 * math.log(c - 1) * s)
    run = run_scalar(c, steps=200000, width=1 / u0, f0=2 / c)  # u_0 = (c / 2)^2 f_0^2 / W
    final, peak = run.eta_lambda, run.u_peak
    if digits is not None:
        assert round(float(final.min()), 3) == low
        assert round(float(final.max()), 3) == high
        if mean is not None:
            assert round(float(final.mean()), 3) == mean
    else:
        assert abs(float(final.mean()) - mean) <= 0.01
        assert abs(float(final.max()) - high) <= 0.003
        assert float(final.min()) < 0.003
    shown = 4 if c == 2.1 else 3 if c == 2.5 else 2
    assert round(float(peak.min()), shown) == peak_low
    assert round(float(peak.max()), shown) == peak_high


def test_final_curvature_is_log_periodic_in_the_width():
    c, width = 3.3, torch.logspace(12, 13, 50, dtype=torch.float64)
    one = run_scalar(c, steps=3000, width=width)
    two = run_scalar(c, steps=3000, width=width * (c - 1) ** 2)
    assert (one.eta_lambda - two.eta_lambda).abs().max() < 1e-3
    assert (two.peak_step - one.peak_step == 1).all()


@pytest.mark.parametrize(("delta", "ratio"), [(0.05, 1.034), (0.1, 1.067), (0.2, 1.135)])
def test_onset(delta, ratio):
    c = 2 + delta
    run = run_scalar(c, steps=5000, width=1e14 * torch.linspace(1, (1 + delta) ** 2, 20).double())
    assert float(run.u_peak.max()) / (delta**2 / 2) == pytest.approx(ratio, rel=0.01)
    if delta == 0.1:
        assert ((run.u_peak / (delta**2 / 2)) - ratio).abs().max() <= 0.002
        # lambda_f = 4 / eta - lambda_0, in units of 1 / eta.
        assert (run.eta_lambda - (4 - c)).abs().max() <= 0.005 * (4 - c)


def test_time_of_the_peak_grows_with_the_logarithm_of_the_width():
    width = torch.logspace(3, 15, 400, dtype=torch.float64)
    run = run_scalar(2.6, steps=300, width=width)
    x, y = torch.log10(width) / 3, run.peak_step.double()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert float(slope) == pytest.approx(7.35, abs=0.05)


def test_period_doubling():
    # On the aligned manifold sqrt(a + b) follows x' = (1 + b) x - x^3: the second doubling is at
    # sqrt(5) - 1 = 1.23607.
    for near, exact, period in (
        (1.0, 1.0, 1),
        (1.2359, 5**0.5 - 1, 2),
        (1.2880, 1.28803, 4),
        (1.2992, 1.29923, 8),
    ):
        b = near + torch.linspace(-4e-4, 4e-4, 81, dtype=torch.float64)
        periods = bifurcation(b, burn_in=200_000, keep=128).period(1e-5)
        assert set(periods.tolist()) == {period, 2 * period}
        found = float(b[periods == 2 * period].min())
        assert abs(found - near) <= 2e-4
        assert abs(found - exact) <= 3e-5
        assert (periods[b > found] == 2 * period).all()


def test_beyond_b_equal_two_everything_diverges():
    b = torch.tensor([1.9, 1.99, 1.999, 2.001, 2.01, 2.1])
    diverged = bifurcation(b, burn_in=100_000).diverged_at
    assert diverged[:3].tolist() == [-1] * 3
    assert (diverged[3:] > 0).all()


@pytest.mark.parametrize("b", [1.05, 1.1, 1.2])
def test_mean_curvature_on_the_two_cycle_is_one_plus_b(b):
    for aligned in (True, False):
        run = bifurcation(torch.tensor([b]), aligned=aligned)
        assert float(run.eta_lambda.mean()) == pytest.approx(1 + b, abs=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_momentum_moves_the_onset_to_two_times_one_plus_beta(beta):
    width, f0 = torch.tensor([1e3, 1e6]), torch.tensor([0.3, 0.6, 1.0, 1.3, 1.6])[:, None]
    for c, check in (
        (2 * (1 + beta) + 0.1, lambda r: float(r.median()) > 100),
        (2 * (1 + beta) - 0.05, lambda r: float(r.max()) < 3),
    ):
        run = run_scalar(c, steps=20000, width=width, f0=f0, momentum=beta)
        assert check(run.peak_loss[:, 1] / run.peak_loss[:, 0]), c


def test_a_million_lanes_of_which_half_diverge():
    c = torch.linspace(1.0, 7.0, 1_000_000, dtype=torch.float64)
    c = c[torch.randperm(len(c), generator=torch.Generator().manual_seed(0))]
    run = run_scalar(c, steps=200, width=1e6)
    converging = c < 3.99
    assert (run.diverged_at[converging] < 0).all()
    assert (run.diverged_at[c > 4.05] > 0).all()
    for part in (run.eta_lambda, run.loss, run.peak_loss):
        assert part.isfinite().all()
    some = torch.arange(0, len(c), 9973)
    alone = run_scalar(c[some], steps=200, width=1e6)
    assert torch.equal(alone.diverged_at, run.diverged_at[some])
    assert torch.equal(alone.eta_lambda, run.eta_lambda[some])


def test_phases_and_broadcasting():
    run = run_scalar(torch.tensor([1.0, 3.0, 4.5]), steps=300, width=torch.tensor([[1e3], [1e9]]))
    assert run.phase.tolist() == [[0, 1, 2]] * 2
    assert run.phases == ["lazy", "catapult", "divergent"] * 2
    assert run_scalar(3.0, steps=3, width=1e9).phases == ["unsettled"]
    still = run_scalar(0.0, steps=10, f0=3.0, label=1.0, record_every=5)
    assert still.loss.item() == 2.0
    assert still.loss_record.tolist() == [2.0] * 3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"c": -1.0}, ValueError, "c must be >= 0"),
        ({"width": 0.0}, ValueError, "width must be positive"),
        ({"lambda0": 0.0}, ValueError, "lambda0 must be positive"),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\)"),
        ({"width": 4.0, "f0": 3.0}, ValueError, r"\|f0\| must be at most"),
        ({"width": torch.ones(2), "f0": torch.ones(3)}, ValueError, "must broadcast"),
        ({"dtype": torch.float16}, TypeError, "dtype must be torch.float32 or torch.float64"),
        ({"steps": -1}, ValueError, "steps must be >= 0"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        run_scalar(**({"c": 1.0, "steps": 3} | change))
