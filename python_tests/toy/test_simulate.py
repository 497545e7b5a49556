import importlib

import numpy as np
import pytest
import torch

import catapult_ext as cx
from catapult_ext.testing import max_error
from catapult_ext.testing.toy_cases import stretched_data


@pytest.fixture
def data():
    return stretched_data(12, 4)


def relative(got, want):
    scale = want.abs().amax(1, keepdim=True)
    return max_error(got / scale, want / scale)


def autograd_run(x, y, U, v, eta, steps):
    """Losses of torch's own gradient descent on (U, v)."""
    U, v = U.clone().requires_grad_(), v.clone().requires_grad_()
    losses = []
    for _ in range(steps + 1):
        f = x @ U.t() @ v / len(v) ** 0.5
        loss = (f - y).square().mean() / 2
        losses.append(loss.detach())
        grads = torch.autograd.grad(loss, (U, v))
        with torch.no_grad():
            U -= eta * grads[0]
            v -= eta * grads[1]
    return torch.stack(losses)


def test_every_form_follows_autograd(data):
    """200 steps through catapults, from the same weights, float64: 1e-10."""
    x, y = data
    U, v = cx.toy.draw_weights(300, 4, np.random.default_rng(1))
    kwargs = {"x": x, "y": y, "steps": 200, "init": (U, v)}
    direct = cx.toy.simulate(c=[1.2, 2.6, 3.3], form="direct", **kwargs)
    reduced = cx.toy.simulate(c=[1.2, 2.6, 3.3], form="reduced", **kwargs)
    exact = torch.stack([autograd_run(x, y, U, v, float(e), 200) for e in direct.eta])
    assert direct.phases == reduced.phases == ["lazy", "catapult", "catapult"]
    assert relative(direct.loss, exact) <= 1e-10
    assert relative(reduced.loss, exact) <= 1e-10
    assert relative(reduced.weight_norm, direct.weight_norm) <= 1e-10
    assert relative(reduced.curvature, direct.curvature) <= 1e-10


def test_same_seed_same_weights_in_every_form(data):
    x, y = data
    kwargs = {"width": 500, "x": x, "y": y, "steps": 30, "seed": 5}
    direct = cx.toy.simulate([0.1, 0.2], form="direct", **kwargs)
    auto = cx.toy.simulate([0.1, 0.2], **kwargs)
    assert (direct.form, auto.form) == ("direct", "reduced")
    assert relative(auto.loss, direct.loss) <= 1e-11
    other = cx.toy.simulate([0.1, 0.2], **{**kwargs, "seed": 6})
    assert not torch.equal(other.loss, auto.loss)


@pytest.mark.parametrize("shape", [(3, 7), (20, 2), (6, 6), (1, 1), (1, 5), (9, 1)])
@pytest.mark.parametrize("width", [1, 2, 40])
def test_shapes(shape, width):
    """The span of the data, whatever N, D and W, rank-deficient data included."""
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if shape[1] > 2:
        x[:, 2] = x[:, 0] - x[:, 1]
    y = torch.linspace(-1, 1, shape[0], dtype=torch.float64)
    kwargs = {"width": width, "x": x, "y": y, "steps": 9, "c": [0.3, 0.8], "curvature_every": 3}
    one, two = (cx.toy.simulate(form=form, **kwargs) for form in ("direct", "reduced"))
    assert one.curvature.shape == (2, 4)
    assert relative(two.loss, one.loss) <= 1e-11
    assert relative(two.weight_norm, one.weight_norm) <= 1e-11
    assert relative(two.curvature, one.curvature) <= 1e-11


def test_records(data):
    x, y = data
    traj = cx.toy.simulate([0.1, 0.2], width=50, x=x, y=y, steps=20, record_every=6)
    assert traj.loss.shape == traj.weight_norm.shape == (2, 4)
    assert traj.curvature.shape == (2, 2)
    assert traj.recorded_steps.tolist() == [0, 6, 12, 18]
    assert traj.curvature_steps.tolist() == [0, 20]
    assert cx.toy.simulate([0.1], width=5, x=x, y=y, steps=0).curvature.shape == (1, 1)
    single = cx.toy.simulate(0.1, width=5, x=x, y=y, steps=3)
    assert single.loss.shape == (1, 4)


