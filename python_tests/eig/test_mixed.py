"""precision="mixed": coarse products first, full precision for the values and errors."""

import copy

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext import _native
from catapult_ext.linops.engines import mixed_precision
from catapult_ext.linops.model import large_products

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
def test_networks(kind, monkeypatch):
    """bfloat16, as where it is faster."""
    monkeypatch.setattr(mixed_precision, "_bfloat16_is_fast", lambda device: True)
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


class Attention(nn.Module):
    """One block of a transformer over patches, as in a ViT."""

    def __init__(self, width=8):
        super().__init__()
        self.patch, self.norm = nn.Conv2d(1, width, 4, 4), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        h = self.patch(x.view(-1, 1, 8, 8)).flatten(2).mT
        q, k, v = self.mix(self.norm(h)).chunk(3, -1)
        h = h + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        return self.head(h.mean(1))


def network(name, seed=0):
    torch.manual_seed(seed)
    if name == "CNN":
        conv = (nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 3, 3), nn.GELU(), nn.Flatten())
        return nn.Sequential(*conv, nn.Linear(108, 16), nn.GELU(), nn.Linear(16, 10))
    # of the second, samples are more than twice as many as inputs: sources in weight space
    widths = {"MLP": (64, 12, 9), "many samples": (64, 6, 5)}.get(name)
    if widths is not None:
        first, second = nn.Linear(*widths[:2]), nn.Linear(*widths[1:])
        return nn.Sequential(first, nn.Tanh(), second, nn.ReLU(), nn.Linear(widths[2], 10))
    return Attention()


NETWORKS = ["MLP", "many samples", "CNN", "attention"]


@pytest.fixture
def int16(monkeypatch):
    """Products in 16-bit integers on every processor, of small matrices too."""
    monkeypatch.setattr(large_products, "LEAST", 4)
    monkeypatch.setattr(mixed_precision, "_bfloat16_is_fast", lambda device: False)
    monkeypatch.setattr(mixed_precision, "int16_products_are_fast", lambda device: True)


def operator(kind, net, dtype=torch.float32, engine=None):
    x, y = DATA.train
    net, x = copy.deepcopy(net).to(dtype), x.to(dtype)
    if kind == "NTK":
        return cx.NTK(net, x, engine=engine)
    return getattr(cx, kind)(net, nn.CrossEntropyLoss(), (x, y.argmax(1)), engine=engine)


@pytest.mark.parametrize("engine", [None, "autograd"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["GGN", "NTK", "Hessian"])
def test_products_in_int16(kind, name, engine, int16):
    a = operator(kind, network(name), engine=engine)
    assert a.mixed == "int16"
    assert "int16 (AVX512-VNNI" in str(a.plan)
    v = torch.randn(a.shape[0], 2, generator=torch.Generator().manual_seed(0))
    full, low = a @ v, a.coarse() @ v
    error = float((full - low).norm() / full.norm())
    assert 1e-6 < error < 1e-3  # other products, and almost as exact
    torch.testing.assert_close(a @ v, full)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["GGN", "NTK", "Hessian"])
def test_errors_hold_in_int16(kind, name, int16):
    for seed in range(2):
        net = network(name, seed)
        exact = torch.linalg.eigvalsh(operator(kind, net, torch.float64).dense()).flip(0)
        for k in (1, 3):
            found = cx.eigsh(operator(kind, net), k, precision="mixed", seed=seed)
            assert found.index_check == "estimate(0.99)"
            assert found.converged
            miss = (found.eigenvalues.double() - exact[:k]).abs()
            assert bool((miss <= found.errors.double()).all()), (miss, found)


def test_as_full_where_nothing_is_faster(monkeypatch):
    monkeypatch.setattr(mixed_precision, "_bfloat16_is_fast", lambda device: False)
    a = operator("GGN", network("MLP"))
    for fast, reason in ((False, "no shorter numbers faster"), (True, "0% of the work")):
        monkeypatch.setattr(mixed_precision, "int16_products_are_fast", lambda device, f=fast: f)
        assert a.mixed == ""
        assert "mixed    as full" in str(a.plan)
        assert reason in str(a.plan)
        one, other = cx.eigsh(a), cx.eigsh(a, precision="mixed")
        assert torch.equal(one.eigenvalues, other.eigenvalues)
        assert (one.index_check, one.matvecs) == (other.index_check, other.matvecs)
    wide = operator("GGN", network("MLP"), torch.float64)
    assert "the model is in float64" in str(wide.plan)


def test_other_instruction_sets_have_no_faster_numbers(monkeypatch):
    monkeypatch.setattr(large_products, "LEAST", 4)
    monkeypatch.setattr(mixed_precision, "_bfloat16_is_fast", lambda device: False)
    with _native.forced_isa("baseline"):
        assert operator("GGN", network("MLP")).mixed == ""


def test_chunks_of_samples_and_sums(int16):
    net, (x, y) = network("CNN"), DATA.train
    chunks = cx.GGN(net, "half_mse", (x, y), samples_at_once=8)
    assert chunks.mixed == ""
    assert "linearizes the samples again" in str(chunks.plan)
    whole = cx.GGN(net, "half_mse", (x, y))
    shifted = 2 * whole + cx.Hessian(net, "half_mse", (x, y)).shift(1.0)
    assert shifted.mixed == "int16"
    exact, found = cx.eigsh(shifted), cx.eigsh(shifted, precision="mixed")
    miss = (exact.eigenvalues - found.eigenvalues).abs()
    assert bool((miss <= exact.errors + found.errors).all())
    assert (shifted + chunks).mixed == ""
