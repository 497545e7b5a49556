"""f(A) v and log-determinants by Lanczos."""

import pytest
import torch
from systems.test_solve import with_condition

import catapult_ext as cx
from catapult_ext.linops.base import LinearOperator

F64 = torch.float64


class Positive(LinearOperator):
    """A matrix that is known to be positive semi-definite, by its products."""

    name = "Positive"
    lower_bound = 0.0

    def __init__(self, a):
        self.a, self.shape = a, tuple(a.shape)
        self.dtype, self.device = a.dtype, a.device

    def _matmat(self, vectors):
        return self.a @ vectors


FUNCTIONS = {
    "sqrt": torch.sqrt,
    "exp": lambda x: torch.exp(-20 * x),
    "log": torch.log,
    "inverse": torch.reciprocal,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    a = with_condition(60, 1e3, 2)
    b = torch.randn(60, 10, dtype=F64, generator=torch.Generator().manual_seed(0))
    b[:, 4] = 0
    values, vectors = torch.linalg.eigh(a)
    exact = vectors @ (FUNCTIONS[name](values)[:, None] * (vectors.T @ b))
    found = cx.matrix_function(a, FUNCTIONS[name], b, tol=1e-9)
    assert found.converged
    error = (found.value - exact).norm(dim=0)
    assert (error <= 10 * found.estimates + 1e-10 * exact.norm(dim=0)).all()
    assert found.matvecs <= 9 * 60
    early = cx.matrix_function(a, FUNCTIONS[name], b[:, 0], maxiter=4)
    assert not early.converged


def test_a_ritz_value_below_zero_is_rounding():
    """The square root of a singular kernel, which rounding gives negative eigenvalues."""
    low = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    b = torch.randn(40, generator=torch.Generator().manual_seed(1))
    found = cx.matrix_function(Positive(low @ low.T), torch.sqrt, b, maxiter=40)
    u, s, _ = torch.linalg.svd(low.double(), full_matrices=False)
    torch.testing.assert_close(
        found.value.double(), u @ (s * (u.T @ b.double())), rtol=0, atol=0.02
    )
    with pytest.raises(ValueError, match=r"f must be finite on the spectrum .* at -"):
        cx.matrix_function(-(low @ low.T), torch.sqrt, b)


def test_columns_that_are_not_finite():
    a = with_condition(30, 1e2, 2)
    b = torch.randn(30, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    clean = cx.matrix_function(a, torch.sqrt, b[:, 1:])
    b[0, 0] = torch.nan
    found = cx.matrix_function(a, torch.sqrt, b)
    assert found.value[:, 0].isnan().all()
    assert torch.equal(found.value[:, 1:], clean.value)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_logdet_of_a_matrix(shift):
    a = with_condition(60, 1e6, 2)
    exact = torch.logdet(a + shift * torch.eye(60, dtype=F64)).item()
    value, error = cx.logdet(a, shift=shift)
    assert abs(value.item() - exact) <= error.item() + 1e-9
    assert error < 1e-3


def test_logdet_by_products():
    """Random vectors: within four standard errors, and brackets that hold for each vector."""
    a = with_condition(300, 1e3, 2)
    exact = torch.logdet(a + 0.01 * torch.eye(300, dtype=F64)).item()
    found = cx.logdet(Positive(a), shift=0.01, samples=24, seed=1)
    assert abs(found.value.item() - exact) <= 4 * found.error.item()
    assert found.error < 0.1 * abs(exact)
    assert found.samples == 24
    few = cx.logdet(Positive(a), shift=0.01, samples=24, steps=3, seed=1)
    assert abs(few.value.item() - exact) <= 4 * few.error.item()


def test_brackets_hold():
    from catapult_ext.systems.determinant import log_brackets
    from catapult_ext.systems.problem import System

    a = with_condition(80, 1e3, 2)
    system = System.of(Positive(a), 0.01, None, "logdet")
    z = torch.randn(80, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    values, vectors = torch.linalg.eigh(a)
    exact = ((vectors.T @ z).square() * (values + 0.01).log()[:, None]).sum(0)
    for steps in (1, 2, 5, 10, 80):
        low, high, _ = log_brackets(system, z, steps)
        assert (low <= exact + 1e-9).all()
        assert (high >= exact - 1e-9).all()


def test_refused():
    a = torch.eye(5)
    with pytest.raises(ValueError, match=r"lower \+ shift must be > 0"):
        cx.logdet(Positive(a))
    with pytest.raises(TypeError, match="f must be a function"):
        cx.matrix_function(a, 3, torch.ones(5))
    with pytest.raises(ValueError, match="f must return a tensor"):
        cx.matrix_function(a, lambda x: x[:0], torch.ones(5))
    with pytest.raises(ValueError, match="samples must be >= 2"):
        cx.logdet(a, samples=1)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_estimates_count_the_rounding_of_products(dtype):
    a = with_condition(60, 1e4, 0, dtype)
    vectors = torch.randn(60, 2, dtype=F64, generator=torch.Generator().manual_seed(3)).to(dtype)
    value, estimates = cx.matrix_function(Positive(a), lambda x: (x + 1e-6) ** -0.5, vectors)
    w, u = torch.linalg.eigh(a.double())
    wanted = u @ ((w.clamp_min(0) + 1e-6) ** -0.5 * (u.T @ vectors.double()).T).T
    assert bool(((value.double() - wanted).norm(dim=0) <= estimates).all())
