"""Independence of samples read off a graph; proofs of parameter uses that serve later inputs."""

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.tracing.independence import samples_are_apart
from catapult_ext.linops.tracing.parameter_uses import Structured
from catapult_ext.models import wide_resnet
from catapult_ext.testing.attention import ViT


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 3)
    )


def norms():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.GroupNorm(2, 4),
        nn.SiLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(5),
        nn.LayerNorm(5),
        nn.GELU(),
        nn.Linear(5, 2),
    )


APART = {
    "wide resnet": lambda: wide_resnet(16, 1, 10),
    "cnn": lambda: cnn(),
    "norms": norms,
}


@pytest.mark.parametrize("make", APART.values(), ids=APART)
@pytest.mark.parametrize("n", [2, 4])
def test_common_image_models_are_apart(make, n):
    torch.manual_seed(0)
    model = make().eval()
    assert samples_are_apart(model(torch.randn(n, 3, 8, 8)))


def weight():
    torch.manual_seed(0)
    return torch.randn(4, 4, requires_grad=True)


X = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
MIXED = {
    "rolled": lambda: (X @ weight()).roll(1, 0),
    "sorted": lambda: (X @ weight())[torch.arange(4)],
    "transposed": lambda: (X @ weight()).T,
    "mean of the batch": lambda: (
        torch.tanh(X @ weight()) * torch.ones(4, 1) - (X @ weight()).mean(0)
    ),
    "mean of all": lambda: (X @ weight()) - (X @ weight()).mean(),
    "product over samples": lambda: torch.mm(torch.eye(4), X @ weight()),
    "products of samples": lambda: (X @ weight()) @ (X @ weight()),
    "mask by broadcasting": lambda: ((X @ weight()) * torch.eye(4)[:, :, None]).mean(1),
    "batch statistics": lambda: nn.BatchNorm1d(4)(X @ weight()),
    "norm over samples": lambda: nn.LayerNorm([4, 4])(X @ weight()),
    "rows regrouped": lambda: (X @ weight()).view(2, 8).view(4, 4),
    "bias of data": lambda: torch.addmm((X @ weight())[:1], X, weight()),
    "filters of data": lambda: nn.functional.conv1d(X[:, None], (X @ weight())[:, None, :1])[
        ..., 0
    ],
    "its own Function": lambda: Doubled.apply(X @ weight()),
}


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


@pytest.mark.parametrize("outputs", MIXED.values(), ids=MIXED)
def test_other_graphs_are_left_to_the_numerical_check(outputs):
    assert not samples_are_apart(outputs())


@pytest.fixture
def checks(monkeypatch):
    """Number of numerical checks, and whether the samples were known to be apart in each."""
    found = []
    plain = Structured._check

    def counted(self, apart):
        found.append(apart)
        return plain(self, apart)

    monkeypatch.setattr(Structured, "_check", counted)
    return found


def exact(model, x):
    leaves = list(model.parameters())
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(f, leaves, retain_graph=True)])
        for f in model(x).flatten()
    ]
    j = torch.stack(rows)
    return j @ j.T


def test_the_uses_of_an_image_model_are_proven_once(checks):
    torch.manual_seed(0)
    model = cnn().double().eval()
    for _ in range(3):
        x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
        assert torch.allclose(cx.NTK(model, x).dense(), exact(model, x), rtol=1e-10)
    assert checks == [True]
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)  # of other sizes again
    assert torch.allclose(cx.NTK(model, x).dense(), exact(model, x), rtol=1e-10)
    assert checks == [True, True]


def test_tiles_share_one_proof(checks):
    torch.manual_seed(0)
    model = cnn().double().eval()
    x = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    kernel = cx.NTK(model, x, samples_at_once=2)
    assert torch.allclose(kernel.dense(), exact(model, x), rtol=1e-10)
    count = len(checks)
    kernel.dense()
    assert len(checks) == count


class OtherWay(nn.Module):
    """Another branch, with a use that no call shows, for large inputs."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        h = torch.tanh(self.a(x)) * self.scale
        if x.abs().max() > 5:
            h = h + torch.outer(x[:, 0], self.scale)
        return self.b(h)


def test_a_branch_that_no_proof_has_seen_is_checked(checks):
    torch.manual_seed(0)
    model = OtherWay().double()
    for scale in (1, 10, 1, 10):
        x = scale * torch.ones(4, 3, dtype=torch.float64) * torch.rand(4, 1, dtype=torch.float64)
        assert torch.allclose(cx.NTK(model, x).dense(), exact(model, x), rtol=1e-9)
    assert checks[0]


def test_a_parameter_without_gradient_is_no_proof(checks):
    """An error by a parameter would not have shown where its gradient is zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        model[0].bias.fill_(-100)
    x = torch.randn(4, 1, 3, dtype=torch.float64)
    for _ in range(2):
        assert torch.allclose(cx.NTK(model, x).dense(), exact(model, x), rtol=1e-10)
    assert len(checks) == 2


class Cross(nn.Module):
    """Samples in another order for some inputs, by the same operations."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        order = torch.argsort(x[:, 0])
        h = torch.tanh(self.a(x[order]))
        return self.b(h)[torch.argsort(order)]


def test_samples_that_inputs_put_in_order_are_checked_for_all_inputs(checks):
    torch.manual_seed(0)
    model = Cross().double()
    drawn = torch.randn(4, 3, dtype=torch.float64)
    for x in (drawn[torch.argsort(drawn[:, 0])], drawn):
        assert torch.allclose(cx.NTK(model, x).dense(), exact(model, x), rtol=1e-10)
    assert checks[0] is False
    assert len(checks) > 1


def test_vit_is_not_read_off():
    torch.manual_seed(0)
    assert not samples_are_apart(ViT()(torch.randn(3, 3, 8, 8)))
