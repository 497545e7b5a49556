"""Gradients that are made when they are read: those of a plain backward pass, with less kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.engines import autograd, transpose_proof
from catapult_ext.linops.engines.pullback import OfLast, Pullback

V, D, TOKENS = 40, 12, (2, 3)


class Language(nn.Module):
    """Tokens to logits through a wide layer; the head is the embedding's transpose, or its own."""

    def __init__(self, padding=None, sparse=False, tied=True):
        super().__init__()
        self.words = nn.Embedding(V, D, padding_idx=padding, sparse=sparse)
        self.up, self.norm = nn.Linear(D, 4 * D), nn.LayerNorm(D)
        self.down = nn.Linear(4 * D, D, bias=False)
        self.head = self.words.weight if tied else nn.Parameter(torch.randn(V, D))
        self.unused = nn.Parameter(torch.randn(50, 50))

    def forward(self, x):
        h = self.words(x)
        h = self.norm(h + self.down(torch.tanh(self.up(h))))
        return (h @ self.head.T).flatten(1)


class Direct(nn.Module):
    """Weights that reach operations without a transpose: one of them twice, once through the other.

    The sum ``a + b`` has one gradient tensor for both.
    """

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(D, D))
        self.a, self.b = (nn.Parameter(torch.randn(D, D)) for _ in range(2))
        self.table = nn.Parameter(torch.randn(V, D))

    def forward(self, x):
        h = self.table[x]
        turned = self.w.t()
        h = torch.tanh(h @ self.w) @ self.w + h @ turned + torch.sin(h) @ turned
        return (h @ (self.a + self.b) @ self.table.t()).flatten(1)


class Filters(nn.Module):
    """A convolution, a recurrent layer and a bilinear form."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, 5)
        self.conv = nn.Conv1d(5, 30, 3, padding=1)
        self.rnn = nn.LSTM(30, 20, batch_first=True)
        self.bilinear = nn.Bilinear(20, 20, 4)

    def forward(self, x):
        h = self.conv(self.embed(x).mT).mT
        h, _ = self.rnn(h)
        return self.bilinear(h[:, -1], h[:, 0])


class Itself(nn.Module):
    """Outputs that are a parameter in another shape, and one that nothing else reads."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 5))

    def forward(self, x):
        return self.w.view(-1).view(2, 5)


MODELS = {
    "tied": Language,
    "padding": lambda: Language(padding=1),
    "sparse": lambda: Language(sparse=True, tied=False),
    "own head": lambda: Language(tied=False),
    "direct": Direct,
    "filters": Filters,
    "itself": Itself,
}
READ_LATE = {  # some leaves whose gradients are made when they are read
    "tied": {"head", "up.weight", "down.weight"},
    "padding": {"head", "up.weight", "down.weight"},
    "sparse": {"words.weight", "up.weight", "down.weight", "head"},
    "own head": {"words.weight", "up.weight", "down.weight", "head"},
}


def made(name):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    x = torch.randint(V, TOKENS)
    x[0, :2] = 1
    params = dict(model.named_parameters())
    return model, x, list(params), list(params.values())


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_blocks_are_those_of_a_plain_pass(name, backwards):
    model, x, names, leaves = made(name)
    out = model(x)
    pull = Pullback(out, leaves)
    if name in READ_LATE:
        assert {names[i] for i in pull._lazy} >= READ_LATE[name]
        assert pull.kept < pull.total
    for seed in (1, 2):
        u = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).double()
        given = u.clone()
        right = torch.autograd.grad(out, leaves, u, retain_graph=True, allow_unused=True)
        blocks = pull(u.reshape(-1))
        found = {}
        for i in list(range(len(leaves)))[:: -1 if backwards else 1]:
            found[i] = blocks[i]
        for i, r in enumerate(right):
            assert (found[i] is None) == (r is None), names[i]
            if r is not None:
                dense = r.to_dense() if r.is_sparse else r
                torch.testing.assert_close(found[i], dense, rtol=1e-13, atol=1e-13)
        assert not blocks._kept
        torch.testing.assert_close(u, given, rtol=0, atol=0)
        with pytest.raises(IndexError):
            blocks[0]
        filled = [
            torch.zeros_like(p) if r is None else r for p, r in zip(leaves, right, strict=True)
        ]
        flat = torch.cat([(r.to_dense() if r.is_sparse else r).reshape(-1) for r in filled])
        both = pull.columns(torch.stack([u.reshape(-1), 2 * u.reshape(-1)], 1))
        torch.testing.assert_close(both, torch.stack([flat, 2 * flat], 1), rtol=1e-13, atol=1e-13)


