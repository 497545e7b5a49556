"""Samples that depend on each other where the first few do not show it: never taken in chunks."""

from typing import ClassVar

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.engines import by_samples


def random(*shape, seed=3):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Capacity(nn.Module):
    """Top-1 routing: an expert takes the first samples of a batch, the rest passes by."""

    def __init__(self, capacity=8):
        super().__init__()
        self.capacity, self.g, self.o = capacity, nn.Linear(3, 2), nn.Linear(3, 2)
        self.experts = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])

    def forward(self, x):
        weight, chosen = self.g(x).softmax(-1).max(-1)
        out = x.clone()
        for k, expert in enumerate(self.experts):
            rows = (chosen == k).nonzero()[:, 0][: self.capacity]
            out = out.index_add(0, rows, expert(x[rows]) * weight[rows, None])
        return self.o(torch.tanh(out))


class Ranked(nn.Module):
    """The sample with the largest score of all is scaled."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        best = torch.arange(len(x)) == x[:, 0].argmax()
        return self.o(h * (1 + best[:, None].to(h)))


class LateNorm(nn.Module):
    """Centred by the mean of the batch where the batch is long enough."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.o(h - h.mean(0) if len(x) > 16 else h)


def jacobian(model, x):
    params = list(model.parameters())
    rows = []
    for value in model(x).flatten():
        grads = torch.autograd.grad(value, params, retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


@pytest.mark.parametrize("make", [Capacity, Ranked, LateNorm])
def test_chunks_are_refused_and_the_whole_is_right(make):
    torch.manual_seed(0)
    model, x = make().double(), random(40, 3)
    x[:4] -= 1  # none of the first few samples shows it
    data = (x, torch.zeros(40, 2).double())
    text = r"do not depend on each other.*got outputs of \d+ of 40 samples that change"
    for call in (
        lambda: cx.GGN(model, "half_mse", data, samples_at_once=4),
        lambda: cx.Hessian(model, "half_mse", data, samples_at_once=4),
        lambda: cx.NTK(model, x, samples_at_once=4),
    ):
        with pytest.raises(ValueError, match=text):
            call()
    j = jacobian(model, x)
    exact = j.T @ j / 40
    got = cx.GGN(model, "half_mse", data) @ torch.eye(j.shape[1]).double()
    assert (got - exact).norm() <= 1e-9 * exact.norm()


@pytest.mark.parametrize("make", [Capacity, LateNorm])
def test_where_the_whole_does_not_fit_the_company_is_changed(make, monkeypatch):
    monkeypatch.setattr(by_samples, "room_of_samples", lambda snapshot, budget: 0.0)
    torch.manual_seed(0)
    model, x = make().double(), random(64, 3)
    x[:, 0] = torch.linspace(-3, 3, 64)  # neighbours take the same way
    size = 16 if make is Capacity else 32
    with pytest.raises(ValueError, match="do not depend on each other"):
        cx.NTK(model, x, samples_at_once=size)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    eye = torch.eye(10).double()
    whole = cx.NTK(plain, x[:5])
    for chunk in (1, 2):
        chunks = cx.NTK(plain, x[:5], samples_at_once=chunk)
        assert (chunks @ eye - whole @ eye).norm() <= 1e-12 * (whole @ eye).norm()


class Watched(nn.Module):
    """Keeps the number of samples of each pass without graph."""

    passes: ClassVar[list[int]] = []

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(64, 256), nn.Linear(256, 1)

    def forward(self, x):
        if not torch.is_grad_enabled():
            self.passes.append(len(x))
        return self.two(torch.tanh(torch.tanh(self.one(x)) * 2))


def test_the_passes_that_compare_chunks_keep_to_the_budget():
    torch.manual_seed(0)
    model, x = Watched(), torch.randn(16000, 64)
    Watched.passes.clear()
    budget = 30 << 20
    kernel = cx.NTK(model, x, memory_budget=budget, engine="autograd")
    chunk = kernel.plan.samples
    largest = max(Watched.passes)
    assert chunk < largest < 16000, (chunk, largest)  # more at once than in a chunk
    # the products of one layer, and the next one made of them
    assert 4 * largest * 2 * 256 + x.nbytes <= budget


def test_independent_samples_go_in_chunks():
    torch.manual_seed(0)
    model = Capacity(capacity=1000).double()
    x = random(40, 3)
    whole = cx.NTK(model, x) @ torch.eye(80).double()
    chunks = cx.NTK(model, x, samples_at_once=7) @ torch.eye(80).double()
    assert (chunks - whole).norm() <= 1e-12 * whole.norm()
