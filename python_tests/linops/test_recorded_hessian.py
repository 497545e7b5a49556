"""Hessian products by a recorded gradient are those of double backward."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.engines.autograd_hessian import ReverseHVP
from catapult_ext.linops.engines.recorded_hessian import RecordedHVP
from catapult_ext.linops.model.memory_meter import Meter


class Images(nn.Module):
    """Convolutions of several kinds, batch norm by running statistics, a shortcut, pooling."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm, self.plain = nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.head = nn.Linear(4, 3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.act(self.norm(self.first(x)))
        h = h + self.plain(self.grouped(h))
        h = F.max_pool2d(h, 2) + F.avg_pool2d(h, 2)
        return self.head(F.silu(self.up(h)).mean((2, 3)))


class Words(nn.Module):
    """Attention, layer norms with and without weights, GELU, an embedding tied to the head."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 8, padding_idx=0)
        self.mix, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.one, self.two = nn.LayerNorm(8), nn.LayerNorm(8, elementwise_affine=False)
        self.wide, self.back = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, tokens):
        h = self.words(tokens)
        q, k, v = self.mix(self.one(h)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(seen.transpose(1, 2).flatten(2))
        h = h + self.back(F.gelu(self.wide(self.two(h))))
        return self.one(h) @ self.words.weight.T


class Curves(nn.Module):
    """Activations, each with a derivative of its own; ``act`` maps a tensor to one of its shape."""

    def __init__(self, act):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 5), nn.Linear(5, 3), act

    def forward(self, x):
        return self.b(self.act(self.a(x)) * torch.softmax(self.a(x), -1) + self.a(x))


class Held(nn.Module):
    """A saved result that the model itself takes as a constant: places in memory cannot tell."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.b(h * h.detach() + h)


def images():
    return torch.randn(5, 3, 6, 6, dtype=torch.float64), torch.randint(3, (5,))


def rows():
    return torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))


ACTS = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softplus": F.softplus,
    "elu": F.elu,
    "leaky": F.leaky_relu,
    "log of exp": lambda x: torch.log(1 + torch.exp(x)),
    "power": lambda x: x.pow(3),  # by torch's own formula
}
NETS = {"images": (Images, images)}
NETS |= {name: (lambda act=act: Curves(act), rows) for name, act in ACTS.items()}


def problem(name):
    torch.manual_seed(0)
    if name == "words":
        return Words().double(), (torch.randint(7, (4, 5)), torch.randint(7, (4, 5)))
    make, data = NETS[name]
    return make().double().eval(), data()


def agree(mine, right):
    assert (mine - right).norm() <= 1e-10 * right.norm()


@pytest.mark.parametrize("name", [*NETS, "words"])
def test_products_are_those_of_double_backward(name):
    model, data = problem(name)
    for layer in model.modules():  # so that running statistics are seen
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    mine = cx.Hessian(model, "cross_entropy", data)
    right = cx.Hessian(model, "cross_entropy", data, hvp="reverse")
    assert isinstance(mine._products, RecordedHVP)
    assert isinstance(right._products, ReverseHVP)
    v = torch.randn(mine.shape[0], 2, dtype=torch.float64)
    agree(mine @ v, right @ v)
    agree(mine.gradient, right.gradient)
    assert mine.value == right.value


@pytest.mark.parametrize("loss", ["half_mse", "bce"])
def test_other_losses(loss):
    model, (x, y) = problem("tanh")
    targets = F.one_hot(y, 3).double()
    mine = cx.Hessian(model, loss, (x, targets))
    assert isinstance(mine._products, RecordedHVP)
    v = torch.randn(mine.shape[0], 1, dtype=torch.float64)
    agree(mine @ v, cx.Hessian(model, loss, (x, targets), hvp="reverse") @ v)


def test_a_parameter_that_is_not_used_has_zero_rows():
    model, data = problem("tanh")
    model.spare = nn.Parameter(torch.ones(3, dtype=torch.float64))
    hessian = cx.Hessian(model, "cross_entropy", data)
    assert isinstance(hessian._products, RecordedHVP)
    product = hessian.by_name(hessian @ torch.ones(hessian.shape[0], 1, dtype=torch.float64))
    assert not product["spare"].any()


def test_what_cannot_be_told_goes_by_double_backward():
    torch.manual_seed(0)
    model, data = Held().double(), rows()
    mine = cx.Hessian(model, "cross_entropy", data)
    assert isinstance(mine._products, ReverseHVP)
    v = torch.randn(mine.shape[0], 1, dtype=torch.float64)
    agree(mine @ v, cx.Hessian(model, "cross_entropy", data, hvp="reverse") @ v)


def test_batch_statistics_that_couple_samples():
    torch.manual_seed(0)
    model, data = Images().double(), images()
    options = {"batch_stats": "coupled"}
    mine = cx.Hessian(model, "cross_entropy", data, **options)
    v = torch.randn(mine.shape[0], 1, dtype=torch.float64)
    agree(mine @ v, cx.Hessian(model, "cross_entropy", data, hvp="reverse", **options) @ v)


def test_freezing_keeps_what_products_need_alone():
    layers = [(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(8)]
    model = nn.Sequential(*[m for pair in layers for m in pair], nn.Flatten(), nn.Linear(400, 3))
    data = torch.randn(64, 4, 10, 10), torch.randint(3, (64,))
    cx.Hessian(model, "cross_entropy", data)  # makes the proofs
    with Meter() as meter:
        hessian = cx.Hessian(model, "cross_entropy", data)
    assert isinstance(hessian._products, RecordedHVP)
    assert meter.peak < 1.1 * meter.live  # gradients before a ReLU are not among it


def test_the_proof_is_made_once_for_a_model(monkeypatch):
    from catapult_ext.linops.engines import recorded_hessian

    model, data = problem("tanh")
    cx.Hessian(model, "cross_entropy", data)
    monkeypatch.setattr(recorded_hessian, "_proven_on_few", None)  # a call would raise
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.9)
    mine = cx.Hessian(model, "cross_entropy", data)
    v = torch.randn(mine.shape[0], 1, dtype=torch.float64)
    agree(mine @ v, cx.Hessian(model, "cross_entropy", data, hvp="reverse") @ v)
