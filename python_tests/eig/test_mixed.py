"""precision="mixed": bfloat16 does most products, full precision the values and errors."""

import pytest
import torch

import catapult_ext as cx

DATA = cx.data.digits(train=32)


def spectrum(name, n=80):
    e = torch.linspace(0, 0.5, n, dtype=torch.float64)
    e[-3:] = torch.tensor([0.8, 0.9, 1.0], dtype=torch.float64)
    return {"gaps": e, "cluster": e.clamp(max=0.9), "zero": 0 * e, "negative": e - 3}[name]


def matrix(name, scale, dtype):
    g = torch.Generator().manual_seed(1)
    e = spectrum(name)
    q = torch.linalg.qr(torch.randn(len(e), len(e), dtype=torch.float64, generator=g))[0]
    a = (q * e) @ q.T * scale
    return ((a + a.T) / 2).to(dtype)


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
@pytest.mark.parametrize("name", ["gaps", "cluster", "zero", "negative"])
def test_matrices(name, scale, dtype):
    a = matrix(name, scale, dtype)
    exact = torch.linalg.eigvalsh(a.double()).flip(0)
    for k in (1, 3):
        for seed in range(3):
            found = cx.eigsh(a, k, precision="mixed", seed=seed)
            miss = (found.eigenvalues.double() - exact[:k]).abs()
            assert bool((miss <= found.errors.double()).all()), (miss, found)
            assert found.converged


OPERATORS = {
    "ggn": lambda m: cx.GGN(m, "half_mse", DATA.train),
    "hessian": lambda m: cx.Hessian(m, "half_mse", DATA.train),
    "ntk": lambda m: cx.NTK(m, DATA.x_train),
}


@pytest.mark.parametrize("kind", OPERATORS)
def test_networks(kind):
    model = cx.models.fully_connected(64, 10, width=24, depth=2)
    a = OPERATORS[kind](model)
    exact = cx.eigsh(a, 2, tol=1e-6)
    found = cx.eigsh(a, 2, precision="mixed")
    miss = (found.eigenvalues - exact.eigenvalues).abs()
    assert bool((miss <= found.errors + exact.errors).all())
    assert bool((found.errors <= 1.00001e-3 * found.eigenvalues).all())
    assert found.index_check == "estimate(0.99)"
    rest = a @ found.eigenvectors - found.eigenvectors * found.eigenvalues
    slack = 1e-5 * float(found.eigenvalues[0])
    assert bool((rest.norm(dim=0) <= found.residuals + slack).all())


@pytest.mark.parametrize("kind", OPERATORS)
def test_coarse_products(kind):
    """bfloat16 was used (the products differ), and is as good as it should be."""
    model = cx.models.fully_connected(64, 10, width=24, depth=2)
    a = OPERATORS[kind](model)
    v = torch.randn(a.shape[0], 2, generator=torch.Generator().manual_seed(0))
    full, low = a @ v, a.coarse() @ v
    top = cx.eigsh(a).eigenvalues[0]
    error = float((full - low).norm() / (top * v.norm()))
    assert 1e-5 < error < 0.01
    torch.testing.assert_close(a @ v, full)


def test_objects_without_coarse_products_are_refused():
    class Bare:
        shape, dtype = (3, 3), torch.float32

        def __matmul__(self, x):
            return x

    with pytest.raises(ValueError, match="needs a dense tensor"):
        cx.eigsh(Bare(), precision="mixed")
