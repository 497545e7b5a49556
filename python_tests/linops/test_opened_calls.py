"""Kernels of attention and recurrent layers by rules, against Jacobians by torch.func."""

import pytest
import torch
from torch import nn

import catapult_ext as cx

N, STEPS, WIDTH = 3, 4, 6


class Attention(nn.Module):
    """Self-attention or cross-attention, with masks; samples first or second."""

    def __init__(self, *, first=True, cross=False, masks=False, weights=False, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=first, **options)
        self.into, self.out = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 2)
        self.first, self.cross = first, cross
        self.masks, self.weights = masks, weights

    def forward(self, x):
        q = torch.tanh(self.into(x))
        keys = q[:, 1:] if self.cross else q
        m = keys.shape[1]
        given = {"need_weights": self.weights}
        if self.masks:
            given["key_padding_mask"] = (
                torch.arange(m)[None] >= m - (x[:, 0, 0] > 0).long()[:, None]
            )
            given["attn_mask"] = torch.ones(x.shape[1], m).triu(1).bool()
        if not self.first:
            q, keys = q.transpose(0, 1), keys.transpose(0, 1)
        k = q if keys is q or not self.cross else keys
        h, w = self.attention(q, k, k, **given)
        h = h if self.first else h.transpose(0, 1)
        h = self.out(torch.tanh(h)).sum(1)
        return h if w is None else h + w.square().sum((1, 2))[:, None]


class Recurrent(nn.Module):
    def __init__(self, kind, *, ends=False, start=False, **options):
        super().__init__()
        self.cell = kind(5, 4, **options)
        ways = 1 + self.cell.bidirectional
        self.shape = self.cell.num_layers * ways, 4
        self.out = nn.Linear(4 if ends else 4 * ways, 2)
        self.ends, self.start = ends, start

    def forward(self, x):
        n, state = len(x), None
        x = x if self.cell.batch_first else x.transpose(0, 1)
        if self.start:
            h = x.new_ones(self.shape[0], n, self.shape[1]) / 2
            state = (h, 2 * h) if isinstance(self.cell, nn.LSTM) else h
        out, last = self.cell(x, state)
        if self.ends:
            last = torch.cat(last) if isinstance(last, tuple) else last
            return self.out(torch.tanh(last).sum(0))
        out = out if self.cell.batch_first else out.transpose(0, 1)
        return self.out(out).square().sum(1)


