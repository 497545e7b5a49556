import pytest
import torch

from catapult_ext import ops
from catapult_ext.testing import max_error
from catapult_ext.testing.toy_cases import exact_toy_gd as oracle
from catapult_ext.testing.toy_cases import lean_torch_gd, toy_problem
from catapult_ext.testing.toy_cases import run_toy_gd as run

RATES = [0.5, 1.2, 2.6, 3.3]


def assert_close(got, want, tolerance):
    """Every row relative to its own largest value."""
    scale = want.double().abs().amax(-1, keepdim=True).clamp_min(1e-300)
    assert max_error(got.double() / scale, want.double() / scale) <= tolerance


def test_follows_explicit_gradient_descent(backend):
    """float64, through catapults, to 1e-12 of the largest loss at every step."""
    steps = 200 if backend.name.startswith("cpu") else 20
    problem = toy_problem(RATES, width=300, inputs=4, samples=7)
    got, U, v = run(backend, problem, steps, curvature_every=10)
    want, exact_U, exact_v = oracle(problem, steps, curvature_every=10)
    assert got.diverged_at.tolist() == [-1] * 4
    for mine, exact in zip(got, want, strict=True):
        assert mine.shape == exact.shape
    assert_close(got.loss, want.loss, 1e-12)
    assert_close(got.weight_norm, want.weight_norm, 1e-12)
    assert_close(got.curvature, want.curvature, 1e-12)
    assert max_error(U, exact_U) <= 1e-11
    assert max_error(v, exact_v) <= 1e-11
    if steps == 200:  # the catapult happened, and its curvature came down below 2 / eta
        assert got.loss[2].max() > 10 * got.loss[2, 0]
        assert (problem.eta * got.curvature[:, -1])[2:].max() < 2


@pytest.mark.parametrize("width", [1, 7, 8, 16, 17, 33, 67, 131])
@pytest.mark.parametrize(
    ("inputs", "samples"), [(1, 1), (3, 2), (8, 8), (16, 40), (17, 19), (35, 9)]
)
def test_sizes(backend, dtype, width, inputs, samples):
    problem = toy_problem([0.4, 0.9, 1.4], width=width, inputs=inputs, samples=samples, dtype=dtype)
    got, U, v = run(backend, problem, 6, curvature_every=3)
    want, exact_U, exact_v = oracle(problem, 6, curvature_every=3)
    tolerance = 200 * torch.finfo(dtype).eps
    assert got.loss.dtype == U.dtype == dtype
    assert_close(got.loss, want.loss, tolerance)
    assert_close(got.weight_norm, want.weight_norm, tolerance)
    assert_close(got.curvature, want.curvature, tolerance)
    assert_close(U.flatten(1), exact_U.flatten(1), tolerance)
    assert_close(v, exact_v, tolerance)


@pytest.mark.parametrize("samples", [300, 3000])
def test_many_samples(backend, samples):
    """On a GPU: more batches of 32 than the block has warps, then half its shared memory."""
    problem = toy_problem([0.5, 2.5], width=40, inputs=8, samples=samples)
    got, U, _ = run(backend, problem, 4, curvature_every=2)
    want, exact_U, _ = oracle(problem, 4, curvature_every=2)
    assert_close(got.loss, want.loss, 1e-12)
    assert_close(got.curvature, want.curvature, 1e-12)
    assert_close(U.flatten(1), exact_U.flatten(1), 1e-12)


@pytest.mark.parametrize("samples", [61, 45])
def test_curvature_of_many_inputs(backend, dtype, samples):
    """On a GPU: matrices of a record that do not fit in a warp's share of shared memory."""
    problem = toy_problem([0.5, 2.5], width=20, inputs=60, samples=samples, dtype=dtype)
    got, _, _ = run(backend, problem, 2, curvature_every=1)
    want = oracle(problem, 2, curvature_every=1)[0].curvature
    assert_close(got.curvature, want, 200 * torch.finfo(dtype).eps)


