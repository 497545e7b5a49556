import pytest
import torch

from catapult_ext import ops, reference
from catapult_ext.testing import backends, max_error

# Around the diagonal block (16 rows), a prime, and odd remainders of four rows.
SIZES = [1, 2, 3, 15, 16, 17, 31, 67]


@pytest.fixture(autouse=True)
def one_thread():
    """Small problems: threads only get into each other's way; the thread test sets its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def with_spectrum(values, generator, dtype):
    """One symmetric matrix (1, n, n) with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    n = len(values)
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q
    a = (q * values) @ q.T
    return ((a + a.T) / 2).to(dtype)[None]


def wishart(replicas, n, dtype, generator, samples=None):
    x = torch.randn(replicas, n, samples or 4 * n, dtype=torch.float64, generator=generator)
    return (x @ x.mT / x.shape[2]).to(dtype)


def assert_solves(got, a, k, tol):
    """True errors within the reported ones and within tol; unit, orthogonal vectors; residuals."""
    eps = torch.finfo(a.dtype).eps
    exact = torch.linalg.eigvalsh(a.double()).flip(1)
    norm = exact.abs().amax(1, keepdim=True)
    error = (got.eigenvalues.double() - exact[:, :k]).abs()
    assert (error <= got.errors.double()).all(), (error / got.errors).max()
    goal = torch.maximum(tol * exact[:, :k].abs(), 8 * eps * norm * max(1, k**0.5))
    rounding = 8 * eps * norm + 4e-16 * a.shape[1] ** 0.5 * norm
    assert (got.errors <= 2 * goal + rounding).all(), (got.errors / goal).max()
    x = got.eigenvectors.double()
    eye = torch.eye(k, dtype=torch.float64).expand(len(a), k, k)
    assert max_error(x @ x.mT, eye) <= 16 * eps
    residual = a.double() @ x.mT - x.mT * got.eigenvalues.double()[:, None]
    # A pair whose error is r^2 / gap has a residual of at most the root of error times spread.
    assert (residual.norm(dim=1) <= (4 * norm * got.errors.double()).sqrt()).all()
    assert (got.eigenvalues[:, 1:] <= got.eigenvalues[:, :-1]).all()
    assert (got.steps > 0).all()


@pytest.mark.parametrize("scale", [1e-303, 1e-290, 1e-160, 1e-20, 1e155, 1e290, 1e304])
@pytest.mark.parametrize("k", [1, 3])
def test_the_whole_range_of_float64(backend, generator, scale, k):
    """Squares of products would over- or underflow; a batch holds matrices of any scale."""
    a = wishart(3, 33, torch.float64, generator)
    want = backend.run(ops.lanczos_dense, a, k)
    factors = torch.tensor([1.0, scale, 1.0], dtype=torch.float64)
    got = backend.run(ops.lanczos_dense, a * factors[:, None, None], k)
    assert_solves(want, a, k, 1e-3)
    for part, allowed in (("eigenvalues", 1e-12), ("errors", 0.01)):
        mine = getattr(got, part) / factors[:, None]
        assert torch.allclose(mine, getattr(want, part), rtol=allowed, atol=0)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("replicas", [0, 1, 5])
def test_sizes(backend, dtype, generator, n, replicas):
    a = wishart(replicas, n, dtype, generator)
    for k in {1, min(n, 3)}:
        got = backend.run(ops.lanczos_dense, a, k)
        shapes = [tuple(part.shape) for part in got]
        assert shapes == [(replicas, k), (replicas, k, n), (replicas, k), (replicas,)]
        assert got.steps.dtype == torch.int64
        if replicas:
            assert_solves(got, a, k, 1e-5)


def rest(n, top):
    """n values evenly spread over the half below `top`, of either sign."""
    return torch.linspace(-0.5 * abs(top), 0.5 * top - 0.01, n, dtype=torch.float64)


