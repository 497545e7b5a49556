"""Small kernels of chains are written out for eigsh, and solved exactly; others stay products."""

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.engines.dense_chain import DenseChainLinearization
from catapult_ext.linops.engines.written_out import worth_writing_out
from catapult_ext.linops.stacked.chain import StackedChain


def net(outputs=3, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = (nn.Linear(7, 16), nn.GELU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, outputs))
    return nn.Sequential(*layers).to(dtype)


def batch(n=30, outputs=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 7, generator=g, dtype=dtype)
    return x, torch.randint(outputs, (n,), generator=g)


def operators(dtype=torch.float64):
    x, y = batch(dtype=dtype)
    f = net(dtype=dtype)(x).detach()
    return {
        "ntk": lambda m: cx.NTK(m, x),
        "cross entropy": lambda m: cx.GGN(m, "cross_entropy", (x, y)),
        "squared": lambda m: cx.GGN(m, "mse", (x, f + 1)),
        "sigmoids": lambda m: cx.GGN(m, "bce", (x, (f > 0).to(dtype))),
    }


@pytest.fixture
def no_products(monkeypatch):
    for chain in (DenseChainLinearization, StackedChain):
        monkeypatch.setattr(chain, "ntk", None)


@pytest.mark.parametrize("name", operators())
@pytest.mark.usefixtures("no_products")
def test_the_matrix_is_that_of_the_products(name, dtype, monkeypatch):
    a = operators(dtype)[name](net(dtype=dtype))
    small = a.dual().operator if name != "ntk" else a
    matrix = small.written_out()
    assert torch.equal(matrix, matrix.T)
    found = cx.eigsh(a)
    monkeypatch.undo()
    exact = small @ torch.eye(len(matrix), dtype=dtype)
    size = torch.linalg.matrix_norm(exact, 2)
    eps = torch.finfo(dtype).eps
    assert (matrix - exact).abs().max() <= 20 * eps * size
    top = torch.linalg.eigvalsh((exact + exact.T).double() / 2)[-1]
    assert (found.eigenvalues.double() - top).abs().item() <= found.errors.item()
    assert found.index_check == "inertia"
    x = found.eigenvectors
    rest = torch.linalg.vector_norm(a @ x - x * found.eigenvalues)
    assert rest <= found.residuals[0] + 100 * eps * size


@pytest.mark.parametrize("name", operators())
@pytest.mark.usefixtures("no_products")
def test_several_models_as_one_by_one(name, dtype):
    nets = [net(seed=s, dtype=dtype) for s in range(4)]
    found = cx.eigsh(operators(dtype)[name](nets))
    assert set(found.index_check) == {"inertia"}
    for r, one in enumerate(nets):
        single = cx.eigsh(operators(dtype)[name](one))
        apart = (found.eigenvalues[r] - single.eigenvalues).abs()
        assert (apart <= found.errors[r] + single.errors).all()


def test_a_model_that_is_not_finite_touches_no_other(dtype):
    nets = [net(seed=s, dtype=dtype) for s in range(3)]
    make = operators(dtype)["ntk"]
    expected = cx.eigsh(make(nets)).eigenvalues
    with torch.no_grad():
        nets[1][0].weight[0, 0] = float("nan")
    found = cx.eigsh(make(nets)).eigenvalues
    assert found[1].isnan().all()
    assert torch.equal(found[::2], expected[::2])


@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.usefixtures("no_products")
def test_tiny_kernels_are_exact(n, dtype):
    x, _ = batch(n, dtype=dtype)
    kernel = cx.NTK(net(dtype=dtype), x)
    found = cx.eigsh(kernel, min(2, 3 * n))
    exact = torch.linalg.eigvalsh(kernel.dense().double()).flip(0)[: len(found.eigenvalues)]
    assert ((found.eigenvalues.double() - exact).abs() <= found.errors.double()).all()


def test_starts_and_limits_and_other_options_take_products(dtype):
    kernel = operators(dtype)["ntk"](net(dtype=dtype))
    start = torch.ones(len(kernel.dense()), dtype=dtype)
    for options in ({"v0": start}, {"maxiter": 5}, {"k": 2}):
        assert cx.eigsh(kernel, **options).index_check == "random(0.99)"
    kernel.written_out = lambda: None
    by_products = cx.eigsh(kernel)
    assert by_products.index_check == "random(0.99)"


def test_the_choice_depends_on_sizes_alone():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    chain = [(64, 64), (64, 64), (10, 64)]
    assert worth_writing_out(64, 10, chain, 4e6, cpu)
    assert not worth_writing_out(64, 10, chain, 4e6, cuda)
    assert not worth_writing_out(128, 10, chain, 4e6, cpu)
    assert not worth_writing_out(96, 10, [(512, 784), (512, 512), (10, 512)], 2e7, cpu)
