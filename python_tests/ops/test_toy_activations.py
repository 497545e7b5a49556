"""toy_gd with every activation."""

import mpmath
import pytest
import torch

from catapult_ext.testing import max_error
from catapult_ext.testing.toy_cases import exact_toy_gd as oracle
from catapult_ext.testing.toy_cases import lean_torch_gd, toy_problem
from catapult_ext.testing.toy_cases import run_toy_gd as run

NAMES = ["relu", "leaky(0.5)", "leaky(-2)", "abs", "tanh", "erf", "gelu", "softplus", "silu"]


def assert_close(got, want, tolerance):
    """Every row relative to its own largest value."""
    scale = want.double().abs().amax(-1, keepdim=True).clamp_min(1e-300)
    assert max_error(got.double() / scale, want.double() / scale) <= tolerance


def assert_same_run(got, want, tolerance):
    """Records and final weights."""
    for mine, exact in zip((*got[0], *got[1:]), (*want[0], *want[1:]), strict=True):
        assert mine.shape == exact.shape
        assert_close(
            mine.flatten(1) if mine.dim() > 1 else mine,
            exact.flatten(1) if exact.dim() > 1 else exact,
            tolerance,
        )


@pytest.mark.parametrize("activation", NAMES)
def test_follows_explicit_gradient_descent(backend, activation):
    """float64, through catapults, to 1e-12 of the largest value at every step."""
    steps = 60 if backend.name.startswith("cpu") else 6
    problem = toy_problem([1.0, 1.0, 1.0], width=67, inputs=4, samples=7)
    start, _, _ = oracle(problem, 0, curvature_every=1, activation=activation)
    c = torch.tensor([0.5, 2.4, 2.8], dtype=torch.float64)
    problem = problem._replace(eta=c / start.curvature[:, 0])
    want = oracle(problem, steps, curvature_every=5, activation=activation)
    got = run(backend, problem, steps, curvature_every=5, activation=activation)
    assert_same_run(got, want, 1e-12)
    assert got[0].diverged_at.tolist() == [-1] * 3
    if steps == 60:
        assert (got[0].loss[2].diff() > 0).any()
        assert (problem.eta * got[0].curvature[:, -1]).max() < 2 < c[1]


@pytest.mark.parametrize("activation", ["leaky(0.5)", "softplus"])
@pytest.mark.parametrize("width", [1, 8, 16, 33, 67, 300])
@pytest.mark.parametrize(
    ("inputs", "samples"), [(1, 1), (3, 2), (8, 8), (16, 33), (17, 19), (35, 9)]
)
def test_sizes(backend, dtype, width, inputs, samples, activation):
    """Softplus is not 0 at 0: what pads the tiles must not take part."""
    problem = toy_problem([0.4, 0.9], width=width, inputs=inputs, samples=samples, dtype=dtype)
    options = {"curvature_every": 2, "activation": activation}
    got, want = run(backend, problem, 3, **options), oracle(problem, 3, **options)
    assert_same_run(got, want, 200 * torch.finfo(dtype).eps)
    assert got[0].loss.dtype == got[1].dtype == dtype


def phi_of(backend, z, name):
    """phi(z) and phi'(z) to the bit, out of one step of four hidden units.

    Units 1 and 2 cancel, so that f = 0 and the residual is 1; unit 3 has v = 0, which moves by
    phi(z); the row of unit 1 moves by phi'(z) along an input that z does not see.
    """
    U, v = z.new_zeros(len(z), 4, 2), z.new_zeros(len(z), 4)
    U[:, :3, 0] = z[:, None]
    v[:, 0], v[:, 1] = 1, -1
    x, y = z.new_ones(1, 2), -z.new_ones(1)
    _, U, v = run(backend, (U, v, x, y, z.new_full((len(z),), 2.0)), 1, activation=name)
    return -v[:, 2], -U[:, 0, 1]


