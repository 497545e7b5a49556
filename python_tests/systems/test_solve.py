"""cx.solve: bounds that hold, few products, and what is refused."""

import numpy as np
import pytest
import torch

import catapult_ext as cx
from catapult_ext.testing.spectra import Wrapped

F64 = torch.float64


def with_condition(n, condition, seed, dtype=F64):
    """A symmetric matrix of norm 1 with eigenvalues spread evenly in logarithm."""
    draw = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(n, n, dtype=F64, generator=draw))[0]
    a = (q * torch.logspace(0, -np.log10(condition), n, dtype=F64)) @ q.T
    return ((a + a.T) / 2).to(dtype)


def reference(a, b):
    """LAPACK's solution in float64, refined by residuals in extended precision."""
    a, b = a.double(), b.double()
    factor = torch.linalg.cholesky(a)
    wide, right = a.numpy().astype(np.longdouble), b.numpy().astype(np.longdouble)
    x = torch.cholesky_solve(b, factor).numpy().astype(np.longdouble)
    for _ in range(6):
        r = torch.from_numpy((right - wide @ x).astype(np.float64))
        x = x + torch.cholesky_solve(r, factor).numpy()
    return x


def true_errors(a, b, x):
    """In the 2-norm and in the norm of a."""
    e = x.double().numpy() - reference(a, b)
    wide = a.double().numpy().astype(np.longdouble)
    energy = np.sqrt(np.maximum((e * (wide @ e)).sum(0), 0))
    return np.sqrt((e**2).sum(0)).astype(float), energy.astype(float)


def check_bounds(seed):
    """One run of a drawn size, condition and number of columns by each method."""
    draw = np.random.default_rng(seed)
    n, k = int(draw.integers(2, 80)), int(draw.integers(1, 5))
    condition = 10 ** draw.uniform(2, 12)
    a = with_condition(n, condition, seed)
    b = torch.from_numpy(draw.standard_normal((n, k))) * 10 ** draw.uniform(-3, 3)
    direct = cx.solve(a, b, method="cholesky")
    assert direct.bound == "cholesky"
    found = [direct, cx.solve(a, b, method="cg", lower=0.5 / condition, tol=1e-8, maxiter=200)]
    found.append(cx.solve(a, b, method="cg", lower=0.5 / condition, preconditioner=None, maxiter=9))
    bounded = 0
    for result in found:
        error, energy = true_errors(a, b, result.x)
        assert (error <= result.errors.numpy()).all(), (seed, result)
        # the true error is of the float64 result, and both are float64 here
        assert (energy <= result.energy_errors.numpy() * (1 + 1e-6)).all(), (seed, result)
        bounded += bool(torch.isfinite(result.errors).all())
    return bounded


@pytest.mark.parametrize("seed", range(12))
def test_no_error_exceeds_its_bound(seed):
    assert check_bounds(seed) >= 2


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(500))
def test_no_error_exceeds_its_bound_500(seed):
    check_bounds(1000 + seed)


@pytest.mark.parametrize("method", ["cg", "cholesky"])
def test_float32_with_a_shift(method):
    a = with_condition(60, 1e8, 3, torch.float32)
    b = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    options = {} if method == "cholesky" else {"lower": -1e-6, "tol": 1e-6}
    result = cx.solve(a, b, shift=1e-3, method=method, **options)
    shifted = a.double() + 1e-3 * torch.eye(60, dtype=F64)
    error, _ = true_errors(shifted, b, result.x)
    assert result.x.dtype == torch.float32
    assert result.converged
    assert (error <= result.errors.numpy()).all()
    assert (result.errors < 1e-2 * result.x.double().norm(dim=0)).all()


@pytest.fixture(scope="module")
def kernel():
    data = cx.data.digits(train=200, test=20)
    model = cx.models.fully_connected(64, 1, width=64, depth=2, seed=0)
    operator = cx.NTK(model, data.x_train.flatten(1))
    return operator, operator.dense()


def top(operator):
    return cx.eigsh(operator, k=1).eigenvalues.item()


def test_an_ntk_is_known_to_be_semidefinite(kernel):
    operator, matrix = kernel
    shift = 1e-3 * top(operator)
    y = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    result = cx.solve(operator, y, shift=shift)
    assert (result.bound, result.method, result.lower) == ("operator", "cg", pytest.approx(shift))
    exact = reference(matrix.double() + shift * torch.eye(200, dtype=F64), y)
    error = np.sqrt(((result.x.numpy() - exact) ** 2).sum(0))
    assert (error <= result.errors.numpy()).all()
    assert (result.errors <= 0.2 * result.x.norm(dim=0)).all()
    assert cx.solve(operator + 0.5 * operator, y, shift=shift).bound == "operator"
    assert cx.solve(operator.shift(shift), y).lower == pytest.approx(shift)
    assert cx.solve(operator - 0.5 * operator, y, shift=shift).bound == "none"


def products(operator, y, shift, preconditioner):
    found = cx.solve(operator, y, shift=shift, tol=1e-5, method="cg", preconditioner=preconditioner)
    assert found.converged
    return found.matvecs