def test_wide_inputs(backend):
    """Tiles too large for the nearest cache are taken fewer at a time."""
    for inputs in (70, 200):
        problem = toy_problem([0.5, 2.5], width=40, inputs=inputs, samples=5)
        got, _, _ = run(backend, problem, 5)
        assert_close(got.loss, oracle(problem, 5)[0].loss, 1e-12)


def test_no_replicas(backend, dtype):
    problem = toy_problem([1.0], width=3, inputs=2, samples=2, dtype=dtype)
    empty = [problem.U[:0], problem.v[:0], problem.x, problem.y, problem.eta[:0]]
    got, _, _ = run(backend, empty, 5)
    assert got.loss.shape == (0, 6)
    assert got.diverged_at.shape == (0,)


def test_float32_is_as_good_as_torch(backend):
    """Root mean square over 16 seeds: at most twice the naive composition in float32."""
    ours, torchs = [], []
    for seed in range(16):
        problem = toy_problem([2.6], width=128, inputs=4, samples=6, seed=seed)
        single = type(problem)(*(t.float() for t in problem))
        exact = oracle(single, 30)[0].loss
        scale = exact.max()
        ours.append(max_error(run(backend, single, 30)[0].loss / scale, exact / scale))
        naive = lean_torch_gd(type(single)(*(t.clone() for t in single)), 30)
        torchs.append(max_error(naive / scale, exact / scale))
    rms = [float(torch.tensor(e).square().mean().sqrt()) for e in (ours, torchs)]
    assert rms[0] <= 2 * rms[1] + 8 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("record_every", [1, 3, 7, 50])
def test_strides(backend, record_every):
    problem = toy_problem(RATES, width=20, inputs=3, samples=4)
    full, U, _ = run(backend, problem, 20, curvature_every=1)
    some, same_U, _ = run(
        backend, problem, 20, record_every=record_every, curvature_every=record_every
    )
    assert torch.equal(some.loss, full.loss[:, ::record_every])
    assert torch.equal(some.weight_norm, full.weight_norm[:, ::record_every])
    assert torch.equal(some.curvature, full.curvature[:, ::record_every])
    assert torch.equal(U, same_U)


def test_no_steps(backend, dtype):
    problem = toy_problem(RATES, width=9, inputs=3, samples=4, dtype=dtype)
    got, U, _ = run(backend, problem, 0, curvature_every=5)
    assert got.loss.shape == got.curvature.shape == (4, 1)
    assert torch.equal(U, problem.U)


def test_divergence(backend, dtype):
    """Exact step, finite held record, weights of that step, neighbours bit for bit the same."""
    problem = toy_problem([1.0, 9.0, 2.6, 30.0, 1.5], width=37, inputs=3, samples=4, dtype=dtype)
    got, U, v = run(backend, problem, 60, curvature_every=1)
    want, exact_U, _ = oracle(problem, 60, curvature_every=1)
    assert got.diverged_at.tolist() == want.diverged_at.tolist()
    assert (got.diverged_at >= 0).tolist() == [False, True, False, True, False]
    for part in (got.loss, got.weight_norm, got.curvature):
        assert part.isfinite().all()
    for r in (1, 3):
        step = int(got.diverged_at[r])
        assert step > 1
        assert (got.loss[r, step:] == got.loss[r, step - 1]).all()
        assert (got.curvature[r, step:] == got.curvature[r, step - 1]).all()
        assert_close(U[r].flatten(), exact_U[r].flatten(), 1e-3 if dtype == torch.float32 else 1e-9)
    calm = [0, 2, 4]
    alone, alone_U, alone_v = run(
        backend, [t[calm] if i in (0, 1, 4) else t for i, t in enumerate(problem)], 60
    )
    assert torch.equal(alone.loss, got.loss[calm])
    assert torch.equal(alone_U, U[calm])
    assert torch.equal(alone_v, v[calm])


