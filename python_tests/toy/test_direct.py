"""The batched engine: every activation and every rule of motion against autograd."""

import importlib
import statistics

import pytest
import torch

import catapult_ext as cx
from catapult_ext.testing import max_error
from catapult_ext.testing.toy_cases import stretched_data
from catapult_ext.toy.rules import Batches

PHI = {
    "linear": lambda z: z,
    "relu": torch.relu,
    "leaky(0.5)": lambda z: torch.nn.functional.leaky_relu(z, 0.5),
    "abs": torch.abs,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "gelu": torch.nn.functional.gelu,
    "softplus": torch.nn.functional.softplus,
    "silu": torch.nn.functional.silu,
}
RULES = {
    "momentum": {"momentum": 0.5},
    "l2": {"l2": 0.01},
    "batches": {"batch_size": 3},
    "all": {"momentum": 0.3, "l2": 0.02, "batch_size": 4},
}


@pytest.fixture
def data():
    return stretched_data(10, 3)


def weights(width, inputs, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = torch.randn(width, inputs + 1, dtype=torch.float64, generator=g)
    return draw[:, :-1].clone(), draw[:, -1].clone()


def autograd_descent(phi, x, y, start, eta, *, momentum=0.0, l2=0.0, batch_size=None, seed=0):
    """Losses, norms and top kernel eigenvalues by autograd; ``eta`` is a list of rates."""
    U, v = (t.clone().requires_grad_() for t in start)
    velocity = [torch.zeros_like(U), torch.zeros_like(v)]
    batches = None if batch_size is None else Batches(len(x), batch_size, [seed])
    loss, norm, top = [], [], []
    for t in range(len(eta) + 1):
        f = phi(x @ U.t()) @ v / len(v) ** 0.5
        rows = [torch.autograd.grad(out, (U, v), retain_graph=True) for out in f]
        J = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        loss.append((f - y).square().mean().detach() / 2)
        norm.append((U.square().sum() + v.square().sum()).sqrt().detach())
        top.append(torch.linalg.eigvalsh(J @ J.t() / len(x))[-1])
        if t == len(eta):
            break
        chosen = slice(None) if batches is None else batches.weights(t)[0] > 0
        trained = (f - y)[chosen].square().mean() / 2
        trained = trained + l2 / 2 * (U.square().sum() + v.square().sum())
        grads = torch.autograd.grad(trained, (U, v))
        with torch.no_grad():
            for i, part in enumerate((U, v)):
                velocity[i] = momentum * velocity[i] - eta[t] * grads[i]
                part += velocity[i]
    return torch.stack(loss), torch.stack(norm), torch.stack(top)


def relative(got, want):
    return max_error(got / want.abs().max(), want / want.abs().max())


@pytest.mark.parametrize("name", PHI)
def test_every_activation_follows_autograd(data, name):
    """Forty steps, the curvature included; linear and ReLU go through a catapult."""
    x, y = data
    start = weights(40, 3)
    got = cx.toy.simulate(
        c=[2.4],
        x=x,
        y=y,
        steps=40,
        init=start,
        activation=name,
        l2=1e-9,
        form="direct",
        curvature_every=1,
    )
    want = autograd_descent(PHI[name], x, y, start, [float(got.eta)] * 40, l2=1e-9)
    assert got.diverged_at.item() == -1
    for mine, exact in zip((got.loss, got.weight_norm, got.curvature), want, strict=True):
        assert relative(mine[0], exact) <= 1e-10
    assert float(got.c) == pytest.approx(2.4, rel=1e-12)
    if name in ("linear", "relu"):
        assert got.loss[0, 2:].max() > 1.1 * got.loss[0, 0]
        assert got.eta_lambda[0, -1] < 2


@pytest.mark.parametrize("form", ["direct", "reduced"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_follows_autograd(data, form, rule):
    """200 steps of linear networks through a catapult, in both forms, at a rate that drops."""
    x, y = data
    start, steps = weights(60, 3), 200
    rates = cx.toy.drop([0.8, 2.3], steps, at=150, factor=0.5)
    got = cx.toy.simulate(
        c=rates,
        x=x,
        y=y,
        steps=steps,
        init=start,
        form=form,
        seed=4,
        curvature_every=10,
        **RULES[rule],
    )
    assert got.form == form
    assert got.diverged_at.tolist() == [-1, -1]
    for i in range(2):
        want = autograd_descent(
            PHI["linear"], x, y, start, got.eta[i].tolist(), seed=4, **RULES[rule]
        )
        assert relative(got.loss[i], want[0]) <= 1e-10
        assert relative(got.weight_norm[i], want[1]) <= 1e-10
        assert relative(got.curvature[i], want[2][::10]) <= 1e-10


def test_agrees_with_the_fused_kernels(data):
    """A test set sends plain gradient descent through the batched engine too: the same records."""
    x, y = data
    for form, phi in (
        ("direct", "linear"),
        ("reduced", "linear"),
        ("direct", "leaky(0.5)"),
        ("direct", "softplus"),
    ):
        kwargs = {
            "width": 80,
            "x": x,
            "y": y,
            "steps": 60,
            "c": [0.7, 2.6, 9.0],
            "form": form,
            "curvature_every": 5,
            "activation": phi,
        }
        fused = cx.toy.simulate(**kwargs)
        batched = cx.toy.simulate(test=(x, y), **kwargs)
        assert batched.diverged_at.tolist() == fused.diverged_at.tolist()
        assert fused.diverged_at.tolist()[:2] == [-1, -1]
        assert fused.diverged_at[2] > 0
        for name in ("loss", "weight_norm", "curvature"):
            mine, other = getattr(batched, name), getattr(fused, name)
            assert max(relative(a, b) for a, b in zip(mine, other, strict=True)) <= 1e-9
        assert (
            torch.equal(batched.test_loss[:2], batched.loss[:2])
            or relative(batched.test_loss[:2], batched.loss[:2]) <= 1e-12
        )
        assert fused.test_loss.shape == (3, 0)


def test_any_width_with_momentum(data):
    """Momentum moves the onset to 2 (1 + beta) at a width that no memory holds."""
    x, y = data
    for c, grows in ((3.1, True), (2.9, False)):
        peaks = []
        for width in (10**6, 10**9):
            run = cx.toy.simulate(
                c=[c] * 5, width=width, x=x, y=y * 0, steps=1500, momentum=0.5, seed=range(5)
            )
            assert run.form == "reduced"
            assert run.phases == ["catapult" if grows else "lazy"] * 5
            peaks.append(float(run.loss.amax(1).median()))
        ratio = peaks[1] / peaks[0]
        assert ratio > 100 if grows else ratio < 3


def test_mini_batches():
    batches = Batches(10, 3, [5, 6])
    epoch = torch.stack([batches.weights(t) for t in range(3)])
    assert (epoch.sum(2) == 10).all()  # 3 samples of weight 10 / 3
    assert ((epoch > 0).sum(0) <= 1).all()  # without replacement
    assert not torch.equal(epoch[:, 0], epoch[:, 1])
    assert torch.equal(batches.weights(1), epoch[1])
    assert not torch.equal(batches.weights(3), epoch[0])
    assert torch.equal(batches.rows(1, 2).weights(2)[0], epoch[2, 1])


def test_a_batch_of_everything_is_full_batch(data):
    x, y = data
    kwargs = {"width": 50, "x": x, "y": y, "steps": 30, "c": [2.5]}
    whole = cx.toy.simulate(**kwargs)
    assert relative(cx.toy.simulate(batch_size=10, **kwargs).loss, whole.loss) <= 1e-11
    assert relative(cx.toy.simulate(batch_size=5, **kwargs).loss, whole.loss) > 1e-3


def test_seeds_are_a_replica_axis(data):
    """Weights and batches of a replica are those of its seed, whoever runs beside it."""
    x, y = data
    kwargs = {"width": 30, "x": x, "y": y, "steps": 12, "activation": "tanh", "batch_size": 4}
    many = cx.toy.simulate([0.1] * 3, seed=[4, 5, 6], **kwargs)
    for i, seed in enumerate([4, 5, 6]):
        one = cx.toy.simulate([0.1], seed=seed, **kwargs)
        assert relative(many.loss[i], one.loss[0]) <= 1e-13
    assert relative(many.loss[0], many.loss[1]) > 1e-3


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_divergence_is_exact_and_harms_nobody(data, activation):
    x, y = data
    c = [9.0 + i if i % 2 else 0.5 + 0.1 * i for i in range(14)]
    kwargs = {
        "width": 30,
        "x": x,
        "y": y,
        "steps": 40,
        "activation": activation,
        "momentum": 0.1,
        "curvature_every": 1,
    }
    many = cx.toy.simulate(c=c, **kwargs)
    for part in (many.loss, many.weight_norm, many.curvature):
        assert part.isfinite().all()
    for i, value in enumerate(c):
        one = cx.toy.simulate(c=[value], **kwargs)
        step = int(many.diverged_at[i])
        assert step == int(one.diverged_at)
        assert (step >= 0) == (value > 6)
        assert relative(many.loss[i], one.loss[0]) <= 1e-9
        if step >= 0:
            assert step > 1
            assert (many.loss[i, step:] == many.loss[i, step - 1]).all()
            assert (many.curvature[i, step:] == many.curvature[i, step - 1]).all()
    strided = cx.toy.simulate(c=c, record_every=7, **kwargs)
    gone = many.diverged_at >= 0
    assert torch.equal(strided.loss[gone, -1], many.loss[gone, -1])
    assert torch.equal(strided.loss[~gone], many.loss[~gone, ::7])


def test_diverged_replicas_leave_the_batch(data, monkeypatch):
    """Their steps are not computed: the sizes of the batches say so."""
    x, y = data
    direct = importlib.import_module("catapult_ext.toy.direct")
    sizes = []
    original = direct._Descent.move
    monkeypatch.setattr(
        direct._Descent,
        "move",
        lambda run, *a: sizes.append(len(run.state[0])) or original(run, *a),
    )
    run = cx.toy.simulate(
        c=[1.0] + [30.0] * 7, width=30, x=x, y=y, steps=50, activation="erf", l2=1e-12
    )
    assert (run.diverged_at[1:] > 0).all()
    last = int(run.diverged_at.max())
    assert last < 30
    assert sizes == [8] * last + [1] * (50 - last)


def test_chunks_do_not_matter(data, monkeypatch):
    x, y = data
    kwargs = {"width": 20, "x": x, "y": y, "steps": 10, "c": cx.toy.warm_up([0.5, 1.5, 9.0], 10, 4),
              "activation": "gelu", "momentum": [0.1, 0.2, 0.3], "l2": [0.0, 0.1, 0.2],
              "seed": [1, 2, 3], "batch_size": 3, "test": (x[:4], y[:4])}  # fmt: skip
    whole = cx.toy.simulate(**kwargs)
    simulator = importlib.import_module("catapult_ext.toy.simulator")
    monkeypatch.setattr(simulator, "TORCH_CHUNK_BYTES", 1)
    parts = cx.toy.simulate(**kwargs)
    for name in ("loss", "weight_norm", "curvature", "test_loss"):
        assert relative(getattr(parts, name), getattr(whole, name)) <= 1e-12


def test_test_loss(data):
    x, y = data
    start = weights(25, 3)
    run = cx.toy.simulate(
        0.05,
        x=x[:6],
        y=y[:6],
        steps=9,
        init=start,
        record_every=3,
        activation="silu",
        test=(x[6:], y[6:]),
    )
    f = PHI["silu"](x[6:] @ start[0].t()) @ start[1] / 5
    assert run.test_loss.shape == (1, 4)
    assert float(run.test_loss[0, 0]) == pytest.approx(float((f - y[6:]).square().mean() / 2))
    assert not torch.isclose(run.test_loss[0, 3], run.test_loss[0, 0])


def test_schedules():
    assert cx.toy.warm_up(2.0, 5, 4).tolist() == [[0.5, 1.0, 1.5, 2.0, 2.0]]
    assert cx.toy.warm_up([2.0, 4.0], 2, 0).tolist() == [[2.0, 2.0], [4.0, 4.0]]
    assert cx.toy.drop([1.0, 3.0], 4, 2, 0.5).tolist() == [[1, 1, 0.5, 0.5], [3, 3, 1.5, 1.5]]
    assert cx.toy.staircase(1.0, 5, 2, 2.0).tolist() == [[1, 1, 2, 2, 4]]
    for call, message in (
        (lambda: cx.toy.warm_up(1.0, 3, -1), "over must be >= 0"),
        (lambda: cx.toy.drop(1.0, 3, 1, 0.0), "factor must be positive"),
        (lambda: cx.toy.staircase(1.0, 3, 0, 2.0), "every must be >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_warm_up_reaches_rates_that_diverge_at_once(data):
    """A slow warm-up crosses eta * lambda = 2 in small catapults and survives c = 5."""
    x, y = data
    kwargs = {"width": 10**6, "x": x, "y": y, "steps": 2000}
    assert cx.toy.simulate(c=[5.0], **kwargs).phases == ["divergent"]
    run = cx.toy.simulate(c=cx.toy.warm_up(5.0, 2000, 1500), curvature_every=2000, **kwargs)
    assert run.phases == ["catapult"]
    assert float(run.c) == pytest.approx(5)
    assert run.eta_lambda[0, -1] < 2


def test_persistent_catapult(data):
    """Stairs set off one catapult after the other; c = 7.5 is reached, which alone diverges."""
    x, y = data
    every, stairs = 200, 8
    steps = every * stairs
    kwargs = {"width": 10**6, "x": x, "y": y, "steps": steps}
    run = cx.toy.simulate(
        c=cx.toy.staircase(2.1, steps, every, 1.2), curvature_every=every, **kwargs
    )
    assert run.phases == ["catapult"]
    loss = run.loss[0, :steps].view(stairs, every)
    # Each grows out of the rounding that the one before left: their number may vary.
    assert int((loss.amax(1) > 1000 * loss[:, 0]).sum()) >= 3
    assert run.eta_lambda[0, -1] < 2
    assert float(run.c) == pytest.approx(2.1 * 1.2**7)
    assert cx.toy.simulate(c=float(run.c), **kwargs).phases == ["divergent"]


def test_verdicts_with_momentum(data):
    x, y = data
    run = cx.toy.simulate(c=[2.5, 3.2], width=10**6, x=x, y=y, steps=800, momentum=0.5)
    assert [v.phase for v in run.verdicts] == run.phases == ["lazy", "catapult"]
    assert run.critical.tolist() == [3.0, 3.0]
    assert run.verdicts[1].flags == ()


LAST_STABLE = {
    "linear": 4.0,
    "relu": 4.5,
    "leaky(0.5)": 4.75,
    "abs": 3.75,
    "tanh": 4.25,
    "gelu": 4.5,
    "softplus": 4.0,
}


def last_stable(name, seed, c):
    """Largest c of a fresh data set and network (32 samples of 40 inputs, width 512)."""
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(32, 40, generator=g) / 40**0.5, torch.randn(32, generator=g).sign()
    run = cx.toy.simulate(
        c=c,
        width=512,
        x=x,
        y=y,
        steps=150,
        seed=seed,
        activation=name,
        form="direct",
        record_every=150,
    )
    return float(c[run.diverged_at < 0].max())


@pytest.mark.parametrize("name", ["relu", "abs", "tanh"])
def test_last_stable_rate(name):
    """One seed, and only rates on both sides of the expected one."""
    c = LAST_STABLE[name] + torch.tensor([-0.75, -0.5, 1.0])
    assert last_stable(name, 0, c) == float(c[1])


@pytest.mark.nightly
@pytest.mark.parametrize("name", LAST_STABLE)
def test_last_stable_rate_by_activation(name):
    c = torch.arange(2.5, 6.75, 0.25)
    median = statistics.median(last_stable(name, seed, c) for seed in range(5))
    assert abs(median - LAST_STABLE[name]) <= 0.5


X, Y = torch.ones(3, 2), torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"activation": "relux"}, ValueError, "activation must be one of linear, relu, .*'relux'"),
        ({"activation": torch.relu}, TypeError, "activation must be a name"),
        ({"activation": "tanh", "form": "reduced"}, ValueError, "the reduced form is linear"),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1.0\)"),
        ({"momentum": [0.1] * 3}, ValueError, r"momentum must be a number or have shape \(2,\)"),
        ({"l2": -0.1}, ValueError, "l2 must be in"),
        ({"batch_size": 4}, ValueError, r"batch_size must be in \[1, 3\], got 4"),
        ({"batch_size": 1.0}, TypeError, "batch_size must be an int"),
        ({"eta": torch.ones(2, 5)}, ValueError, r"eta must have shape \(R,\) or \(R, 2\)"),
        ({"test": X}, TypeError, r"test must be a pair \(x, y\)"),
        ({"test": (X[:, :1], Y)}, ValueError, r"test\[0\] must have shape \(M, 2\)"),
        ({"test": (X * torch.inf, Y)}, ValueError, "test: x must be finite"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"eta": [0.1, 0.2], "width": 9, "x": X, "y": Y, "steps": 2, **change}
    with pytest.raises(error, match=message):
        cx.toy.simulate(**arguments)
