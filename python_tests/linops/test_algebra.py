"""The Jacobian, its transpose, and sums and multiples of operators, against dense matrices."""

import numpy as np
import pytest
import torch
from linops import zoo
from torch import nn

import catapult_ext as cx
from catapult_ext.linops import LinearOperator
from catapult_ext.testing.tolerances import assert_close as close


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("ntk_chain", "dense-chain"),
        ("conv", "autograd"),
        ("tied", "autograd"),
        ("conv", "linearize"),
    ],
)
def test_jacobian(name, engine):
    model, x = zoo.build(name)
    exact = zoo.jacobian(model, x)
    j = cx.Jacobian(model, x, engine=engine)
    assert j.engine == engine
    assert j.T.T is j
    t, u = random(exact.shape[1], 5), random(len(exact), 5)
    close(j @ t, exact @ t)
    close(j @ t[:, 0], exact @ t[:, 0])
    close(j.T @ u, exact.T @ u)
    close(j.T @ u[:, 0], exact.T @ u[:, 0])
    close(j.dense(), exact)
    close(j.T.dense(), exact.T)
    close(LinearOperator.dense(j), exact)
    sparse = j.to_scipy()
    for got, want in (
        (sparse @ t.numpy(), exact @ t),
        (sparse.T @ u.numpy(), exact.T @ u),
        (sparse.rmatvec(u[:, 0].numpy()), exact.T @ u[:, 0]),
        (j.T.to_scipy() @ u.numpy(), exact.T @ u),
    ):
        close(torch.from_numpy(np.ascontiguousarray(got)), want)


def test_scipy_takes_the_transpose_of_square_cross_kernels():
    model, x = zoo.build("ntk_chain")
    kernel = cx.NTK(model, x, x.flip(0) + 1)
    u = random(kernel.shape[0])
    close(kernel.T @ u, kernel.dense().T @ u)
    close(torch.from_numpy(kernel.to_scipy().rmatvec(u.numpy())), kernel.dense().T @ u)


def operators():
    model, x = zoo.build("tied")
    y = torch.arange(len(x)) % 2
    loss = torch.nn.CrossEntropyLoss()
    return cx.GGN(model, loss, (x, y)), cx.Hessian(model, loss, (x, y))


def test_sums_and_multiples():
    a, b = operators()
    da, db = a.dense(), b.dense()
    v, eye = random(len(da), 3), torch.eye(len(da), dtype=torch.float64)
    for got, exact in (
        (2 * a + b, 2 * da + db),
        (a - b / 4, da - db / 4),
        (-(a + b) * 0.5, -(da + db) / 2),
        (a.shift(0.3), da + 0.3 * eye),
        (np.float64(3) * a.shift(-1) - b, 3 * (da - eye) - db),
    ):
        assert got.symmetric
        close(got @ v, exact @ v)
        close(got @ v[:, 0], exact @ v[:, 0])
        close(got.dense(), exact)
        close(got.diagonal(), exact.diagonal())
        close(got.trace(), exact.trace())
        close(torch.from_numpy(got.to_scipy() @ v.numpy()), exact @ v)
    assert len((2 * (a + b) + a).terms) == 3
    v_before = v.clone()
    a.shift(2.0) @ v
    assert torch.equal(v, v_before)


def test_sums_of_jacobians_are_not_symmetric():
    model, x = zoo.build("conv")
    j = cx.Jacobian(model, x)
    exact = zoo.jacobian(model, x)
    both = 2 * j - cx.Jacobian(model, x.flip(0))
    dense = 2 * exact - zoo.jacobian(model, x.flip(0))
    u = random(len(exact), 2)
    close(both.T @ u, dense.T @ u)
    close((2 * j.T) @ u, 2 * exact.T @ u)
    with pytest.raises(ValueError, match="must be square"):
        j.shift(1.0)
    with pytest.raises(ValueError, match="eigsh: A must be symmetric, got NTK"):
        cx.eigsh(cx.NTK(model, x, x.flip(0)))


def test_dual_of_a_multiple():
    a, b = operators()
    assert (a + b).dual() is None
    assert a.shift(0.1).dual() is None
    assert (-a).dual() is None
    assert (3 * a).dual() is not None
    exact = torch.linalg.eigvalsh(a.dense()).flip(0)
    result = cx.eigsh(3 * a, 2, tol=1e-9)
    close(result.eigenvalues, 3 * exact[:2], 1e-7)
    close((3 * a) @ result.eigenvectors, result.eigenvectors * result.eigenvalues, 1e-5)
    shifted = cx.eigsh(a.shift(0.5), tol=1e-9)
    close(shifted.eigenvalues, exact[:1] + 0.5, 1e-7)


def test_what_cannot_be_added():
    a, _ = operators()
    model, x = zoo.build("tied", torch.float32)
    y = torch.zeros(6, 2)
    with pytest.raises(ValueError, match=r"GGN \+ NTK: shapes must agree"):
        a + cx.NTK(*zoo.build("tied"))
    with pytest.raises(TypeError, match=r"GGN \+ GGN: both must have dtype torch.float64"):
        a + cx.GGN(model, "half_mse", (x, y))
    with pytest.raises(ValueError, match="GGN: a factor must be finite, got nan"):
        a * float("nan")
    with pytest.raises(TypeError):
        a + 1.0
    with pytest.raises(TypeError):
        a * "2"


def test_eigenvalues_are_factors_and_shifts():
    model = nn.Linear(4, 2).double()
    ggn = cx.GGN(model, "half_mse", (torch.randn(5, 4).double(), torch.randn(5, 2).double()))
    top = cx.eigsh(ggn, k=np.int64(1), maxiter=np.int64(50), tol=1e-6).eigenvalues[0]
    dense = ggn.dense()
    eye = torch.eye(len(dense), dtype=torch.float64)
    assert torch.allclose(ggn.shift(-top).dense(), dense - top * eye)
    assert torch.allclose((ggn * top).dense(), dense * top)
    assert torch.allclose((ggn / top).dense(), dense / top)
    with pytest.raises(TypeError):
        ggn * torch.ones(2)
