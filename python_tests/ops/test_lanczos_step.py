import pytest
import torch

from catapult_ext import ops, reference
from catapult_ext.testing import max_error

# Around the column block (256) and the chunk of a thread (4096), an odd size and a prime.
SIZES = [1, 2, 5, 255, 257, 509, 4095, 4097]


def symmetric(replicas, n, dtype, generator, rank=None):
    """Symmetric matrices with spectrum of both signs, of order one."""
    a = torch.randn(replicas, n, rank or n, dtype=torch.float64, generator=generator)
    signs = torch.randn(rank or n, dtype=torch.float64, generator=generator).sign()
    return ((a * signs) @ a.mT / n).to(dtype)


def start(replicas, n, m, dtype, generator):
    basis = torch.full((replicas, m + 1, n), torch.nan, dtype=dtype)
    first = torch.randn(replicas, n, dtype=dtype, generator=generator)
    basis[:, 0] = first / first.norm(dim=1, keepdim=True)
    alpha = torch.full((replicas, m), torch.nan, dtype=dtype)
    return basis, alpha, alpha.clone()


def iterate(step_of, apply, basis, alpha, beta, **options):
    for step in range(alpha.shape[1]):
        step_of(basis, alpha, beta, apply(basis[:, step]), step, **options)


def assert_lanczos(apply, basis, alpha, beta, norm=None):
    """A Q' = Q' T + beta_m q_m e_m', and orthonormal rows."""
    dtype, (replicas, m) = basis.dtype, alpha.shape
    eps = torch.finfo(dtype).eps
    t = torch.diag_embed(alpha.double())
    t += torch.diag_embed(beta[:, :-1].double(), offset=1)
    t += torch.diag_embed(beta[:, :-1].double(), offset=-1)
    q = basis.double()
    left = torch.stack([apply(basis[:, j]).double() for j in range(m)], 1)
    right = t.mT @ q[:, :m]
    right[:, m - 1] += beta[:, m - 1, None].double() * q[:, m]
    norm = norm or float(alpha.abs().max() + 2 * beta.abs().max())
    assert max_error(left, right) <= 32 * eps * norm
    eye = torch.eye(m, dtype=torch.float64).expand(replicas, m, m)
    assert max_error(q[:, :m] @ q[:, :m].mT, eye) <= 16 * eps
    cross = (q[:, :m] @ q[:, m, :, None])[..., 0]
    assert max_error(cross, torch.zeros_like(cross)) <= 16 * eps


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("replicas", [0, 1, 3])
def test_identities(backend, dtype, generator, n, replicas):
    m = min(n, 9)
    diagonal = torch.linspace(-1, 3, n, dtype=dtype)
    mean = torch.ones(n, dtype=dtype) / n**0.5

    def apply(v):  # a matrix that needs no n x n storage
        return v * diagonal + (v @ mean)[:, None] * mean

    basis, alpha, beta = start(replicas, n, m, dtype, generator)
    with backend.active():
        iterate(ops.lanczos_step, apply, basis, alpha, beta)
    if replicas:
        assert_lanczos(apply, basis, alpha, beta)
        assert torch.isfinite(basis).all()


def test_single_step_matches_reference(backend, dtype, generator):
    basis, alpha, beta = start(4, 331, 6, dtype, generator)
    rows = torch.linalg.qr(torch.randn(4, 331, 5, dtype=torch.float64, generator=generator)).Q
    basis[:, :5] = rows.mT.to(dtype)
    alpha[:, :4] = beta[:, :4] = 1
    w = torch.randn(4, 331, dtype=dtype, generator=generator)
    expected = [basis.clone(), alpha.clone(), beta.clone()]
    coefficients, expected_coefficients = torch.empty(4, 5, dtype=dtype), torch.empty(4, 5)
    expected_coefficients = expected_coefficients.to(dtype)
    before = w.clone()
    reference.lanczos_step(*expected, w, 4, coefficients=expected_coefficients)
    with backend.active():
        ops.lanczos_step(basis, alpha, beta, w, 4, coefficients=coefficients)
    eps = torch.finfo(dtype).eps
    assert torch.equal(w, before)
    assert max_error(basis, expected[0]) <= 16 * eps
    assert max_error(alpha, expected[1]) <= 4 * eps * float(w.norm(dim=1).max())
    assert max_error(beta, expected[2]) <= 4 * eps * float(w.norm(dim=1).max())
    assert max_error(coefficients, expected_coefficients) <= 4 * eps * float(w.norm(dim=1).max())


