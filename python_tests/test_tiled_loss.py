"""Cross entropy of many classes in tiles: torch's value, slope and second derivative."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import catapult_ext as cx
from catapult_ext.losses import factors, resolve, tiled

C, N = 11, 7
WEIGHTS = torch.linspace(0.5, 2, C, dtype=torch.float64)


def labels():
    torch.manual_seed(0)
    return torch.randint(C, (N,))


def soft():
    return torch.softmax(torch.randn(N, C, generator=torch.Generator().manual_seed(1)).double(), 1)


def ignoring():
    y = labels()
    y[2] = -100
    return y


def by_place():
    return torch.randint(C, (N, 3), generator=torch.Generator().manual_seed(2))


CASES = {
    "mean": (nn.CrossEntropyLoss(), labels, (N, C)),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), labels, (N, C)),
    "ignored": (nn.CrossEntropyLoss(), ignoring, (N, C)),
    "weights": (nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.2), ignoring, (N, C)),
    "soft": (nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1), soft, (N, C)),
    "classes first": (nn.CrossEntropyLoss(), by_place, (N, C, 3)),
    "classes last": (nn.CrossEntropyLoss(), by_place, (N, 3, C)),
}


@pytest.fixture(params=[1, 4 * C, 1000])
def tiles(monkeypatch, request):
    """Logits of any size in tiles of one row, four, or all."""
    monkeypatch.setattr(tiled, "LARGE", 1)
    monkeypatch.setattr(tiled, "TILE", request.param)
    monkeypatch.setattr(factors, "TILE", request.param)


def derivatives(value, f, u):
    """Value, slope, and second derivative times u."""
    (slope,) = torch.autograd.grad(value, f, create_graph=True)
    (second,) = torch.autograd.grad((slope * u).sum(), f)
    return value.detach(), slope.detach(), second


@pytest.mark.parametrize("outer", ["plain", "square"])
@pytest.mark.parametrize("name", CASES)
def test_two_derivatives_are_torchs(tiles, name, outer):
    module, targets, shape = CASES[name]
    module, y, loss = module.double(), targets(), resolve(module)
    seeded = torch.Generator().manual_seed(3)
    f, u = (torch.randn(shape, generator=seeded, dtype=torch.float64) for _ in range(2))
    f.mul_(5).requires_grad_()
    mine = loss(f, y)
    assert "_Value" in mine.grad_fn.name()
    theirs = module(f.movedim(-1, 1) if name == "classes last" else f, y)
    if outer == "square":  # the slope is multiplied by what depends on the logits as well
        mine, theirs = mine**2, theirs**2
    for one, other in zip(derivatives(mine, f, u), derivatives(theirs, f, u), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_torchs_own_serves_where_tiles_do_not(monkeypatch):
    monkeypatch.setattr(tiled, "LARGE", 1)
    f, y = torch.randn(N, C, dtype=torch.float64), labels()
    loss = resolve(nn.CrossEntropyLoss())
    plain = torch.func.jacfwd(torch.func.grad(lambda f: loss(f, y)))(f)
    torch.testing.assert_close(
        plain, torch.autograd.functional.hessian(lambda f: nn.functional.cross_entropy(f, y), f)
    )
    signed = WEIGHTS.clone()
    signed[:] = torch.where(torch.arange(C) == y[0], -0.1, signed)
    loss = resolve(nn.CrossEntropyLoss(weight=signed, reduction="sum"))
    value = loss(f.requires_grad_(), y)
    assert "_Value" not in value.grad_fn.name()
    monkeypatch.setattr(tiled, "LARGE", 1 << 22)
    assert "_Value" not in resolve(nn.CrossEntropyLoss())(f, y).grad_fn.name()


class Largest(TorchDispatchMode):
    """Counts results of at least ``size`` entries."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not func.is_view and out.numel() >= self.size:
            self.count += 1
        return out


@pytest.mark.parametrize("samples", [None, 3])
def test_hessians_make_fewer_tensors_of_the_size_of_the_logits(monkeypatch, samples):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(1), nn.Linear(8, C), nn.Tanh()).double()
    x, y = torch.randint(5, (N, 2)), labels()
    v = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    options = {} if samples is None else {"samples_at_once": samples}
    made, found = [], []
    for large in (1 << 22, 1):
        monkeypatch.setattr(tiled, "LARGE", large)
        monkeypatch.setattr(tiled, "TILE", 1)
        monkeypatch.setattr(factors, "TILE", 1)
        op = cx.Hessian(model, nn.CrossEntropyLoss(), (x, y), engine="autograd", **options)
        op @ v
        with Largest(N * C) as largest:
            found.append(op @ v)
        made.append(largest.count)
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-13)
    assert made[1] < made[0]