def test_dtypes(data):
    x, y = data
    kwargs = {"width": 20, "steps": 3, "c": 0.5}
    assert cx.toy.simulate(x=x, y=y, **kwargs).loss.dtype == torch.float64
    assert cx.toy.simulate(x=x.float(), y=y.float(), **kwargs).loss.dtype == torch.float32
    assert cx.toy.simulate(x=x.float(), y=y, **kwargs).loss.dtype == torch.float64
    assert cx.toy.simulate(x=x, y=y, dtype=torch.float32, **kwargs).loss.dtype == torch.float32
    assert cx.toy.simulate(x=[[1, 2]], y=[3], **kwargs).loss.dtype == torch.float64
    assert cx.toy.simulate(x=x.numpy(), y=y.numpy(), **kwargs).loss.dtype == torch.float64


def test_replicas_with_their_own_seed(data):
    x, y = data
    kwargs = {"width": 10**9, "x": x, "y": y, "steps": 5}
    many = cx.toy.simulate([0.1] * 3, seed=[4, 5, 6], **kwargs)
    for i, seed in enumerate([4, 5, 6]):
        one = cx.toy.simulate([0.1], seed=seed, **kwargs)
        assert torch.equal(one.loss[0], many.loss[i])


def test_chunks_do_not_matter(data, monkeypatch):
    x, y = data
    kwargs = {"width": 50, "x": x, "y": y, "steps": 10, "c": [0.5, 1.5, 2.5, 3.0, 9.0]}
    whole = [cx.toy.simulate(form=form, **kwargs).loss for form in ("direct", "reduced")]
    module = importlib.import_module("catapult_ext.toy.simulator")
    monkeypatch.setattr(module, "FUSED_CHUNK_BYTES", 4000)
    parts = [cx.toy.simulate(form=form, **kwargs).loss for form in ("direct", "reduced")]
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("width", [7, 40])
def test_bartlett_has_the_law_of_drawn_weights(width):
    """Means and variances of every entry of (w, S, q), 20000 draws of each, at five sigma."""
    draws, inputs = 20_000, 3
    rng = np.random.default_rng(0)
    state = cx.toy.draw_reduced(width, inputs, rng, batch=draws)
    U = torch.from_numpy(rng.standard_normal((draws, width, inputs)))
    v = torch.from_numpy(rng.standard_normal((draws, width)))
    w, S, q = (U.mT @ v[:, :, None])[:, :, 0], U.mT @ U, v.square().sum(1)
    pairs = [(state.w, w), (state.S.flatten(1), S.flatten(1)), (state.q[:, None], q[:, None])]
    # Joint moments too: S seen along w ties the two together.
    pairs.append(
        tuple(
            ((m @ a[:, :, None])[:, :, 0] * a).sum(1, keepdim=True)
            for a, m in ((state.w, state.S), (w, S))
        )
    )
    for mine, drawn in pairs:
        for power in (1, 2):
            a, b = mine**power, drawn**power
            sigma = ((a.var(0) + b.var(0)) / draws).sqrt()
            assert ((a.mean(0) - b.mean(0)).abs() <= 5 * sigma + 1e-9).all()