def test_full_run_reconstructs_the_matrix(backend, dtype, generator):
    n = 33
    a = symmetric(2, n, dtype, generator)
    basis, alpha, beta = start(2, n, n, dtype, generator)
    with backend.active():
        iterate(ops.lanczos_step, lambda v: (a @ v[..., None])[..., 0], basis, alpha, beta)
        values = ops.tridiag_eigh(alpha, beta[:, :-1].contiguous())[0]
    exact = torch.linalg.eigvalsh(a.double())
    assert max_error(values, exact) <= 64 * torch.finfo(dtype).eps * float(exact.abs().max())
    assert beta[:, -1].abs().max() <= 64 * torch.finfo(dtype).eps * float(exact.abs().max())


@pytest.mark.parametrize("n", [600, 4200])  # one block of columns, and several
def test_second_pass_when_w_nearly_lies_in_the_span(backend, dtype, generator, n):
    eps = torch.finfo(dtype).eps
    basis, alpha, beta = start(3, n, 8, dtype, generator)
    q = torch.linalg.qr(torch.randn(3, n, 8, dtype=torch.float64, generator=generator)).Q.mT
    basis[:, :7] = q[:, :7].to(dtype)
    alpha[:, :6] = beta[:, :6] = 1
    w = (q[:, :7].sum(1) + 300 * eps * q[:, 7]).to(dtype)
    with backend.active():
        ops.lanczos_step(basis, alpha, beta, w, 6)
    overlap = basis[:, :7].double() @ basis[:, 7].double()[..., None]
    assert overlap.abs().max() <= 4 * eps
    assert (basis[:, 7].double().norm(dim=1) - 1).abs().max() <= 4 * eps


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_breakdown(backend, dtype, generator, rank):
    """Beyond the rank everything is zero, and the Ritz values are the eigenvalues."""
    q = torch.linalg.qr(torch.randn(40, 4, dtype=torch.float64, generator=generator)).Q
    a = (q[:, :rank] * torch.arange(1, rank + 1)) @ q[:, :rank].T
    basis, alpha, beta = start(1, 40, 6, torch.float64, generator)
    basis[:, 0] = q.sum(1) / 2
    basis = basis.to(dtype)
    alpha, beta = alpha.to(dtype), beta.to(dtype)

    def apply(v):  # in float64, so that the remainder really vanishes
        return (v.double() @ a).to(dtype)

    with backend.active():
        iterate(ops.lanczos_step, apply, basis, alpha, beta)
    assert torch.isfinite(basis).all()
    dead = int((beta[0] == 0).nonzero()[0])
    assert dead <= rank
    assert basis[0, dead + 1 :].abs().max() == 0
    assert alpha[0, dead + 1 :].abs().sum() == 0
    values = ops.tridiag_eigh(alpha, beta[:, :-1].contiguous())[0]
    assert abs(float(values.max()) - rank) <= 32 * torch.finfo(dtype).eps * max(rank, 1)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_scales(backend, dtype, generator, scale):
    a = symmetric(2, 65, dtype, generator)
    runs = []
    for factor in (1.0, scale):
        generator.manual_seed(1)
        state = start(2, 65, 7, dtype, generator)
        with backend.active():
            iterate(ops.lanczos_step, lambda v, f=factor: (a * f @ v[..., None])[..., 0], *state)
        runs.append(state)
    (_, alpha, beta), (basis, scaled_alpha, scaled_beta) = runs
    eps = torch.finfo(dtype).eps
    assert torch.isfinite(basis).all()
    assert max_error(scaled_alpha / scale, alpha) <= 1e4 * eps
    assert max_error(scaled_beta / scale, beta) <= 1e4 * eps


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_replica_stays_in_its_lane(backend, dtype, generator, bad):
    results = []
    for value in (1.0, bad):
        generator.manual_seed(0)
        a = symmetric(3, 37, dtype, generator)
        a[1, 4, 5] *= value
        state = start(3, 37, 5, dtype, generator)
        with backend.active():
            iterate(ops.lanczos_step, lambda v, a=a: (a @ v[..., None])[..., 0], *state)
        results.append(state)
    for clean, got in zip(*results, strict=True):
        assert torch.equal(clean[[0, 2]], got[[0, 2]])
    assert results[1][1][1].isnan().any()


