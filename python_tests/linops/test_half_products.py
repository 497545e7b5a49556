"""A = B'B at half the price, and diagonals of Gauss-Newton matrices from rows of J."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.eig.random import hutchinson_trace
from catapult_ext.linops.engines import kept_halves

F64 = torch.float64


def convolutional():
    torch.manual_seed(0)
    parts = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, stride=2), nn.Flatten()
    return nn.Sequential(*parts, nn.Linear(27, 5)).double(), torch.randn(6, 2, 8, 8, dtype=F64)


def attention():
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    parts = layer, nn.Flatten(), nn.Linear(24, 5)
    return nn.Sequential(*parts).double().eval(), torch.randn(4, 3, 8, dtype=F64)


def dense():
    model = cx.models.fully_connected(7, 5, width=9, depth=2, seed=0).double()
    return model, torch.randn(11, 7, dtype=F64)


MODELS = {"dense": dense, "convolutional": convolutional, "attention": attention}
LOSSES = {
    "half_mse": lambda n: torch.randn(n, 5, dtype=F64),
    "cross_entropy": lambda n: torch.arange(n) % 5,
    "callable": lambda n: torch.randn(n, 5, dtype=F64),
}


def loss_of(name):
    return (lambda f, y: (f - y).pow(4).mean()) if name == "callable" else name


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_diagonals_are_those_of_the_matrix(name, loss, monkeypatch):
    model, x = MODELS[name]()
    ggn = cx.GGN(model, loss_of(loss), (x, LOSSES[loss](len(x))))
    exact = ggn.dense().diagonal()
    monkeypatch.setattr(type(ggn), "_matmat", None)  # rows by parameter uses, no product
    torch.testing.assert_close(ggn.diagonal(), exact, rtol=1e-10, atol=1e-12 * exact.max())


def test_the_fisher_has_its_diagonal_from_rows():
    model, x = dense()
    fisher = cx.EmpiricalFisher(model, "cross_entropy", (x, torch.arange(11) % 5))
    exact = fisher.dense().diagonal()
    torch.testing.assert_close(fisher.diagonal(), exact, rtol=1e-10, atol=1e-14)


def test_a_diagonal_that_does_not_fit_is_made_by_products(monkeypatch):
    model, x = convolutional()
    ggn = cx.GGN(model, "half_mse", (x, torch.randn(6, 5, dtype=F64)))
    whole = ggn.diagonal()
    monkeypatch.setattr(ggn.linearization, "weighted_diagonal", lambda product: None)
    torch.testing.assert_close(ggn.diagonal(), whole, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", MODELS)
def test_half_products_square_to_the_operator(name):
    model, x = MODELS[name]()
    y = torch.arange(len(x)) % 5
    for a in (
        cx.NTK(model, x),
        cx.GGN(model, "cross_entropy", (x, y)),
        cx.EmpiricalFisher(model, "cross_entropy", (x, y)),
        3 * cx.NTK(model, x),
    ):
        v = torch.randn(a.shape[0], 3, dtype=F64)
        half = a.half_product(v)
        torch.testing.assert_close(half.T @ half, v.T @ (a @ v), rtol=1e-9, atol=1e-12)


def test_operators_without_a_half_say_so():
    model, x = dense()
    data = x, torch.randn(11, 5, dtype=F64)
    for a in (
        cx.Hessian(model, "half_mse", data),
        cx.GGN(model, loss_of("callable"), data),
        cx.NTK(model, x).shift(1.0),
        -1 * cx.NTK(model, x),
        cx.NTK(model, x, x2=x),
    ):
        assert a.half_product(torch.randn(a.shape[1], 2, dtype=F64)) is None


@pytest.mark.parametrize("samples", [2, 8, 20])
def test_traces_by_half_products_are_those_by_products(samples, monkeypatch):
    """The same estimate for the same seed, and an error of the same kind."""
    model, x = convolutional()
    for a in (cx.NTK(model, x), cx.GGN(model, "cross_entropy", (x, torch.arange(6) % 5))):
        half = hutchinson_trace(a, samples, seed=3)
        matrix = a.dense()
        whole = hutchinson_trace(matrix, samples, seed=3)
        assert half.value.item() == pytest.approx(whole.value.item(), rel=1e-9)
        assert 0.9 * whole.error < half.error
        if samples > 2:
            assert half.error < 1.5 * whole.error


def test_a_half_product_makes_no_whole_one(monkeypatch):
    model, x = convolutional()
    kernel = cx.NTK(model, x)
    expected = hutchinson_trace(kernel, 4).value
    monkeypatch.setattr(type(kernel.linearization), "jvp", None)
    monkeypatch.setattr(type(kernel.linearization), "ntk", None)
    assert torch.equal(hutchinson_trace(kernel, 4).value, expected)


def test_bars_of_half_products_hold():
    model, x = dense()
    kernel = cx.NTK(model, x)
    exact = kernel.trace()
    held = []
    for seed in range(200):
        found = hutchinson_trace(kernel, 6, seed=seed)
        held.append(bool((found.value - exact).abs() <= found.error))
    assert 0.58 < sum(held) / 200 < 0.95


def test_parameters_that_changed_are_refused():
    model, x = dense()
    kernel = cx.NTK(model, x, copy=False)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises((ValueError, RuntimeError), match="parameters must stay as they were"):
        kernel.half_product(torch.ones(kernel.shape[0], 1, dtype=F64))


def products_of(ggn, monkeypatch):
    """Names of the Jacobian products that are made from here on, in order."""
    made = []
    kind = type(ggn.linearization)
    for name in ("vjp", "jvp"):
        plain = getattr(kind, name)

        def noted(self, t, plain=plain, name=name):
            made.append(name)
            return plain(self, t)

        monkeypatch.setattr(kind, name, noted)
    return made


@pytest.mark.parametrize("piece", [1 << 14, 7])  # of a vector that is combined at a time
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", ["convolutional", "attention"])
def test_eigenvectors_take_the_halves_of_the_products(name, k, piece, monkeypatch):
    monkeypatch.setattr(kept_halves, "_PIECE", piece)
    model, x = MODELS[name]()
    ggn = cx.GGN(model, "cross_entropy", (x, torch.arange(len(x)) % 5))
    exact = torch.linalg.eigvalsh(ggn.dual().operator.dense())
    made = products_of(ggn, monkeypatch)
    found = cx.eigsh(ggn, k, tol=1e-9)
    assert made == ["vjp", "jvp"] * (len(made) // 2)
    torch.testing.assert_close(found.eigenvalues, exact.flip(0)[:k], rtol=1e-8, atol=0)
    x = found.eigenvectors
    torch.testing.assert_close(x.T @ x, torch.eye(k, dtype=F64), rtol=0, atol=1e-8)
    torch.testing.assert_close(ggn @ x, x * found.eigenvalues, rtol=0, atol=1e-4 * exact[-1])


def test_a_vector_that_no_product_met_takes_a_pass_of_its_own(monkeypatch):
    model, x = convolutional()
    ggn = cx.GGN(model, "half_mse", (x, torch.randn(6, 5, dtype=F64)))
    dual, u = ggn.dual(), torch.randn(30, 2, dtype=F64)
    right = dual.lift(u)
    dual.operator @ u
    made = products_of(ggn, monkeypatch)
    mixed = u @ torch.randn(2, 3, dtype=F64)
    torch.testing.assert_close(dual.lift(u), right, rtol=1e-12, atol=1e-12 * right.abs().max())
    torch.testing.assert_close(dual.lift(mixed), right @ torch.linalg.lstsq(u, mixed).solution)
    assert made == []
    dual.lift(u + 1e-3 * torch.ones_like(u))
    assert made == ["vjp"]


def test_vectors_that_cancel_are_not_combined(monkeypatch):
    model, x = convolutional()
    ggn = cx.GGN(model, "half_mse", (x, torch.randn(6, 5, dtype=F64)))
    dual, u = ggn.dual(), torch.randn(30, 2, dtype=F64)
    near = u[:, :1] + 1e-6 * u[:, 1:]
    dual.operator @ torch.cat([u[:, :1], near], 1)
    made = products_of(ggn, monkeypatch)
    dual.lift(u[:, 1:])
    assert made == ["vjp"]


@pytest.mark.parametrize("limit", ["budget", "room"])
def test_halves_are_kept_within_their_room(limit, monkeypatch):
    model, x = convolutional()
    options = {"memory_budget": "1 GiB"} if limit == "budget" else {}
    if limit == "room":
        monkeypatch.setattr(kept_halves, "_ROOM", 8 * (30 + ggn_size(model)))
    ggn = cx.GGN(model, "half_mse", (x, torch.randn(6, 5, dtype=F64)), **options)
    dual, u = ggn.dual(), torch.randn(30, 2, dtype=F64)
    right = dual.lift(u)
    dual.operator @ u
    made = products_of(ggn, monkeypatch)
    torch.testing.assert_close(dual.lift(u), right)
    assert made == ["vjp"]


def ggn_size(model):
    return sum(p.numel() for p in model.parameters())
