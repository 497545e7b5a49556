"""certified_top: proven errors of top eigenvalues, and NaN for all that it cannot prove."""

import pytest
import torch

import catapult_ext as cx
from catapult_ext import _native, ops
from catapult_ext.eig.replicas import cholesky
from catapult_ext.ops.lanczos_dense import certified_top
from catapult_ext.testing import backends, spectra

NAMES = ("flat", "cluster_1e-4", "cluster_1e-7", "indefinite", "geometric", "triple")


@pytest.fixture(params=[b for b in backends() if b.name.startswith("cpu-")], ids=lambda b: b.name)
def isa(request):
    if request.param.unavailable:
        pytest.skip(request.param.unavailable)
    with request.param.active():
        yield


def solve(a, tol=1e-3, seed=0):
    return certified_top(a, tol=tol, maxiter=1000, seed=seed)


def rotated(e, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(e), len(e), generator=g, dtype=torch.float64))[0]
    a = (q * e) @ q.T
    return ((a + a.T) / 2).to(dtype)


@pytest.mark.parametrize("n", [5, 16, 17, 49, 61, 128, 211])
@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-6])
def test_errors_hold_and_keep_to_tol(isa, n, tol, dtype):
    a = torch.stack([spectra.matrix(name, dtype, n) for name in NAMES])
    vectors, numbers, products = solve(a, tol)
    values, residuals, errors = numbers.unbind(1)
    exact = torch.linalg.eigh(a.double())[0][:, -1]
    slack = 1e-14 * a.double().abs().sum(2).amax(1)
    assert ((values - exact).abs() <= errors + slack).all()
    size = torch.linalg.vector_norm(a.double(), dim=(1, 2))
    assert (errors <= tol * values.abs() + 40 * torch.finfo(dtype).eps * size).all()
    x = vectors.double()
    rest = (a.double() @ x[:, :, None])[:, :, 0] - values[:, None] * x
    assert (rest.norm(dim=1) - residuals).abs().max() <= 100 * torch.finfo(dtype).eps * size.max()
    assert (products >= 1).all()


@pytest.mark.parametrize("n", [3, 50, 129])
@pytest.mark.parametrize("above", [1.0001, 1.01, 2.0])
def test_an_eigenvalue_that_lanczos_misses_is_no_proof(isa, n, above, dtype):
    """The top eigenvector is orthogonal to the start vector, and the second value looks like it."""
    start = ops.lanczos_dense(torch.eye(n, dtype=torch.float64)[None]).eigenvectors[0, 0]
    g = torch.Generator().manual_seed(n)
    q = torch.randn(n, n, generator=g, dtype=torch.float64)
    q[:, 0] -= (q[:, 0] @ start) * start
    q = torch.linalg.qr(q)[0]
    e = torch.linspace(-0.2, 1, n, dtype=torch.float64).flip(0)
    e[0] = above
    a = (q * e) @ q.T
    a = ((a + a.T) / 2).to(dtype)
    for tol in (1e-2, 1e-3, 1e-5):
        value, _, error = solve(a[None], tol).numbers[0].tolist()
        assert not abs(value - above) > error + 1e-6, tol  # NaN is not
        found = cx.eigsh(a, tol=tol)
        assert (found.eigenvalues - above).abs().item() <= found.errors.item() + 1e-6
        assert found.index_check == "inertia"


@pytest.mark.parametrize("name", ["flat", "triple", "indefinite"])
@pytest.mark.parametrize("n", [60, 300])
def test_the_float32_margin_of_the_native_factor(isa, name, n):
    """As in ``test_cholesky``: where the native factor ceases to exist, rounding is far below."""
    a = spectra.matrix(name, torch.float64, n)
    top = torch.linalg.eigvalsh(a)[-1].item()
    unit = cholesky.margin(n, torch.tensor(top + a.diagonal().abs().max().item())).item()
    for tol in (4 * unit / top, 40 * unit / top):  # the least that float32 is asked
        value, _, error = solve(a[None], tol).numbers[0].tolist()
        assert abs(value - top) <= error <= tol * top


