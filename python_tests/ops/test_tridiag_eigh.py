import pytest
import torch

from catapult_ext import ops, reference
from catapult_ext.testing import max_error

SIZES = [1, 2, 3, 17, 64]


def problem(m, replicas, dtype, generator):
    alpha = torch.randn(replicas, m, dtype=torch.float64, generator=generator).to(dtype)
    beta = torch.randn(replicas, m - 1, dtype=torch.float64, generator=generator).to(dtype)
    return alpha, beta


def assert_agrees(got, alpha, beta):
    """Eigenvalues to a few eps of the norm; end components squared, where the gap allows."""
    exact = reference.tridiag_eigh(alpha.double(), beta.double())
    norm = float(exact[0].abs().max())
    eps = torch.finfo(alpha.dtype).eps
    assert max_error(got[0], exact[0]) <= 32 * eps * norm
    if alpha.shape[1] == 1:
        return
    gap = (exact[0][:, 1:] - exact[0][:, :-1]).min()
    for part in (1, 2):
        bound = 64 * eps * norm / min(float(gap), norm)
        assert max_error(got[part] ** 2, exact[part] ** 2) <= bound


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("replicas", [0, 1, 5])
def test_matches_dense_eigh(backend, dtype, generator, m, replicas):
    alpha, beta = problem(m, replicas, dtype, generator)
    got = backend.run(ops.tridiag_eigh, alpha, beta)
    assert all(part.shape == alpha.shape and part.dtype == dtype for part in got)
    if replicas:
        assert_agrees(got, alpha, beta)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_scales(backend, dtype, generator, scale):
    alpha, beta = problem(9, 3, dtype, generator)
    plain = backend.run(ops.tridiag_eigh, alpha, beta)
    scaled = backend.run(ops.tridiag_eigh, alpha * scale, beta * scale)
    eps = torch.finfo(dtype).eps
    assert max_error(scaled[0] / scale, plain[0]) <= 64 * eps * float(plain[0].abs().max())


def test_special_matrices(backend, dtype):
    zeros = torch.zeros(2, 6, dtype=dtype)
    values, first, last = backend.run(ops.tridiag_eigh, zeros, zeros[:, :5])
    assert values.abs().max() == 0
    assert first.square().sum(1).tolist() == [1, 1]
    assert last.square().sum(1).tolist() == [1, 1]
    # The second difference matrix has eigenvalues 2 - 2 cos(pi k / (m + 1)).
    m = 31
    alpha, beta = torch.full((1, m), 2.0, dtype=dtype), torch.full((1, m - 1), -1.0, dtype=dtype)
    values, first, _ = backend.run(ops.tridiag_eigh, alpha, beta)
    k = torch.arange(1, m + 1, dtype=torch.float64)
    exact = 2 - 2 * torch.cos(torch.pi * k / (m + 1))
    assert max_error(values[0], exact) <= 16 * torch.finfo(dtype).eps
    weights = 2 / (m + 1) * torch.sin(torch.pi * k / (m + 1)) ** 2
    assert max_error(first[0] ** 2, weights) <= 256 * torch.finfo(dtype).eps


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_input_stays_in_its_lane(backend, dtype, generator, bad):
    alpha, beta = problem(8, 3, dtype, generator)
    clean = backend.run(ops.tridiag_eigh, alpha, beta)
    alpha[1, 4] = bad
    got = backend.run(ops.tridiag_eigh, alpha, beta)
    for part, expected in zip(got, clean, strict=True):
        assert part[1].isnan().all()
        assert torch.equal(part[[0, 2]], expected[[0, 2]])


def test_strided_views(backend, dtype, generator):
    big = torch.randn(20, 6, dtype=dtype, generator=generator)
    alpha, beta = big.t()[1:4, ::2], big[1:10, 1:4].t()
    assert_agrees(backend.run(ops.tridiag_eigh, alpha, beta), alpha, beta)


def test_registration(generator):
    args = problem(5, 2, torch.float64, generator)
    torch.library.opcheck(torch.ops.catapult.tridiag_eigh, args)
    compiled = torch.compile(ops.tridiag_eigh, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args)[0], ops.tridiag_eigh(*args)[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a, b: ([1.0], b), TypeError, "alpha must be a torch.Tensor, got list"),
        (lambda a, b: (a.half(), b), TypeError, "alpha must have dtype float32 or float64"),
        (lambda a, b: (a, b.float()), TypeError, "beta must have the dtype of alpha"),
        (lambda a, b: (a[0], b), ValueError, r"alpha must have shape \(R, m\), got \(5,\)"),
        (lambda a, b: (a, b[:, :2]), ValueError, r"beta must have shape \(2, 4\), got \(2, 2\)"),
        (lambda a, b: (a[:, :0], b[:, :0]), ValueError, "m >= 1"),
        (lambda a, b: (a.requires_grad_(), b), ValueError, r"alpha.detach\(\)"),
    ],
)
def test_bad_input(generator, change, error, message):
    alpha, beta = problem(5, 2, torch.float64, generator)
    with pytest.raises(error, match=message):
        ops.tridiag_eigh(*change(alpha, beta))