def test_locked_rows_and_arrowhead_coefficients(backend, dtype, generator):
    """A thick restart: Ritz vectors first, then the residual; the projections are A's own."""
    n, kept = 50, 4
    a = symmetric(1, n, dtype, generator)
    q = torch.linalg.qr(torch.randn(n, kept + 1, dtype=torch.float64, generator=generator)).Q
    basis, alpha, beta = start(1, n, 8, dtype, generator)
    basis[0, : kept + 1] = q.T.to(dtype)
    alpha[:, :kept] = 1
    beta[:, :kept] = 1
    w = basis[:, kept] @ a[0]
    coefficients = torch.empty(1, kept + 1, dtype=dtype)
    with backend.active():
        ops.lanczos_step(basis, alpha, beta, w, kept, coefficients=coefficients)
    exact = basis[0, : kept + 1].double() @ a[0].double() @ basis[0, kept].double()
    assert max_error(coefficients[0], exact) <= 8 * torch.finfo(dtype).eps
    assert max_error(alpha[0, kept], exact[kept]) <= 8 * torch.finfo(dtype).eps
    # A block method: w comes from row 2, the next vector follows all eight rows before it.
    basis, alpha, beta = start(1, n, 8, dtype, generator)
    basis[0, :5] = q.T.to(dtype)
    alpha[:, :2] = beta[:, :2] = 1
    with backend.active():
        ops.lanczos_step(basis, alpha, beta, basis[:, 2] @ a[0], 2, rows=5)
    cross = basis[0, :5].double() @ basis[0, 5].double()
    assert cross.abs().max() <= 8 * torch.finfo(dtype).eps
    assert torch.isnan(alpha[0, 3:]).all()


def test_strided_w_and_thread_count(dtype, generator):
    """Few long vectors are shared among threads; the sums are the same."""
    n = 3 * 4096 + 11
    runs = []
    threads = torch.get_num_threads()
    wide = torch.randn(n, 2, dtype=dtype, generator=generator)
    q = torch.linalg.qr(torch.randn(n, 3, dtype=torch.float64, generator=generator)).Q.T.to(dtype)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            basis = torch.zeros(1, 4, n, dtype=dtype)
            basis[0, :3] = q
            alpha, beta = torch.ones(1, 3, dtype=dtype), torch.ones(1, 3, dtype=dtype)
            ops.lanczos_step(basis, alpha, beta, wide[:, 1][None], 2)
            runs.append((basis, alpha, beta))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(runs[0], other, strict=True))