def test_what_it_does_not_serve_reads_nan_and_touches_nothing_else(isa, dtype):
    good = rotated(torch.linspace(0.1, 1, 60, dtype=torch.float64), dtype)
    a = good.repeat(7, 1, 1)
    a[0, 3, 5] = float("nan")
    a[1, 59, 59] = float("inf")
    a[2, 0, 59] += 1e-3  # not symmetric
    a[3] = 0
    scale = 1e30 if dtype == torch.float32 else 1e200
    a[4] *= scale
    a[5] /= scale
    got = solve(a)
    assert got.numbers[:6].isnan().all()
    alone = solve(good[None])
    assert torch.equal(got.numbers[6], alone.numbers[0])
    assert torch.equal(got.vectors[6], alone.vectors[0])


def test_a_difference_by_rounding_is_part_of_the_error(isa, dtype):
    a = rotated(torch.linspace(0.1, 1, 60, dtype=torch.float64), dtype)
    near = a.clone()
    near[0, 1:] *= 1 + torch.finfo(dtype).eps
    got = solve(near[None], 0.0).numbers[0]
    exact = torch.linalg.eigvalsh(((near + near.T) / 2).double())[-1]
    assert (got[0] - exact).abs() <= got[2]
    assert got[2] >= solve(a[None], 0.0).numbers[0, 2]


def test_any_number_of_threads_and_views_give_the_same_bits(dtype):
    a = torch.stack([spectra.matrix(name, dtype, 70) for name in NAMES])
    wide = torch.zeros(len(a), 80, 80, dtype=dtype)
    wide[:, 5:75, 5:75] = a
    expected, threads = solve(a), torch.get_num_threads()
    try:
        for count in (1, 3, 8):
            torch.set_num_threads(count)
            got = solve(wide[:, 5:75, 5:75])
            assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))
    finally:
        torch.set_num_threads(threads)
    assert solve(a[:0]).numbers.shape == (0, 3)


def test_threads_keep_to_the_memory_they_are_given(dtype, monkeypatch):
    """Each matrix is a call of lanczos_dense, by one thread of a team."""
    a = torch.stack([spectra.matrix(name, dtype, 70) for name in NAMES] * 4)
    call, room, threads = _native.call, 64, torch.get_num_threads()
    ends = []

    def guarded(name, device, *arguments):
        if name == "certified_top":
            *before, work, tol, maxiter, seed = arguments
            held = work.new_full((len(work) + room,), 0.5)
            ends.append(held[len(work) :])
            arguments = *before, held[: len(work)], tol, maxiter, seed
        return call(name, device, *arguments)

    monkeypatch.setattr(_native, "call", guarded)
    try:
        torch.set_num_threads(2)
        for _ in range(20):
            solve(a)
    finally:
        torch.set_num_threads(threads)
    assert all(bool((end == 0.5).all()) for end in ends)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_smallest_matrices(isa, n, dtype):
    a = torch.stack([rotated(torch.linspace(-2, -1, n).double(), dtype, seed) for seed in range(4)])
    numbers = solve(a).numbers
    exact = torch.linalg.eigvalsh(a.double())[:, -1]
    assert ((numbers[:, 0] - exact).abs() <= numbers[:, 2]).all()


def test_one_matrix_takes_one_native_call(monkeypatch):
    """A tensor (n, n) is read by nothing else, and the largest by magnitude goes another way."""
    a = rotated(torch.linspace(0.1, 1, 60, dtype=torch.float64))
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "abs", None)
        top, bottom = cx.eigsh(a), cx.eigsh(a, which="SA")
    assert (top.eigenvalues - 1).abs().item() <= top.errors.item()
    assert (bottom.eigenvalues - 0.1).abs().item() <= bottom.errors.item()
    assert top.eigenvectors.shape == (60, 1)
    assert cx.eigsh(a, which="LM").converged


def test_a_tensor_with_a_tangent_is_refused():
    a = rotated(torch.linspace(0.1, 1, 60, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"eigsh: is not differentiable"):
        torch.func.jvp(lambda m: cx.eigsh(m).eigenvalues, (a,), (a,))