def encoder(first):
    """A layer of a transformer, whose own layers see steps and samples too."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.out = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 2)
            self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=first)

        def forward(self, x):
            h = self.into(x)
            h = self.layer(h) if first else self.layer(h.transpose(0, 1)).transpose(0, 1)
            return self.out(h).sum(1)

    return Encoder()


MODELS = {
    "attention": lambda: Attention(),
    "attention, no bias": lambda: Attention(bias=False),
    "attention, samples second": lambda: Attention(first=False),
    "attention, masks": lambda: Attention(masks=True),
    "attention, masks and weights": lambda: Attention(masks=True, weights=True),
    "cross-attention": lambda: Attention(cross=True),
    "cross-attention, samples second": lambda: Attention(cross=True, first=False, masks=True),
    "attention of other widths": lambda: Attention(kdim=WIDTH, vdim=WIDTH, add_zero_attn=True),
    "encoder": lambda: encoder(True),
    "encoder, samples second": lambda: encoder(False),
    "lstm": lambda: Recurrent(nn.LSTM, batch_first=True),
    "lstm, samples second": lambda: Recurrent(nn.LSTM),
    "lstm, two layers": lambda: Recurrent(nn.LSTM, num_layers=2, batch_first=True, ends=True),
    "lstm, both ways": lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "lstm, no bias": lambda: Recurrent(nn.LSTM, bias=False, batch_first=True),
    "lstm, start": lambda: Recurrent(nn.LSTM, num_layers=2, start=True, ends=True),
    "gru": lambda: Recurrent(nn.GRU, batch_first=True),
    "gru, both ways": lambda: Recurrent(nn.GRU, num_layers=2, bidirectional=True, ends=True),
    "gru, no bias": lambda: Recurrent(nn.GRU, bias=False, start=True),
    "rnn": lambda: Recurrent(nn.RNN, num_layers=2, batch_first=True),
    "rnn, relu": lambda: Recurrent(nn.RNN, nonlinearity="relu", bidirectional=True),
}


def jacobian(model, x):
    """J (N*O, P) by torch.func, sample by sample."""
    params = {k: p.detach() for k, p in model.named_parameters()}

    def one(p):
        return torch.func.functional_call(model, p, (x,))

    found = torch.func.jacrev(one)(params)
    return torch.cat([j.reshape(len(x) * 2, -1) for j in found.values()], 1)


def prepared(make):
    torch.manual_seed(0)
    return make().double().eval(), torch.randn(N, STEPS, 5, dtype=torch.float64)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_kernels_by_rules(make):
    model, x = prepared(make)
    j = jacobian(model, x)
    exact = j @ j.T
    kernel = cx.NTK(model, x)
    assert kernel.linearization.structured() is not None
    scale = exact.abs().max()
    assert (kernel.dense() - exact).abs().max() <= 1e-10 * scale
    trace = exact.view(N, 2, N, 2).diagonal(dim1=1, dim2=3).sum(-1)
    assert (kernel.dense(outputs="trace") - trace).abs().max() <= 1e-10 * scale
    assert (kernel.diagonal() - exact.diagonal()).abs().max() <= 1e-10 * scale
    assert (kernel.linearization.jacobian() - j).abs().max() <= 1e-10 * j.abs().max()
    parts = cx.NTK(model, x, samples_at_once=2)
    assert (parts.dense() - exact).abs().max() <= 1e-10 * scale
    cross = cx.NTK(model, x[:2], x)
    assert (cross.dense() - exact[:4]).abs().max() <= 1e-10 * scale
    assert cx.NTK(model.float(), x.float()).linearization.structured() is not None


def test_as_many_steps_as_samples():
    """Which dimension the samples are cannot be read off the sizes."""
    for name in ("attention, samples second", "lstm, samples second", "gru"):
        model, x = prepared(MODELS[name])
        x = torch.cat([x, x[:1].flip(1)])
        assert len(x) == x.shape[1]
        j = jacobian(model, x)
        kernel = cx.NTK(model, x)
        assert kernel.linearization.structured() is not None
        assert torch.allclose(kernel.dense(), j @ j.T, rtol=1e-10)


class Across(nn.Module):
    """Attention between samples, and a recurrent layer that runs along them."""

    def __init__(self, recurrent):
        super().__init__()
        kind = nn.GRU(5, 5) if recurrent else nn.MultiheadAttention(5, 1)
        self.mix, self.out, self.recurrent = kind, nn.Linear(5, 2), recurrent

    def forward(self, x):
        h = self.mix(x)[0] if self.recurrent else self.mix(x, x, x)[0]
        return self.out(h).sum(1)


@pytest.mark.parametrize("recurrent", [True, False])
def test_samples_that_see_each_other_are_left_to_products(recurrent):
    torch.manual_seed(0)
    model, x = Across(recurrent).double(), torch.randn(3, 3, 5, dtype=torch.float64)
    kernel = cx.NTK(model, x)
    assert kernel.linearization.structured() is None
    j = jacobian(model, x)
    assert torch.allclose(kernel.dense(), j @ j.T, rtol=1e-9)


REFUSED = {
    "projection": lambda: Projected(),
    "key bias": lambda: Attention(add_bias_kv=True),
    "trained start": lambda: TrainedStart(),
}


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.LSTM(5, 6, proj_size=4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.cell(x)[0][:, -1])


class TrainedStart(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRU(5, 4, batch_first=True), nn.Linear(4, 2)
        self.start = nn.Parameter(torch.ones(1, 1, 4))

    def forward(self, x):
        return self.out(self.cell(x, self.start.repeat(1, len(x), 1))[0][:, -1])


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_rule_knows_is_left_to_products(name):
    model, x = prepared(REFUSED[name])
    kernel = cx.NTK(model, x)
    assert kernel.linearization.structured() is None
    j = jacobian(model, x)
    assert torch.allclose(kernel.dense(), j @ j.T, rtol=1e-9)


def test_a_wrong_cell_is_found_out(monkeypatch):
    """Values or gradients that are not torch's leave the kernel to products."""
    from catapult_ext.linops.tracing import opened_calls

    right = opened_calls._CELLS["gru"]
    wrong = {
        "another value": lambda x, h, state: (1.001 * right(x, h, state)[0], None),
        "another gradient": lambda x, h, state: (_half(right(x, h, state)[0]), None),
    }

    def _half(out):
        return out.detach() + (out - out.detach()) / 2

    for cell in wrong.values():
        model, x = prepared(MODELS["gru"])
        monkeypatch.setitem(opened_calls._CELLS, "gru", cell)
        kernel = cx.NTK(model, x)
        assert kernel.linearization.structured() is None
        j = jacobian(model, x)
        assert torch.allclose(kernel.dense(), j @ j.T, rtol=1e-9)