def test_registration(generator):
    basis, alpha, beta = start(2, 19, 3, torch.float64, generator)
    w = torch.randn(2, 19, dtype=torch.float64, generator=generator)
    basis.nan_to_num_(0.0)
    op = torch.ops.catapult.lanczos_step
    torch.library.opcheck(op, (basis, alpha.zero_(), beta.zero_(), w, 0, 1, None, 1e-15))
    torch.library.opcheck(op, (basis, alpha, beta, w, 0, 1, torch.zeros(2, 1).double(), 1e-15))

    def two_steps(basis, alpha, beta, a):
        for step in range(2):
            ops.lanczos_step(basis, alpha, beta, basis[:, step] @ a, step)
        return basis.sum()

    a = symmetric(1, 19, torch.float64, generator)[0]
    plain, compiled = [[t.clone() for t in (basis, alpha, beta)] for _ in range(2)]
    two_steps(*plain, a)
    torch.compile(two_steps, fullgraph=True, backend="aot_eager")(*compiled, a)
    assert all(torch.equal(x, y) for x, y in zip(plain, compiled, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(basis=[1.0]), TypeError, "basis must be a torch.Tensor, got list"),
        (dict(basis=torch.zeros(2, 4, 5).half()), TypeError, "basis must have dtype float32"),
        (dict(w=torch.zeros(2, 5).double()), TypeError, "w must have the dtype of basis"),
        (dict(w=torch.zeros(2, 6)), ValueError, r"w must have shape \(2, 5\), got \(2, 6\)"),
        (dict(basis=torch.zeros(2, 4, 0)), ValueError, "n >= 1"),
        (dict(beta=torch.zeros(2, 2)), ValueError, r"beta must have shape \(2, 3\)"),
        (dict(step=3), ValueError, r"step must be in \[0, 2\]"),
        (dict(step=-1), ValueError, "step must be in"),
        (dict(rows=4), ValueError, r"rows must be in \[1, 3\]"),
        (dict(rows=0), ValueError, "rows must be in"),
        (dict(alpha=torch.zeros(3, 2).t()), ValueError, "alpha is written in place"),
        (dict(basis=torch.zeros(2, 5, 4).mT), ValueError, "basis is written in place"),
        (
            dict(coefficients=torch.zeros(2, 2)),
            ValueError,
            r"coefficients must have shape \(2, 1\)",
        ),
        (dict(w=torch.zeros(2, 5, requires_grad=True)), ValueError, r"w.detach\(\)"),
    ],
)
def test_bad_input(change, error, message):
    args = dict(
        basis=torch.zeros(2, 4, 5),
        alpha=torch.zeros(2, 3),
        beta=torch.zeros(2, 3),
        w=torch.zeros(2, 5),
        step=0,
    )
    with pytest.raises(error, match=message):
        ops.lanczos_step(**(args | change))


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e-160, 1e-150, 1e150, 1e160, 1e300])
@pytest.mark.parametrize("n", [7, 5000])
def test_magnitudes_whose_squares_leave_float64(backend, generator, size, n):
    """|w|^2 underflows below 1e-154 and overflows above 1e154; the step itself does neither."""
    basis, alpha, beta = start(2, n, 3, torch.float64, generator)
    for t in (alpha, beta):
        t[:, 0] = size
    basis[:, 1] = torch.randn(2, n, dtype=torch.float64, generator=generator)
    basis[:, :2] = torch.linalg.qr(basis[:, :2].mT).Q.mT
    w = torch.randn(2, n, dtype=torch.float64, generator=generator)
    w[1] = basis[1, 0] + 2 * basis[1, 1]  # the second lies in the span: a breakdown
    expected = [t.clone() for t in (basis, alpha, beta)]
    for t in expected[1:]:
        t[:, 0] = 1
    coefficients = torch.empty(2, 2, dtype=torch.float64)
    want = torch.empty(2, 2, dtype=torch.float64)
    reference.lanczos_step(*expected, w, 1, coefficients=want)
    with backend.active():
        ops.lanczos_step(basis, alpha, beta, w * size, 1, coefficients=coefficients)
    eps = torch.finfo(torch.float64).eps
    assert max_error(basis, expected[0]) <= 32 * eps
    for got, exact in (
        (alpha[:, 1], expected[1][:, 1]),
        (beta[:, 1], expected[2][:, 1]),
        (coefficients, want),
    ):
        assert max_error(got / size, exact) <= 32 * eps * n**0.5
    assert float(beta[1, 1]) == 0


def test_vectors_of_zeros_break_down(backend, dtype, generator):
    basis, alpha, beta = start(2, 40, 2, dtype, generator)
    with backend.active():
        ops.lanczos_step(basis, alpha, beta, torch.zeros(2, 40, dtype=dtype), 0)
    assert not basis[:, 1].any()
    assert not alpha[:, 0].any()
    assert not beta[:, 0].any()