SPECTRA = {
    "distinct": torch.arange(1, 51),
    "repeated": torch.cat([torch.tensor([3.0, 3.0, 3.0, 2.0, 2.0]), rest(40, 2.0)]),
    "identity": torch.ones(33),
    "zero": torch.zeros(20),
    "negative": -torch.arange(1, 40.0),
    "indefinite": torch.cat([torch.tensor([-100.0, 1.0, 0.9]), rest(40, 0.9)]),
    "rank deficient": torch.cat([torch.tensor([5.0, 4.0]), torch.zeros(30)]),
    "tight cluster": torch.cat([1 - torch.arange(4) * 1e-12, rest(40, 1.0)]),
    "resolved cluster": torch.cat([1 - torch.arange(4) * 0.03, rest(40, 1.0)]),
    "edge": torch.cat([torch.tensor([1.05]), torch.linspace(-1, 1, 60)]),
    "decades": 10.0 ** -torch.arange(0, 12, 0.5),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_spectra(backend, dtype, generator, name, k):
    a = with_spectrum(SPECTRA[name], generator, dtype)
    assert_solves(backend.run(ops.lanczos_dense, a, k), a, k, 1e-5)


def test_all_pairs_is_the_full_decomposition(backend, dtype, generator):
    a = with_spectrum(torch.cat([torch.ones(5), torch.linspace(-2, 2, 14)]), generator, dtype)
    got = backend.run(ops.lanczos_dense, a, 19)
    assert_solves(got, a, 19, 1e-5)
    x = got.eigenvectors.double()
    rebuilt = x.mT * got.eigenvalues.double()[:, None] @ x
    assert max_error(rebuilt, a) <= 64 * torch.finfo(dtype).eps * 2


def test_small_tolerance(backend, generator):
    a = wishart(2, 90, torch.float64, generator)
    got = backend.run(ops.lanczos_dense, a, 2, tol=1e-13)
    assert_solves(got, a, 2, 1e-13)


def test_only_the_lower_triangle_is_read(backend, dtype, generator):
    a = wishart(2, 37, dtype, generator)
    poisoned = torch.where(torch.ones(37, 37).tril().bool(), a, torch.nan)
    for got, expected in zip(
        backend.run(ops.lanczos_dense, poisoned, 2),
        backend.run(ops.lanczos_dense, a, 2),
        strict=True,
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_matrix_stays_in_its_lane(backend, dtype, generator, bad):
    a = wishart(4, 21, dtype, generator)
    clean = backend.run(ops.lanczos_dense, a, 2)
    a[2, 20, 3] = bad
    got = backend.run(ops.lanczos_dense, a, 2)
    for part, expected in zip(got[:3], clean[:3], strict=True):
        assert part[2].isnan().all()
        assert torch.equal(part[[0, 1, 3]], expected[[0, 1, 3]])


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_scales(backend, dtype, generator, scale):
    a = wishart(2, 45, dtype, generator)
    plain = backend.run(ops.lanczos_dense, a, 2)
    scaled = backend.run(ops.lanczos_dense, a * scale, 2)
    eps = torch.finfo(dtype).eps
    assert (scaled.steps - plain.steps).abs().max() <= 4
    assert max_error(scaled.eigenvalues / scale, plain.eigenvalues) <= 32 * eps * 4
    assert (scaled.errors <= 2e-5 * scaled.eigenvalues).all()


def test_warm_start_takes_fewer_steps(backend, dtype, generator):
    a = wishart(3, 64, dtype, generator)
    cold = backend.run(ops.lanczos_dense, a)
    warm = backend.run(ops.lanczos_dense, a, v0=cold.eigenvectors[:, 0])
    assert_solves(warm, a, 1, 1e-5)
    assert (warm.steps < cold.steps).all()
    # A start that is an eigenvector, but of another eigenvalue, must not be believed.
    wrong = torch.linalg.eigh(a.double()).eigenvectors[:, :, 5].to(dtype)
    assert_solves(backend.run(ops.lanczos_dense, a, v0=wrong), a, 1, 1e-5)
    useless = torch.stack([wrong[0] * 0, wrong[1] * torch.nan, wrong[2] * torch.inf])
    again = backend.run(ops.lanczos_dense, a, v0=useless)
    assert all(torch.equal(x, y) for x, y in zip(again, cold, strict=True))


def test_maxiter_is_honest(backend, dtype, generator):
    a = wishart(2, 80, dtype, generator)
    got = backend.run(ops.lanczos_dense, a, 2, maxiter=6)
    exact = torch.linalg.eigvalsh(a.double()).flip(1)[:, :2]
    assert (got.steps <= 6 + 2).all()
    assert (got.errors > 1e-3 * got.eigenvalues).all()
    assert (got.eigenvalues <= exact * (1 + 1e-6)).all()


def test_seed_and_batch_split(backend, dtype, generator):
    a = wishart(3, 40, dtype, generator)
    whole = backend.run(ops.lanczos_dense, a, 2, seed=5)
    alone = backend.run(ops.lanczos_dense, a[1:2], 2, seed=5)
    assert all(torch.equal(x[1:2], y) for x, y in zip(whole, alone, strict=True))
    other = backend.run(ops.lanczos_dense, a, 2, seed=6)
    assert not torch.equal(other.eigenvectors, whole.eigenvectors)
    assert_solves(other, a, 2, 1e-5)


def test_strided_views(backend, dtype, generator):
    a = wishart(4, 30, dtype, generator)
    expected = backend.run(ops.lanczos_dense, a[::2, 3:20, 3:20].contiguous())
    got = backend.run(ops.lanczos_dense, a[::2, 3:20, 3:20].mT)
    assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))