def exact_phi(name, z):
    """phi(z), phi'(z) and the size of the terms of phi'(z), in 40 digits."""
    one, half = mpmath.mpf(1), mpmath.mpf(1) / 2
    below = mpmath.erfc(-z / mpmath.sqrt(2)) * half
    density = mpmath.exp(-z * z / 2) / mpmath.sqrt(2 * mpmath.pi)
    gate = one / (1 + mpmath.exp(-z))
    bump = gate / (1 + mpmath.exp(z))
    value, terms = {
        "relu": (max(z, 0), [one if z > 0 else 0]),
        "leaky(0.5)": (z if z > 0 else half * z, [one if z > 0 else half]),
        "leaky(-2)": (z if z > 0 else -2 * z, [one if z > 0 else -2]),
        "abs": (abs(z), [mpmath.sign(z)]),
        "tanh": (mpmath.tanh(z), [mpmath.sech(z) ** 2]),
        "erf": (mpmath.erf(z), [2 / mpmath.sqrt(mpmath.pi) * mpmath.exp(-z * z)]),
        "gelu": (z * below, [below, z * density]),
        "softplus": (mpmath.log1p(mpmath.exp(z)), [gate]),
        "silu": (z * gate, [gate, z * bump]),
    }[name]
    return value, sum(terms), sum(abs(term) for term in terms)


@pytest.mark.parametrize("name", NAMES)
def test_accuracy(backend, dtype, name):
    """phi and phi' to 4 units in the last place over their whole range, the tails included."""
    bound = 4
    near = torch.linspace(-9, 9, 151, dtype=torch.float64)
    far = 10 ** torch.linspace(-7, 1.5, 40, dtype=torch.float64)
    z = torch.cat([near, far, -far]).to(dtype)
    got = phi_of(backend, z, name)
    least, unit = torch.finfo(dtype).tiny * 1e3, torch.finfo(dtype).eps
    with mpmath.workdps(40):
        for where, value, slope in zip(z.tolist(), *(part.tolist() for part in got), strict=True):
            exact = exact_phi(name, mpmath.mpf(where))
            scales = (abs(exact[0]), exact[2])
            for mine, true, scale in zip((value, slope), exact[:2], scales, strict=True):
                assert abs(mine - true) <= bound * unit * scale or scale < least, (where, mine)


@pytest.mark.parametrize("activation", ["relu", "softplus", "abs"])
def test_divergence(backend, dtype, activation):
    """Exact step, finite held record, weights of that step, neighbours bit for bit the same."""
    problem = toy_problem([1.0, 60.0, 2.0, 90.0], width=37, inputs=3, samples=4, dtype=dtype)
    options = {"curvature_every": 1, "activation": activation}
    got, U, v = run(backend, problem, 40, **options)
    want, exact_U, _ = oracle(problem, 40, **options)
    assert got.diverged_at.tolist() == want.diverged_at.tolist()
    assert (got.diverged_at > 0).tolist() == [False, True, False, True]
    for part in (got.loss, got.weight_norm, got.curvature):
        assert part.isfinite().all()
    for r in (1, 3):
        step = int(got.diverged_at[r])
        assert (got.loss[r, step:] == got.loss[r, step - 1]).all()
        assert (got.curvature[r, step:] == got.curvature[r, step - 1]).all()
        assert_close(U[r].flatten(), exact_U[r].flatten(), 1e-3 if dtype == torch.float32 else 1e-9)
    calm = [t[[0, 2]] if i in (0, 1, 4) else t for i, t in enumerate(problem)]
    alone, alone_U, alone_v = run(backend, calm, 40, **options)
    assert torch.equal(alone.loss, got.loss[[0, 2]])
    assert torch.equal(alone.curvature, got.curvature[[0, 2]])
    assert torch.equal(alone_U, U[[0, 2]])
    assert torch.equal(alone_v, v[[0, 2]])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "softplus"])
def test_replica_that_starts_broken(backend, bad, activation):
    """Also where the activation would hide it."""
    problem = toy_problem([1.0] * 3, width=9, inputs=3, samples=4)
    options = {"curvature_every": 5, "activation": activation}
    clean, _, _ = run(backend, problem, 5, **options)
    problem.U[1, 4, 1] = bad
    got, _, _ = run(backend, problem, 5, **options)
    assert got.diverged_at.tolist() == [-1, 0, -1]
    assert got.loss[1].isnan().all()
    assert got.curvature[1].isnan().all()
    assert torch.equal(got.loss[[0, 2]], clean.loss[[0, 2]])
    assert torch.equal(got.curvature[[0, 2]], clean.curvature[[0, 2]])


