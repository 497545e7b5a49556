"""Uses of parameters read off the graph that freezing made, against one backward pass per row."""

import pytest
import torch
from linops import zoo
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.tracing import parameter_uses
from catapult_ext.linops.tracing.graph_uses import uses_in_graph
from catapult_ext.testing.tolerances import assert_close


def filters(**options):
    return nn.Sequential(nn.Conv2d(4, 6, 3, **options), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


class Tied(nn.Module):
    """One filter bank in two places, and a sum of branches."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        return self.last((x + self.conv(torch.tanh(self.conv(x)))).mean((2, 3)))


class Product(nn.Module):
    """A matrix that is no transpose."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.zeros(3))
        self.scale = scale

    def forward(self, x):
        return torch.addmm(self.b, torch.tanh(x.mean((2, 3))), self.w, alpha=self.scale)


class Scaled(nn.Module):
    """A parameter in a product of elements."""

    def __init__(self):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(4, 3, 3), nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.scale * self.conv(x).mean((2, 3))


class Start(nn.Module):
    """A learnt image for each sample is the data of a layer."""

    def __init__(self):
        super().__init__()
        self.image, self.conv = nn.Parameter(torch.randn(5, 4, 6, 6)), nn.Conv2d(4, 3, 3)

    def forward(self, x):
        return self.conv(self.image[: len(x)] if len(x) < 5 else self.image).mean((2, 3)) + x.mean()


class Made(nn.Module):
    """Filters made of parameters."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 4, 3, 3))

    def forward(self, x):
        return nn.functional.conv2d(x, torch.tanh(self.w)).mean((2, 3))


def normed():
    first = nn.BatchNorm2d(4)
    first.running_mean.normal_()
    first.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        first.weight.normal_()
    layers = (first, nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, bias=False), nn.GroupNorm(2, 6))
    return nn.Sequential(*layers, nn.SiLU(), nn.Flatten(), nn.LazyLinear(3, bias=False))


def partly_frozen():
    model = normed()
    model(torch.randn(2, 4, 6, 6))
    model[0].bias.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    return model


READ = {
    "stride and dilation": lambda: filters(stride=2, padding=(1, 0), dilation=(1, 2)),
    "groups": lambda: filters(groups=2),
    "padding by name": lambda: filters(padding="same"),
    "norms": normed,
    "frozen": partly_frozen,
    "tied": Tied,
    "plain matrix": Product,
    "wide resnet": lambda: cx.models.wide_resnet(16, 1, 3),
}
LEFT = {
    "elements": Scaled,
    "data made of parameters": Start,
    "filters made of parameters": Made,
    "scaled product": lambda: Product(2.0),
    "transposed": lambda: nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)
    ),
}


def built(make):
    torch.manual_seed(0)
    channels = 3 if make is READ["wide resnet"] else 4
    model, x = make().eval(), torch.randn(5, channels, 6, 6, dtype=torch.float64)
    model(x.float())
    return model.double(), x


@pytest.mark.parametrize("make", READ.values(), ids=READ)
def test_the_graph_of_the_frozen_pass_serves(make, monkeypatch):
    model, x = built(make)
    monkeypatch.setattr(parameter_uses, "UseTracer", lambda *a: pytest.fail("a second pass"))
    j = zoo.jacobian(model, x)
    for _ in range(2):  # proven, and by the proof of an earlier pass
        assert_close(cx.NTK(model, x).dense(), j @ j.T, tolerance=1e-12)
    assert_close(cx.Jacobian(model, x).dense(), j, tolerance=1e-12)
    assert_close(cx.NTK(model, x, x[:2]).dense(), (j @ j.T)[:, :6], tolerance=1e-12)


@pytest.mark.parametrize("make", LEFT.values(), ids=LEFT)
def test_what_the_graph_does_not_show_is_watched(make):
    model, x = built(make)
    assert uses_in_graph(model(x), list(model.parameters())) is None
    j = zoo.jacobian(model, x)
    assert_close(cx.NTK(model, x).dense(), j @ j.T, tolerance=1e-12)


def test_other_leaves_are_not_taken_for_parameters():
    model, x = built(READ["norms"])
    assert uses_in_graph(model(x), list(model.parameters())[1:]) is None


def test_a_saved_tensor_that_changed_is_noticed():
    x = torch.randn(4, 3, 5, 5)
    conv = nn.Conv2d(3, 2, 3)
    out = conv(x).mean((2, 3))
    x.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        uses_in_graph(out, list(conv.parameters()))