def assert_restarts(backend, generator, k):
    """More steps than the 384 basis rows: eigenvalues that crowd towards the top."""
    a = with_spectrum(1 - torch.linspace(0, 1, 401) ** 3, generator, torch.float64)
    got = backend.run(ops.lanczos_dense, a, k, tol=1e-12)
    assert int(got.steps) > 384
    assert_solves(got, a, k, 1e-12)


@pytest.mark.parametrize("k", [1, 2])
def test_restart(backend, generator, k):
    if backend.name == "cuda_emulated":
        pytest.skip("a minute when emulated: test_restart_emulated, marked nightly")
    assert_restarts(backend, generator, k)


@pytest.mark.nightly
def test_restart_emulated(generator):
    backend = next(b for b in backends() if b.name == "cuda_emulated")
    if backend.unavailable:
        pytest.skip(backend.unavailable)
    assert_restarts(backend, generator, 1)


def large(generator, n=1030):
    """One matrix that is cut up (from n = 1024 on), with a separated top eigenvalue."""
    a = torch.randn(1, n, n, generator=generator)
    vector = torch.ones(n) / n**0.5
    return (a + a.mT) / n**0.5 + 9 * torch.outer(vector, vector)


def test_threads_share_a_large_matrix(generator):
    a = large(generator)
    runs = []
    for count in (2, 1):
        torch.set_num_threads(count)
        runs.append(ops.lanczos_dense(a))
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))
    assert_solves(runs[0], a, 1, 1e-5)


def test_blocks_share_a_large_matrix(backend, generator):
    a = large(generator)
    assert_solves(backend.run(ops.lanczos_dense, a, tol=1e-4), a, 1, 1e-4)


def test_registration(generator):
    a = wishart(2, 14, torch.float64, generator)
    v0 = torch.ones(2, 14, dtype=torch.float64)
    torch.library.opcheck(torch.ops.catapult.lanczos_dense, (a, 2, 1e-6, 50, v0, 0))
    torch.library.opcheck(torch.ops.catapult.lanczos_dense, (a, 1, 1e-6, 50, None, 0))
    compiled = torch.compile(lambda a: ops.lanczos_dense(a, 2), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(a)[0], ops.lanczos_dense(a, 2)[0])


def test_reference_has_the_same_signature(generator):
    a = wishart(2, 12, torch.float64, generator)
    a[1, 3, 2] = torch.nan
    values, vectors, _, _ = reference.lanczos_dense(a, 3)
    got = ops.lanczos_dense(a, 3)
    assert max_error(got.eigenvalues, values) <= 1e-9
    assert max_error((got.eigenvectors * vectors).sum(2).abs()[0], torch.ones(3)) <= 1e-4


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(a=[1.0]), TypeError, "a must be a torch.Tensor, got list"),
        (dict(a=torch.eye(3).half()[None]), TypeError, "a must have dtype float32 or float64"),
        (dict(a=torch.eye(3)), ValueError, r"a must have shape \(R, n, n\), got \(3, 3\)"),
        (dict(a=torch.zeros(1, 3, 4)), ValueError, r"square matrices, n >= 1, got \(1, 3, 4\)"),
        (dict(a=torch.zeros(1, 0, 0)), ValueError, "n >= 1"),
        (dict(k=4), ValueError, r"k must be in \[1, n = 3\], got 4"),
        (dict(k=0), ValueError, "k must be in"),
        (dict(tol=-1.0), ValueError, "tol must be at least 0"),
        (dict(tol=float("nan")), ValueError, "tol must be at least 0"),
        (dict(k=2, maxiter=1), ValueError, "maxiter must be at least k = 2"),
        (dict(v0=torch.zeros(1, 4)), ValueError, r"v0 must have shape \(1, 3\)"),
        (dict(v0=torch.zeros(1, 3).double()), TypeError, "v0 must have the dtype of a"),
        (dict(a=torch.eye(3)[None].requires_grad_()), ValueError, r"a.detach\(\)"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        ops.lanczos_dense(**(dict(a=torch.eye(3)[None]) | change))