@pytest.mark.parametrize("width", [4, 1000, 10**6, 10**9, 10**12, 10**15])
def test_bartlett_at_any_width(width):
    """The independent pieces of a Gaussian (U, v), each against its law (Kolmogorov-Smirnov)."""
    stats = pytest.importorskip("scipy.stats")
    w, S, q = cx.toy.draw_reduced(width, 3, np.random.default_rng(1), batch=20_000)
    pieces = {"q": (q, stats.chi2(width).cdf)}
    for i in range(3):
        pieces[f"w{i}"] = (w[:, i] / q.sqrt(), stats.norm.cdf)
    # Each column of U against those before it: Schur complements and regression coefficients.
    rest = S
    for k in range(3):
        pivot = rest[:, 0, 0]
        pieces[f"pivot{k}"] = (pivot, stats.chi2(width - k).cdf)
        for j in range(1, 3 - k):
            pieces[f"S{k}{j}"] = (rest[:, 0, j] / pivot.sqrt(), stats.norm.cdf)
        rest = rest[:, 1:, 1:] - rest[:, 1:, :1] * rest[:, :1, 1:] / pivot[:, None, None]
    # U along v is independent of the rest of U: S - w w'/q has W - 1 degrees of freedom.
    pieces["off v"] = (S[:, 0, 0] - w[:, 0].square() / q, stats.chi2(width - 1).cdf)
    for name, (values, law) in pieces.items():
        assert stats.kstest(values.numpy(), law).pvalue > 1e-4, name
    names = [n for n in pieces if n != "off v"]
    correlation = np.corrcoef(np.stack([pieces[n][0].numpy() for n in names]))
    allowed = 5 / 20_000**0.5
    for i, a in enumerate(names):
        for j, b in enumerate(names[:i]):
            if {a[0], b[0]} != {"w", "S"} and {a[0], b[0]} != {"w", "p"}:
                assert abs(correlation[i, j]) < allowed, (a, b)


@pytest.mark.parametrize("width", [10**6, 10**12, 10**15])
def test_any_width(data, width):
    """At large width f_0 ~ N(0, |x|^2) and lambda_0 nears that of the infinite net."""
    x, y = data
    traj = cx.toy.simulate(c=[1.0, 2.6, 4.3], width=width, x=x, y=y, steps=150)
    assert traj.phases == ["lazy", "catapult", "divergent"]
    limit = 2 * torch.linalg.matrix_norm(x, 2) ** 2 / len(x)
    assert abs(float(traj.lambda0[0] / limit) - 1) < 20 / width**0.5
    assert abs(float(traj.eta_lambda[0, -1]) - 1) < 1e3 / width
    assert traj.eta_lambda[1, -1] < 2
    assert traj.loss.isfinite().all()
    assert 1e-4 * width < traj.loss[1].max() < width * float(limit) ** 2


def test_only_one_direction_catapults(data):
    """Theory 2.3: S_11 and |v|^2 fall together and the rest of S stays, so that
    |theta_f|^2 / |theta_0|^2 = (D - 1 + 2 lambda_f / lambda_0) / (D + 1) at large width."""
    x, y = data
    traj = cx.toy.simulate(c=[2.6], width=10**12, x=x, y=y, steps=400)
    fall = float(traj.curvature[0, -1] / traj.curvature[0, 0])
    norm = float(traj.weight_norm[0, -1] / traj.weight_norm[0, 0]) ** 2
    assert fall < 0.6
    assert abs(norm - (3 + 2 * fall) / 5) < 1e-3


@pytest.mark.parametrize("width", [10**3, 10**6, 10**12])
def test_largest_stable_rate_is_four(data, width):
    """Theory 2.3, lambda_2 / lambda_1 <= 0.5: c_max = 4.0 within the grid."""
    x, y = data
    values = torch.linalg.svdvals(x) ** 2
    assert values[1] / values[0] <= 0.5
    c = torch.arange(3.5, 4.55, 0.05, dtype=torch.float64)
    traj = cx.toy.simulate(c=c, width=width, x=x, y=y, steps=600)
    stable = c[traj.diverged_at < 0].max()
    broken = c[traj.diverged_at >= 0].min()
    allowed = 0.1 if width == 10**3 else 0.05
    assert abs(float(stable) - 4) <= allowed + 1e-9
    assert abs(float(broken) - 4) <= allowed + 1e-9


def test_time_of_the_peak_grows_with_the_log_of_the_width(data):
    """Theory 2.2: at c = 2.6, 7.35 more steps per factor 1000 in width; mean of 200 starts."""
    x, y = data
    peaks = []
    for width in (10**6, 10**15):
        traj = cx.toy.simulate(c=[2.6] * 200, width=width, x=x, y=y * 0, steps=80, seed=range(200))
        assert traj.phases == ["catapult"] * 200
        peaks.append(float(traj.loss.argmax(1).double().mean()))
    assert abs((peaks[1] - peaks[0]) / 3 - 7.35) < 0.3


