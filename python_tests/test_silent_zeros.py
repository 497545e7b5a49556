"""Derivatives that the library cannot give, and products that break the contract, are errors."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jvp, vmap

import catapult_ext as cx

REFUSED = "is not differentiable"
A = torch.eye(3) + 0.1
ALPHA = torch.tensor([[0.3, -1.0, 2.0, 0.5]])


def _top(alpha):
    return cx.ops.tridiag_eigh(alpha, torch.ones(1, 3))[0].sum()


def _simulated(**changed):
    given = {"c": [0.5], "width": 100, "x": torch.ones(2, 3), "y": torch.zeros(2), "steps": 3}
    return cx.toy.simulate(**(given | changed)).loss.sum()


class Operator:
    """A matrix behind @."""

    def __init__(self, matrix):
        self.matrix = matrix
        self.shape, self.dtype, self.device = (3, 3), matrix.dtype, torch.device("cpu")

    def __matmul__(self, vectors):
        return self.matrix @ vectors


ESTIMATES = {
    "trace": lambda a: cx.hutchinson_trace(a).value,
    "diagonal": lambda a: cx.hutchinson_diagonal(a).value.sum(),
    "density": lambda a: cx.spectral_density(a, steps=2).nodes.sum(),
    "solve": lambda a: cx.solve(a, torch.ones(3), shift=9.0).x.sum(),
    "function": lambda a: cx.matrix_function(a, torch.exp, torch.ones(3)).value.sum(),
    "logdet": lambda a: cx.logdet(a, shift=9.0, lower=-1.0).value,
    "eigsh": lambda a: cx.eigsh(a).eigenvalues.sum(),
    "tracker": lambda a: cx.TopTracker().update(a).eigenvalues.sum(),
}


@pytest.mark.parametrize("mode", [
    lambda: jvp(_top, (ALPHA,), (torch.ones(1, 4),)),
    lambda: grad(_top)(ALPHA),
    lambda: jacfwd(_top)(ALPHA),
    lambda: jvp(lambda a: vmap(_top)(a).sum(), (ALPHA[None],), (ALPHA[None],)),
    lambda: grad(lambda a: vmap(_top)(a).sum())(ALPHA[None]),
    lambda: vmap(grad(_top))(ALPHA[None]),
])  # fmt: skip
def test_native_ops_refuse_every_kind_of_derivative(mode):
    with pytest.raises(ValueError, match=rf"tridiag_eigh: {REFUSED}: pass alpha.detach\(\)"):
        mode()


def test_a_dual_number_is_refused_and_its_detached_value_taken():
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(ALPHA, ALPHA)
        with torch.no_grad(), pytest.raises(ValueError, match=REFUSED):
            _top(dual)
        assert _top(dual.detach()) == _top(ALPHA)
    value, tangent = jvp(lambda a: _top(a.detach()), (ALPHA,), (ALPHA,))
    assert value == _top(ALPHA)
    assert tangent == 0  # as the caller asked


@pytest.mark.parametrize("op", ["lanczos_dense", "gram", "toy_scalar"])
def test_other_ops_refuse_dual_numbers(op):
    def call(t):
        if op == "lanczos_dense":
            return cx.ops.lanczos_dense(t[None]).eigenvalues
        if op == "gram":
            return cx.ops.gram([t], [t[:, None]], scale=[1.0], bias=[0.0])
        return cx.ops.toy_scalar(t[0], t[0], 5).h

    with pytest.raises((ValueError, TypeError), match=f"{op}: {REFUSED}"):
        jvp(call, (A,), (A,))


@pytest.mark.parametrize("kind", [lambda a: a, Operator], ids=["tensor", "operator"])
@pytest.mark.parametrize("name", list(ESTIMATES))
def test_solvers_and_estimates_refuse_derivatives(name, kind):
    def estimate(a):
        return ESTIMATES[name](kind(a))

    with pytest.raises(ValueError, match=REFUSED):
        jvp(estimate, (A,), (A,))
    with pytest.raises(ValueError, match=REFUSED):
        grad(estimate)(A)


def test_simulate_refuses_derivatives_of_rates_data_and_weights():
    for name, value in {
        "c": torch.tensor([0.5]),
        "x": torch.ones(2, 3),
        "l2": torch.tensor(0.1),
    }.items():
        with pytest.raises(ValueError, match=rf"toy.simulate: {REFUSED}: pass {name}"):
            jvp(lambda t, name=name: _simulated(**{name: t}), (value,), (value,))
    U, v = torch.randn(4, 3), torch.randn(4)
    with pytest.raises(ValueError, match=REFUSED):
        jvp(lambda t: _simulated(init=(t, v), width=None), (U,), (U,))


def test_operators_of_models_refuse_derivatives():
    model, x = torch.nn.Linear(3, 2), torch.randn(5, 3)
    wrapped = torch.nn.ModuleDict({"m": model})
    wrapped.forward = lambda inputs: cx.NTK(model, inputs).dense().sum()
    with pytest.raises(ValueError, match="NTK: must be built outside"):
        jvp(lambda t: cx.NTK(model, t).dense().sum(), (x,), (x,))
    weight = model.weight.detach()
    with pytest.raises(ValueError, match="NTK: must be built outside"):
        grad(lambda w: functional_call(wrapped, {"m.weight": w}, (x,)))(weight)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        with pytest.raises(ValueError, match=f"NTK: {REFUSED}"):
            cx.NTK(model, dual)


D = torch.linspace(0, 1, 100, dtype=torch.float64)[:, None]


def _operator(product, dtype=torch.float64):
    class Given:
        shape, device = (100, 100), torch.device("cpu")

        def __matmul__(self, vectors):
            return product(vectors)

    given = Given()
    given.dtype = dtype
    return given


def _zeroes(v):
    out = D * v
    v.zero_()
    return out


def _scratch_by_numpy(v):
    out = D * v
    v.numpy()[:] = 0  # a write that autograd's version counter does not see
    return out


@pytest.mark.parametrize("product", [_zeroes, lambda v: v.mul_(D), _scratch_by_numpy])
@pytest.mark.parametrize("solve", [
    lambda a: cx.eigsh(a), lambda a: cx.eigsh(a, 3),
    cx.hutchinson_trace, cx.hutchinson_diagonal, cx.spectral_density,
    lambda a: cx.solve(a, D[:, 0], shift=9.0), lambda a: cx.matrix_function(a, torch.exp, D[:, 0]),
], ids=["k=1", "k=3", "trace", "diagonal", "density", "solve", "function"])  # fmt: skip
def test_a_product_that_writes_into_its_argument_is_named(product, solve):
    with pytest.raises(ValueError, match="must leave v as it is"):
        solve(_operator(product))


@pytest.mark.parametrize(
    "product", [lambda v: (D * v).round().long(), lambda v: (D * v) * (1 + 0j)]
)
def test_integer_and_complex_products_are_refused(product):
    with pytest.raises(TypeError, match="real floating-point"):
        cx.eigsh(_operator(product))


def test_numpy_operators():
    d = D.numpy()

    def scratch(v):
        out = d * v
        v[:] = 0
        return out

    found = cx.eigsh(_operator(scratch, np.dtype("float64")), tol=1e-9)
    assert abs(found.eigenvalues[0] - 1) <= found.errors[0]  # SciPy's operators get a copy
    with pytest.raises(TypeError, match="real floating-point"):
        cx.eigsh(_operator(lambda v: d * v * 1j, np.dtype("float64")))
    masked = np.ma.masked_greater(np.eye(4), 0.5)
    with pytest.raises(TypeError, match="masked array"):
        cx.eigsh(masked)
    with pytest.raises(ValueError, match="masked array"):
        cx.eigsh(_operator(lambda v: np.ma.masked_array(d * v), np.dtype("float64")))


def test_plain_operators_still_pass():
    """The identity returns its argument itself; a plain requires_grad is detached as documented."""
    assert cx.eigsh(_operator(lambda v: v)).eigenvalues == 1
    assert cx.eigsh(A.clone().requires_grad_()).eigenvalues.requires_grad is False
    assert SimpleNamespace(v=vmap(_top)(ALPHA[None])).v == _top(ALPHA)