def test_the_gradient_that_flows_into_the_outputs_is_kept_for_nothing():
    model, x, _, leaves = made("own head")
    out = model(x)
    pull = Pullback(out, leaves)
    u = torch.randn(out.numel(), dtype=torch.float64)
    blocks = pull(u)
    owned = [g for g in blocks._kept.values() if g.data_ptr() != u.data_ptr()]
    kept = sum(
        g.numel() * 8 for g in (*owned, *(m for m in blocks._made.values() if m is not None))
    )
    assert kept <= pull.kept < pull.total
    assert len(owned) < len(blocks._kept)  # the head's is u itself


def test_a_pass_serves_all_blocks_of_one_u():
    model, x, _, leaves = made("tied")
    out, passes = model(x), []
    pull = Pullback(out, leaves)
    last = OfLast(lambda u: (passes.append(1), pull(u))[1])
    u = torch.randn(out.numel(), 1, dtype=torch.float64)
    first = last(u, [0, 1])
    last(u, [2])
    assert len(passes) == 1
    torch.testing.assert_close(last(u, [0])[0], first[0])  # asked for again
    last(u.clone(), [3])
    assert len(passes) == 3


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("name", ["tied", "own head", "padding"])
def test_products_of_large_models_take_them(monkeypatch, name, columns):
    model, x, _, _ = made(name)
    x = x.repeat(2, 1)[:3]
    whole = cx.NTK(model, x, engine="autograd")
    u = torch.randn(whole.shape[0], columns, dtype=torch.float64)
    exact, jacobian = whole @ u, cx.Jacobian(model, x, engine="autograd").T @ u
    monkeypatch.setattr(autograd, "_WHOLE", 0)
    monkeypatch.setattr(transpose_proof, "_TOGETHER", 0)
    proven, plain = [], autograd.mismatch
    monkeypatch.setattr(
        autograd, "mismatch", lambda s, n, *a: (proven.append((n, a[-1])), plain(s, n, *a))[1]
    )
    fresh = made(name)[0]
    large = cx.NTK(fresh, x, engine="autograd")
    torch.testing.assert_close(large @ u, exact, rtol=1e-12, atol=1e-12)
    assert large.linearization._pullback is not None
    assert large.linearization._program is not None
    assert proven == [(2 * whole.shape[0] // 3, True)]  # on two samples, once
    back = cx.Jacobian(fresh, x, engine="autograd").T
    torch.testing.assert_close(back @ u, jacobian, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["words.weight", "up.bias", "head"])
def test_one_pass_names_the_wrong_blocks(monkeypatch, name):
    monkeypatch.setattr(transpose_proof, "_TOGETHER", 0)
    model, x, _, _ = made("own head")
    line = cx.NTK(model, x, engine="autograd").linearization
    program, position = line._program, line.snapshot.names.index(name)
    products = []

    def product(blocks, factor):
        products.append(1)
        out = program(blocks, graph=True)
        return out + factor * blocks[position].sum()

    pulled = OfLast(Pullback(line._graph, line._leaves))
    for factor, why in ((1e-3, f"wrong or missing derivatives by {name}"), (0.0, "")):
        products.clear()
        found = transpose_proof.mismatch(
            line.snapshot, line.rows, lambda t, f=factor: product(t, f), pulled, True, True
        )
        assert found == why
        assert len(products) == 1