def test_held_record_between_strides(backend):
    """With a stride, the held value is that of the last step before divergence."""
    problem = toy_problem([9.0], width=37, inputs=3, samples=4)
    full, _, _ = run(backend, problem, 40)
    some, _, _ = run(backend, problem, 40, record_every=20)
    step = int(full.diverged_at[0])
    assert some.diverged_at[0] == step
    assert 1 < step < 20
    assert some.loss[0, 1] == full.loss[0, step - 1]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_replica_that_starts_broken(backend, bad):
    problem = toy_problem([1.0] * 3, width=9, inputs=3, samples=4)
    clean, _, _ = run(backend, problem, 5, curvature_every=5)
    problem.U[1, 4, 1] = bad
    got, _, _ = run(backend, problem, 5, curvature_every=5)
    assert got.diverged_at.tolist() == [-1, 0, -1]
    assert got.loss[1].isnan().all()
    assert got.curvature[1].isnan().all()
    assert torch.equal(got.loss[[0, 2]], clean.loss[[0, 2]])


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_magnitudes(backend, scale):
    """Inputs s x with eta / s^2 and weights as before: f scales with s, so do the targets."""
    problem = toy_problem(RATES, width=31, inputs=3, samples=4)
    plain, U, _ = run(backend, problem, 30)
    _, _, x, y, eta = problem
    scaled, same_U, _ = run(
        backend, [problem.U, problem.v, x * scale, y * scale, eta / scale**2], 30
    )
    assert_close(scaled.loss / scale**2, plain.loss, 1e-11)
    assert max_error(U, same_U) <= 1e-10


