"""eigsh against LAPACK: true errors within the reported ones, whatever spectrum and input."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator as ScipyOperator

import catapult_ext as cx
from catapult_ext.eig import sums
from catapult_ext.testing import spectra
from catapult_ext.testing.spectra import SPECTRA, Wrapped

N = 60


def matrix(name, dtype, n=N):
    return spectra.matrix(name, dtype, n)


def _scipy(a):
    a = a.numpy()
    return ScipyOperator(a.shape, matvec=lambda x: a @ x, matmat=lambda x: a @ x, dtype=a.dtype)


INPUTS = {
    "tensor": lambda a: a,
    "array": lambda a: a.numpy(),
    "object": Wrapped,
    "scipy": _scipy,
    "sparse": lambda a: a.to_sparse(),
}


def exact_values(a, which, k):
    e = torch.linalg.eigvalsh(a.double()).flip(0)
    if which == "LA":
        return e[:k]
    if which == "SA":
        return e[-k:]
    if which == "LM":
        return e[e.abs().argsort(descending=True, stable=True)][:k]
    return torch.cat([e[: (k + 1) // 2], e[len(e) - k // 2 :]])


def check(a, result, which, k):
    exact = exact_values(a, which, k)
    got, errors = result.eigenvalues.double(), result.errors.double()
    if which == "LM":  # +1 and -1 are equally large
        got, exact = got.abs(), exact.abs()
    assert bool(((got - exact).abs() <= errors).all()), (got, exact, errors)
    x = result.eigenvectors.double()
    rest = a.double() @ x - x * result.eigenvalues.double()
    scale = a.double().abs().max() * len(a)
    eps = torch.finfo(a.dtype).eps
    assert bool((rest.norm(dim=0) <= result.residuals.double() + 20 * eps * scale).all())
    torch.testing.assert_close(
        x.T @ x, torch.eye(k, dtype=torch.float64), rtol=0, atol=max(1e3 * eps, 1e-12)
    )


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("name", SPECTRA)
def test_true_error_within_reported(name, which, dtype):
    a = matrix(name, dtype)
    for k in (1, 3):
        for seed in range(2):
            for kind in ("tensor", "object"):
                result = cx.eigsh(INPUTS[kind](a), k, which=which, seed=seed)
                check(a, result, which, k)
                assert result.converged
                assert result.index_check == ("inertia" if kind == "tensor" else "random(0.99)")


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_agree(kind, dtype):
    a = matrix("geometric", dtype)
    result = cx.eigsh(INPUTS[kind](a), 2)
    check(a, result, "LA", 2)
    assert result.eigenvalues.dtype == dtype
    assert result.eigenvectors.shape == (N, 2)


@pytest.mark.parametrize("name", ["cluster_1e-2", "cluster_1e-4", "flat"])
def test_random_check_keeps_its_promise_over_many_seeds(name):
    """Without the check the bare formula is wrong in 40, 27 and 0 of 40 runs."""
    a = matrix(name, torch.float64)
    exact = exact_values(a, "LA", 1)
    missed = 0
    for seed in range(60):
        result = cx.eigsh(Wrapped(a), 1, seed=seed)
        missed += bool(((result.eigenvalues - exact).abs() > result.errors).any())
    assert missed <= 2  # p = 0.99: more than 2 of 60 has probability 0.02


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_small_and_complete(n, dtype):
    g = torch.Generator().manual_seed(n)
    a = torch.randn(n, n, dtype=torch.float64, generator=g).to(dtype)
    a = a + a.T
    for k in range(1, n + 1):
        for kind in ("tensor", "object"):
            check(a, cx.eigsh(INPUTS[kind](a), k, tol=1e-5), "LA", k)


@pytest.mark.parametrize("tol", [1e-2, 1e-6, 1e-10])
def test_tolerance_is_met(tol):
    a = matrix("flat", torch.float64, n=200)
    for kind in ("tensor", "object"):
        result = cx.eigsh(INPUTS[kind](a), 2, tol=tol)
        exact = exact_values(a, "LA", 2)
        assert result.converged
        assert bool((result.errors <= tol * exact * (1 + 1e-12)).all())  # rounding of both
        assert bool(((result.eigenvalues - exact).abs() <= result.errors).all())


def test_restarts_keep_the_answer(monkeypatch):
    from catapult_ext.eig import memory

    monkeypatch.setattr(memory, "_BASIS_ROWS", 12)
    a = matrix("flat", torch.float64, n=200)
    for k in (1, 2):
        result = cx.eigsh(Wrapped(a), k, tol=1e-5, seed=k)
        assert result.converged
        assert result.matvecs > 24
        check(a, result, "LA", k)


def test_basis_stays_within_its_byte_budget(monkeypatch):
    from catapult_ext.eig import krylov, memory

    monkeypatch.setattr(memory, "_BASIS_BYTES", 2 * 8 * 200 * 15)
    seen = []
    extend = krylov.Krylov.extend

    def spying(self):
        extend(self)
        seen.append(self.w.shape[0])

    monkeypatch.setattr(krylov.Krylov, "extend", spying)
    assert cx.eigsh(Wrapped(matrix("flat", torch.float64, n=200)), tol=1e-6).converged
    assert max(seen) <= 15


def test_warm_start_saves_products_and_same_seed_same_bits():
    a = matrix("geometric", torch.float64, n=300)
    cold = cx.eigsh(Wrapped(a), 2, seed=3)
    again = cx.eigsh(Wrapped(a), 2, seed=3)
    assert torch.equal(cold.eigenvalues, again.eigenvalues)
    assert torch.equal(cold.eigenvectors, again.eigenvectors)
    warm = cx.eigsh(a, 2, v0=cold.eigenvectors)
    assert warm.matvecs < cx.eigsh(a, 2).matvecs
    check(a, warm, "LA", 2)


def test_warm_start_that_misses_the_top_is_found_out():
    """v0 is an exact eigenvector, but of the second eigenvalue."""
    a = matrix("geometric", torch.float64)
    second = torch.linalg.eigh(a).eigenvectors[:, -2]
    for kind in ("tensor", "object"):
        check(a, cx.eigsh(INPUTS[kind](a), v0=second), "LA", 1)


def test_maxiter_stops_with_errors_that_hold():
    a = matrix("flat", torch.float64, n=300)
    for kind in ("tensor", "object"):
        result = cx.eigsh(INPUTS[kind](a), 2, tol=1e-10, maxiter=10)
        assert not result.converged
        assert result.matvecs <= 12
        check(a, result, "LA", 2)


def test_nan_operator_is_named():
    class Bad(Wrapped):
        def __matmul__(self, x):
            return x * float("nan")

    with pytest.raises(ValueError, match="products with A must be finite"):
        cx.eigsh(Bad(torch.eye(5)))


def test_unsymmetric_operators_are_refused():
    a = torch.randn(30, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="symmetric"):
        cx.eigsh(a)
    with pytest.raises(ValueError, match="symmetric and repeatable"):
        cx.eigsh(Wrapped(a))


@pytest.mark.parametrize(
    ("a", "options", "error", "text"),
    [
        (torch.eye(3), {"k": 4}, ValueError, r"k must be in \[1, n = 3\], got 4"),
        (torch.eye(3), {"k": 0}, ValueError, "k must be"),
        (torch.eye(3), {"which": "XX"}, ValueError, "which must be one of"),
        (torch.eye(3), {"tol": -1.0}, ValueError, "tol must be"),
        (torch.eye(3), {"maxiter": 0}, ValueError, "maxiter"),
        (torch.eye(3), {"precision": "half"}, ValueError, "precision must be 'full' or"),
        (torch.eye(3), {"precision": "mixed", "which": "SA"}, ValueError, "needs which='LA'"),
        (torch.eye(3), {"v0": torch.ones(4)}, ValueError, "v0 must be"),
        (torch.eye(3), {"v0": torch.full((3,), torch.nan)}, ValueError, "v0 must be finite"),
        (torch.ones(2, 3), {}, ValueError, "square"),
        (torch.ones(0, 0), {}, ValueError, "n >= 1"),
        (torch.eye(3) * torch.inf, {}, ValueError, "finite"),
        (torch.eye(3, dtype=torch.int64), {}, TypeError, "float32 or float64"),
        (np.eye(3, dtype=complex), {}, TypeError, "float32 or float64"),
        ([[1.0]], {}, TypeError, "shape and @"),
    ],
)
def test_refused(a, options, error, text):
    with pytest.raises(error, match=text):
        cx.eigsh(a, **options)


def test_inner_products_of_long_rows():
    # a plain float32 product with one row of this length is off by 1e-3: it looked like asymmetry
    g = torch.Generator().manual_seed(0)
    rows = torch.rand(2, 8_000_000, generator=g)
    rows /= rows.norm(dim=1, keepdim=True)
    exact = rows.double() @ rows[:1].double().T
    assert (sums.inner(rows, rows[:1]) - exact).abs().max() < 1e-6


def test_without_an_index_check():
    """Fewer products; every value has an eigenvalue within its residual; that is all it says."""
    for name in ("flat", "geometric", "indefinite"):
        a = matrix(name, torch.float64)
        checked = cx.eigsh(Wrapped(a), 2)
        found = cx.eigsh(Wrapped(a), 2, confidence=None)
        assert found.index_check == "residual"
        assert found.converged
        assert found.matvecs < checked.matvecs
        near = (found.eigenvalues[:, None] - torch.linalg.eigvalsh(a)).abs().amin(1)
        assert bool((near <= found.residuals + 1e-12).all())
    assert cx.eigsh(a, 2, confidence=None).index_check == "inertia"
    with pytest.raises(ValueError, match="confidence must be None or in"):
        cx.eigsh(a, confidence=1.0)


@pytest.mark.parametrize("which", ["LA", "LM"])
def test_residuals_of_a_dual_solve_are_bounds(which, dtype):
    x, y = (t.to(dtype) for t in cx.data.digits(train=24).train)
    model = cx.models.fully_connected(64, 10, width=32, depth=2, dtype=dtype)
    a = cx.GGN(model, "half_mse", (x, y))
    assert a.dual() is not None
    found = cx.eigsh(a, 4, which=which, tol=1e-2)
    vectors = found.eigenvectors
    assert torch.allclose(vectors.norm(dim=0), torch.ones(4, dtype=dtype))
    true = (a @ vectors - vectors * found.eigenvalues).double().norm(dim=0)
    rounding = 50 * torch.finfo(dtype).eps * found.eigenvalues[0].double()
    assert bool((true <= found.residuals.double() + rounding).all())
    assert bool((found.residuals <= 0.3 * found.eigenvalues[0]).all())  # tol 1e-2 leaves about 0.1


@pytest.mark.parametrize("scale", [1e-290, 1e-60, 1e60, 1e290])
def test_the_whole_range_of_float64(scale):
    a = spectra.matrix("geometric", torch.float64, N)
    want, got = cx.eigsh(Wrapped(a), 3), cx.eigsh(Wrapped(a * scale), 3)
    assert torch.allclose(got.eigenvalues / scale, want.eigenvalues, rtol=1e-6, atol=0)
    exact = torch.linalg.eigvalsh(a).flip(0)[:3]
    assert bool(((got.eigenvalues / scale - exact).abs() <= got.errors / scale).all())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("start", [-1.0, 1.0])
def test_one_dimension_with_a_start_vector(seed, start):
    """The random part may cancel the start exactly: sqrt(1/2) of each."""
    a = torch.tensor([[3.0]], dtype=torch.float64)
    for operand in (a, Wrapped(a)):
        found = cx.eigsh(operand, v0=torch.tensor([start], dtype=torch.float64), seed=seed)
        assert found.eigenvalues == 3
        assert found.converged