def test_verdicts_agree_with_phases(data):
    x, y = data
    traj = cx.toy.simulate(c=[0.5, 2.6, 9.0], width=1000, x=x, y=y, steps=100)
    assert [v.phase for v in traj.verdicts] == traj.phases == ["lazy", "catapult", "divergent"]
    assert traj.verdicts[1].evidence.eta_lambda_end < 2
    assert traj.verdicts[1].evidence.loss_peak > 1


X, Y = torch.ones(3, 2), torch.zeros(3)
U, V = torch.ones(4, 2), torch.ones(4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(3)}, ValueError, r"x must have shape \(N, D\), got \(3,\)"),
        ({"x": torch.ones(0, 2), "y": torch.ones(0)}, ValueError, "x must not be empty"),
        ({"x": X * torch.nan}, ValueError, "x must be finite"),
        ({"y": Y + torch.inf}, ValueError, "y must be finite"),
        ({"y": torch.zeros(3, 1)}, ValueError, r"y must have shape \(3,\)"),
        ({"x": X + 0j}, TypeError, "x must be real"),
        ({"dtype": torch.float16}, TypeError, "dtype must be torch.float32 or torch.float64"),
        ({"eta": [0.1, -0.2]}, ValueError, "eta must be positive and finite, got -0.2"),
        ({"eta": 0.0}, ValueError, "eta must be positive and finite, got 0.0"),
        ({"eta": [float("nan")]}, ValueError, "eta must be positive and finite, got nan"),
        ({"eta": [[0.1]]}, ValueError, r"eta must have shape \(R,\)"),
        ({"eta": []}, ValueError, "eta must hold at least one rate"),
        ({"eta": None}, ValueError, "exactly one of eta and c"),
        ({"c": [1.0]}, ValueError, "exactly one of eta and c"),
        ({"width": None}, ValueError, "width must be given unless init is"),
        ({"width": 0}, ValueError, "width must be a whole number from 1 to 1e15, got 0"),
        ({"width": 2.5}, ValueError, "width must be a whole number"),
        ({"width": 10**16}, ValueError, "width must be a whole number"),
        ({"width": "9"}, TypeError, "width must be a number"),
        ({"width": 10**12, "form": "direct"}, ValueError, "the direct form needs"),
        ({"form": "scalar"}, ValueError, "the scalar form takes one sample"),
        ({"seed": [1, 2, 3]}, ValueError, "seed must be one or 2 numbers, got 3"),
        ({"seed": -1}, ValueError, "seed must be >= 0, got -1"),
        ({"seed": [1.0]}, TypeError, "seed must be a whole number, got float"),
        ({"steps": -1}, ValueError, "steps must be >= 0"),
        ({"steps": 1.5}, TypeError, "steps must be an int"),
        ({"record_every": 0}, ValueError, "record_every must be >= 1"),
        ({"curvature_every": 0}, ValueError, "curvature_every must be >= 1"),
        ({"init": U}, TypeError, r"init must be a pair \(U, v\), got Tensor"),
        ({"init": (U, V)}, ValueError, "width must be that of init, 4"),
        ({"init": (U[:, :1], V), "width": 4}, ValueError, r"init\[0\] must have shape \(W, 2\)"),
        ({"init": (U, V[:2]), "width": 4}, ValueError, r"init\[1\] must match"),
        ({"init": (U * torch.nan, V), "width": 4}, ValueError, r"init\[0\] must be finite"),
        ({"init": (U.int(), V), "width": 4}, TypeError, r"init\[0\] must be floating-point"),
        ({"x": X * 0, "eta": None, "c": 1.0}, ValueError, "positive initial curvature"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"eta": [0.1, 0.2], "width": 9, "x": X, "y": Y, "steps": 2, **change}
    with pytest.raises(error, match=message):
        cx.toy.simulate(**arguments)


def test_draw_reduced_needs_room():
    with pytest.raises(ValueError, match="width must exceed inputs = 3, got 3"):
        cx.toy.draw_reduced(3, 3, np.random.default_rng(0))