@pytest.mark.parametrize("activation", ["linear", "tanh"])
def test_same_bits_for_any_number_of_threads(dtype, activation):
    problem = toy_problem([1.0, 9.0, 2.6, 3.3, 1.5], width=37, inputs=3, samples=4, dtype=dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            mine = [t.clone() for t in problem]
            results.append((ops.toy_gd(*mine, 30, activation=activation).loss, mine[0]))
    finally:
        torch.set_num_threads(before)
    for loss, U in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(U, results[0][1])


@pytest.mark.parametrize("every", [11, 2**62, 2**63 - 1])
def test_a_stride_beyond_the_run_records_the_start(backend, every):
    problem = toy_problem([0.5, 50.0], width=9, inputs=3, samples=4)  # the second diverges
    want, _, _ = run(backend, problem, 10, record_every=10, curvature_every=10)
    got, _, _ = run(backend, problem, 10, record_every=every, curvature_every=every)
    assert got.diverged_at[1] > 0
    for part in ("loss", "weight_norm", "curvature"):
        assert torch.equal(getattr(got, part), getattr(want, part)[:, :1])


def test_autograd_knows_what_is_written():
    """A product that saved U must not be differentiated with the new one."""
    U, v, x, y, eta = toy_problem(RATES, width=9, inputs=3, samples=4)
    w = torch.ones_like(U, requires_grad=True)
    z = w * U
    versions = U._version, v._version, x._version
    ops.toy_gd(U, v, x, y, eta, 3)
    assert [t._version - n for t, n in zip((U, v, x), versions, strict=True)] == [1, 1, 0]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()
    with torch.inference_mode():
        ops.toy_gd(U.clone(), v.clone(), x, y, eta, 3)  # these have no versions


def test_other_arguments_may_be_strided(backend):
    problem = toy_problem(RATES, width=11, inputs=3, samples=4)
    want, _, _ = run(backend, problem, 10)
    U, v, x, y, eta = problem
    strided = [U, v, x.t().contiguous().t(), torch.stack([y, y], 1)[:, 1], eta.repeat(2)[4:]]
    mine = [strided[0].clone(), strided[1].clone(), *strided[2:]]
    assert torch.equal(backend.run(ops.toy_gd, *mine, 10).loss, want.loss)


def test_registration(dtype):
    problem = toy_problem(RATES, width=9, inputs=3, samples=4, dtype=dtype)
    torch.library.opcheck(torch.ops.catapult.toy_gd, (*problem, 4, 2, 2, 3, 0.0))
    compiled = torch.compile(ops.toy_gd, fullgraph=True, backend="aot_eager")
    one, two = ([t.clone() for t in problem] for _ in range(2))
    assert torch.equal(compiled(*one, 4).loss, ops.toy_gd(*two, 4).loss)
    assert torch.equal(one[0], two[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"U": [1.0]}, TypeError, "U must be a torch.Tensor, got list"),
        ({"U": lambda t: t.half()}, TypeError, "U must have dtype float32 or float64"),
        ({"U": lambda t: t.int()}, TypeError, "U must have dtype float32 or float64"),
        ({"v": lambda t: t.float()}, TypeError, "v must have the dtype of U"),
        ({"U": lambda t: t[0]}, ValueError, r"U must have shape \(R, W, D\)"),
        ({"U": lambda t: t[:, :0], "v": lambda t: t[:, :0]}, ValueError, "W, D >= 1"),
        ({"v": lambda t: t[:, :2]}, ValueError, r"v must have shape \(4, 9\), got \(4, 2\)"),
        ({"x": lambda t: t[:, :2]}, ValueError, r"x must have shape \(N, 3\), got \(4, 2\)"),
        ({"x": lambda t: t[:0], "y": lambda t: t[:0]}, ValueError, "x must have N >= 1"),
        ({"y": lambda t: t[:, None]}, ValueError, r"y must have shape \(4\)"),
        ({"eta": lambda t: t[:2]}, ValueError, r"eta must have shape \(4\), got \(2,\)"),
        ({"eta": lambda t: -t}, ValueError, "eta must be positive and finite, got -"),
        ({"eta": lambda t: t * torch.nan}, ValueError, "eta must be positive and finite, got nan"),
        ({"U": lambda t: t.mT.contiguous().mT}, ValueError, "U is updated in place"),
        ({"U": lambda t: t.requires_grad_()}, ValueError, r"U.detach\(\)"),
        ({"x": lambda t: t.to("meta")}, ValueError, "x must be on the device of U"),
        ({"steps": -1}, ValueError, "steps must be >= 0, got -1"),
        ({"steps": 2.0}, TypeError, "steps must be an int, got float"),
        ({"record_every": 0}, ValueError, "record_every must be >= 1, got 0"),
        ({"curvature_every": -2}, ValueError, "curvature_every must be >= 0, got -2"),
        ({"activation": 3}, TypeError, "activation must be a name, got int"),
        ({"activation": "leaky"}, ValueError, "activation must be one of linear, relu, leaky"),
        ({"activation": "leaky(1.2.3)"}, ValueError, r"one of .*, got 'leaky\(1.2.3\)'"),
        ({"activation": "leaky(.)"}, ValueError, r"one of .*, got 'leaky\(.\)'"),
        ({"steps": 2**62}, ValueError, r"steps must be < 2\^62"),
    ],
)
def test_bad_input(change, error, message):
    problem = toy_problem(RATES, width=9, inputs=3, samples=4)
    arguments = {**problem._asdict(), "steps": 3}
    for name, value in change.items():
        arguments[name] = value(arguments[name]) if callable(value) else value
    before = problem.U.detach().clone()
    with pytest.raises(error, match=message):
        ops.toy_gd(**arguments)
    assert torch.equal(problem.U.detach(), before)


@pytest.mark.parametrize(("width", "replicas"), [(5000, 3), (120_000, 1)])
def test_weights_beyond_one_block(backend, width, replicas):
    """On a GPU: several blocks per replica with a barrier over the grid, diverged ones included."""
    problem = toy_problem([1.5, 9.0, 0.8][:replicas], width=width, inputs=8, samples=5)
    steps = 12 if width == 5000 else 2
    got, U, v = run(backend, problem, steps, curvature_every=steps)
    want, exact_U, exact_v = oracle(problem, steps, curvature_every=steps)
    assert got.diverged_at.tolist() == want.diverged_at.tolist()
    assert_close(got.loss, want.loss, 1e-11)
    assert_close(got.weight_norm, want.weight_norm, 1e-12)
    assert_close(got.curvature, want.curvature, 1e-11)
    calm = got.diverged_at < 0
    assert_close(U[calm].flatten(1), exact_U[calm].flatten(1), 1e-11)
    assert_close(v[calm], exact_v[calm], 1e-11)