@pytest.mark.parametrize("activation", ["tanh", "erf"])
def test_saturated_units(backend, dtype, activation):
    """phi'(z) is 0 there, and nothing overflows on the way."""
    problem = toy_problem([1.0, 2.0], width=21, inputs=3, samples=4, dtype=dtype)
    problem.U.mul_(1e15)
    got, U, _ = run(backend, problem, 3, activation=activation)
    want, _, _ = oracle(problem, 3, activation=activation)
    assert torch.equal(U, problem.U)
    assert got.diverged_at.tolist() == want.diverged_at.tolist() == [-1, -1]
    assert_close(got.loss, want.loss, 50 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_float32_is_as_good_as_torch(backend, activation):
    """Root mean square over 16 seeds: at most twice the naive composition in float32."""
    ours, torchs = [], []
    for seed in range(16):
        problem = toy_problem([1.5], width=64, inputs=4, samples=6, seed=seed)
        single = type(problem)(*(t.float() for t in problem))
        exact = oracle(single, 8, activation=activation)[0].loss
        scale = exact.max()
        mine = run(backend, single, 8, activation=activation)[0].loss
        ours.append(max_error(mine / scale, exact / scale))
        naive = lean_torch_gd(type(single)(*(t.clone() for t in single)), 8, activation)
        torchs.append(max_error(naive / scale, exact / scale))
    rms = [float(torch.tensor(e).square().mean().sqrt()) for e in (ours, torchs)]
    assert rms[0] <= 2 * rms[1] + 8 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize(("width", "replicas"), [(5000, 3), (60_000, 1)])
def test_weights_beyond_one_block(backend, width, replicas):
    """On a GPU: several blocks per replica with a barrier over the grid, diverged ones included."""
    problem = toy_problem([1.5, 90.0, 0.8][:replicas], width=width, inputs=8, samples=5)
    steps = 5 if width == 5000 else 1
    options = {"curvature_every": steps, "activation": "relu"}
    got, want = run(backend, problem, steps, **options), oracle(problem, steps, **options)
    assert got[0].diverged_at.tolist() == want[0].diverged_at.tolist()
    assert_close(got[0].loss, want[0].loss, 1e-11)
    assert_close(got[0].curvature, want[0].curvature, 1e-11)
    calm = got[0].diverged_at < 0
    assert_close(got[1][calm].flatten(1), want[1][calm].flatten(1), 1e-11)


def test_replicas_in_several_launches(backend):
    """On a GPU as many replicas at a time as have scratch."""
    one = toy_problem([1.0], width=1, inputs=1, samples=1000)
    problem = [
        t.repeat(140, *[1] * (t.dim() - 1)) if i in (0, 1, 4) else t for i, t in enumerate(one)
    ]
    problem[4] *= torch.linspace(0.2, 1, 140, dtype=torch.float64)
    got = run(backend, problem, 1, activation="tanh")
    want = oracle(problem, 1, activation="tanh")
    assert_close(got[0].loss, want[0].loss, 1e-12)
    assert_close(got[2], want[2], 1e-12)


@pytest.mark.parametrize(("inputs", "samples"), [(19, 400), (400, 19), (8, 16), (9, 17)])
def test_data_in_shared_memory_or_not(backend, inputs, samples):
    """On a GPU two copies of X, in rows of whole chunks, where they take a quarter at most."""
    problem = toy_problem([0.5, 1.1], width=33, inputs=inputs, samples=samples)
    got = run(backend, problem, 3, activation="relu")
    want = oracle(problem, 3, activation="relu")
    for mine, exact in ((got[0].loss, want[0].loss), *zip(got[1:], want[1:], strict=True)):
        assert_close(mine.flatten(1), exact.flatten(1), 1e-11)


def test_float32_data_beyond_shared_memory(backend):
    """The data of twice as many samples fit in float32: a larger set than above."""
    problem = toy_problem([0.5], width=8, inputs=19, samples=800, dtype=torch.float32)
    got = run(backend, problem, 1, activation="relu")
    want = oracle(problem, 1, activation="relu")
    for mine, exact in ((got[0].loss, want[0].loss), *zip(got[1:], want[1:], strict=True)):
        assert_close(mine.flatten(1), exact.flatten(1), 1e-5)


def test_linear_is_the_limit_of_leaky(backend):
    problem = toy_problem([0.5, 2.6], width=37, inputs=3, samples=4)
    options = {"curvature_every": 5}
    leaky = run(backend, problem, 10, activation="leaky(1)", **options)
    assert_same_run(leaky, run(backend, problem, 10, **options), 1e-11)