def test_a_preconditioner_saves_products(kernel):
    """The columns of the pivoted factor are counted as products, and cost none in memory."""
    operator, matrix = kernel
    shift = 1e-4 * top(operator)
    y = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    plain = products(operator, y, shift, None)
    factor = cx.pivoted_cholesky(matrix, 60)
    assert factor.matvecs == 0
    assert products(operator, y, shift, factor) * 3 <= plain
    assert products(operator, y, shift, cx.eigsh(operator, k=40)) * 2 <= plain
    assert products(matrix, y, shift, 80) * 3 <= plain
    assert cx.pivoted_cholesky(operator, 60).matvecs >= 60


def test_columns_share_their_search_space(kernel):
    operator, _ = kernel
    y = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    shift = 1e-4 * top(operator)
    together = cx.solve(operator, y, shift=shift, tol=1e-4)
    alone = [cx.solve(operator, y[:, i], shift=shift, tol=1e-4) for i in range(8)]
    assert together.matvecs < 0.8 * sum(one.matvecs for one in alone)
    same = cx.solve(operator, y[:, :1].repeat(1, 3), shift=shift, tol=1e-4)  # dependent columns
    assert same.converged
    assert same.steps <= alone[0].steps + 2


@pytest.mark.parametrize("method", ["cg", "cholesky"])
def test_a_column_that_is_not_finite_touches_no_other(method):
    a = with_condition(40, 1e3, 0)
    b = torch.randn(40, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    clean = cx.solve(a, b[:, [0, 2]], method=method, lower=1e-4)
    b[7, 1] = torch.nan
    found = cx.solve(a, b, method=method, lower=1e-4)
    assert torch.equal(found.x[:, [0, 2]], clean.x)
    assert found.x[:, 1].isnan().all()
    assert found.errors.isnan().tolist() == [False, True, False]
    assert "1 not finite" in repr(found)
    none = cx.solve(a, torch.full((40,), torch.inf, dtype=F64), method=method)
    assert none.x.isnan().all()


def test_zero_and_huge_right_hand_sides():
    a = with_condition(30, 1e2, 0)
    b = torch.randn(30, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    b[:, 1] = 0
    b[:, 2] *= 1e290
    for method in ("cg", "cholesky"):
        x = cx.solve(a, b, method=method, tol=1e-12).x
        assert torch.equal(x[:, 1], torch.zeros(30, dtype=F64))
        torch.testing.assert_close(a @ x, b, rtol=1e-9, atol=0 * 1.0 + 1e-9 * 1e290)


def test_a_start_saves_steps():
    a = with_condition(50, 1e4, 1)
    b = torch.randn(50, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = cx.solve(a, b, method="cg", tol=1e-8)
    again = cx.solve(a, b, method="cg", tol=1e-8, x0=found.x)
    assert again.steps == 0
    assert again.converged


def test_other_operators():
    a = with_condition(40, 1e2, 0)
    b = torch.randn(40, dtype=F64, generator=torch.Generator().manual_seed(0))
    exact = torch.linalg.solve(a, b)
    scipy = pytest.importorskip("scipy.sparse.linalg")
    for operator in (Wrapped(a), a.to_sparse(), scipy.aslinearoperator(a.numpy()), a.numpy()):
        found = cx.solve(operator, b, tol=1e-10)
        torch.testing.assert_close(found.x, exact, rtol=1e-7, atol=1e-7)
        known = isinstance(operator, np.ndarray)
        assert bool(torch.isfinite(found.errors).all()) == known
        assert known or "give lower=" in repr(found)


def test_products_less_exact_than_their_dtype():
    """The bound counts what products were seen to lack, not their dtype alone."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 200, dtype=F64, generator=draw) * 1e-8

    class Noisy(Wrapped):
        def __matmul__(self, x):
            return super().__matmul__(x) + (noise - noise.T) @ x

    a = with_condition(200, 1e4, 7)
    for k in (1, 4):
        b = torch.randn(200, k, dtype=F64, generator=torch.Generator().manual_seed(k))
        found = cx.solve(Noisy(a), b, lower=0.9e-4, tol=1e-11)
        error, _ = true_errors(a, b, found.x)
        assert (error <= found.errors.numpy()).all()
        # the residual as products show it would promise far too much
        assert (error > 10 * found.residuals.numpy() / 0.9e-4).any()


def test_ggn_and_streams(kernel):
    x = torch.randn(12, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    y = torch.randn(12, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    model = model.double()
    for operator in (
        cx.GGN(model, "half_mse", (x, y)),
        cx.StreamedGGN(model, "half_mse", [(x[:5], y[:5]), (x[5:], y[5:])]),
        cx.StreamedNTK(model, [x[:5], x[5:]]),
        cx.EmpiricalFisher(model, "cross_entropy", (x, torch.zeros(12, dtype=torch.int64))),
    ):
        b = torch.randn(operator.shape[0], dtype=F64, generator=torch.Generator().manual_seed(2))
        found = cx.solve(operator, b, shift=0.1, tol=1e-10)
        exact = torch.linalg.solve(operator.dense() + 0.1 * torch.eye(len(b), dtype=F64), b)
        assert (found.x - exact).norm() <= found.errors[0] + 1e-12
        assert found.bound == "operator"
    assert cx.Hessian(model, "half_mse", (x, y)).lower_bound is None


def test_singular_and_indefinite_matrices_are_refused():
    b = torch.ones(6, dtype=F64)
    low = torch.ones(6, 6, dtype=F64)
    for method in ("cg", "cholesky"):
        with pytest.raises(ValueError, match=r"catapult_ext\.solve: A \+ shift I must be positive"):
            cx.solve(-low, b, method=method)
    with pytest.raises(ValueError, match="positive definite beyond rounding"):
        cx.solve(low, b)
    assert cx.solve(low, b, shift=0.1).converged
    factor = cx.cholesky(low, shift=0.1)
    with pytest.raises(ValueError, match="shift must be 0: the factor has its own"):
        cx.solve(factor, b, shift=0.1)


WRONG = {
    "b of another size": ({"b": torch.ones(5, dtype=F64)}, r"b must be \(6,\) or \(6, K\)"),
    "b of integers": ({"b": torch.ones(6, dtype=torch.int64)}, "b must have dtype"),
    "a lower of zero": ({"lower": 0.0}, r"lower \+ shift must be > 0"),
    "an unknown method": ({"method": "lu"}, "method must be one of"),
    "a word": ({"preconditioner": "ilu"}, "preconditioner must be"),
    "a rank": ({"preconditioner": 9, "method": "cg"}, r"must be in \[1, 6\]"),
    "a function": (
        {"preconditioner": lambda r: r[:2], "method": "cg"},
        r"preconditioner\(r\) must be",
    ),
    "an x0": ({"x0": torch.ones(5, dtype=F64), "method": "cg"}, r"x0 must be \(6,\)"),
    "an x0 of another size": ({"x0": torch.ones(5, dtype=F64)}, r"x0 must be \(6,\)"),
    "an x0 of a factorisation": (
        {"x0": torch.ones(6, dtype=F64), "method": "cholesky"},
        "x0 must be None with method='cholesky', got Tensor",
    ),
    "a preconditioner of a factorisation": (
        {"preconditioner": 3, "method": "cholesky"},
        "preconditioner must be 'auto' or None with method='cholesky', got int",
    ),
    "no shift": ({"shift": float("nan")}, "shift must be finite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    options, message = WRONG[name]
    good = {"A": 2 * torch.eye(6, dtype=F64), "b": torch.ones(6, dtype=F64)}
    with pytest.raises((TypeError, ValueError), match=rf"catapult_ext\.solve: .*{message}"):
        cx.solve(**{**good, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": 1.0}, "shift must be 0: the factor has its own, got 1.0"),
        ({"lower": 0.5}, "lower must be None: the factor has its own, got 0.5"),
        ({"method": "cg"}, "method='cg' needs A itself and not its factor"),
        ({"x0": torch.ones(6, dtype=F64)}, "x0 must be None with a CholeskyFactor, got Tensor"),
        ({"preconditioner": 2}, "preconditioner must be 'auto' or None with a CholeskyFactor"),
    ],
)
def test_a_factor_takes_no_option_that_it_would_ignore(options, message):
    factor = cx.cholesky(2 * torch.eye(6, dtype=F64))
    with pytest.raises(ValueError, match=rf"catapult_ext\.solve: {message}"):
        cx.solve(factor, torch.ones(6, dtype=F64), **options)
    again = cx.solve(factor, torch.ones(6, dtype=F64), method="cholesky", preconditioner=None)
    assert torch.allclose(again.x, torch.full((6,), 0.5, dtype=F64))


def test_a_factor_in_memory_has_one_dtype():
    with pytest.raises(ValueError, match=r"cholesky: dtype must be torch.float64 without file="):
        cx.cholesky(torch.eye(3), dtype=torch.float32)


def test_products_that_are_not_finite():
    class Broken(Wrapped):
        def __matmul__(self, x):
            return super().__matmul__(x) * torch.nan

    with pytest.raises(ValueError, match=r"catapult_ext\.solve: products with A must be finite"):
        cx.solve(Broken(torch.eye(4)), torch.ones(4))


def test_an_interrupt_leaves_nothing_behind():
    class Interrupted(Wrapped):
        def __matmul__(self, x):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cx.solve(Interrupted(torch.eye(4)), torch.ones(4))


def test_saved_and_shown(tmp_path):
    a, b = with_condition(30, 1e3, 0), torch.ones(30, 2, dtype=F64)
    for result in (cx.solve(a, b), cx.solve(a, b, method="cg")):
        torch.save(result, tmp_path / "r.pt")
        loaded = torch.load(tmp_path / "r.pt", weights_only=True)
        x, errors = loaded
        assert torch.equal(x, result.x)
        assert torch.equal(errors, result.errors)
        assert "2 solutions of 30 unknowns" in repr(result)
        assert "<table>" in result._repr_html_()
