"""Small float64 models, each with inputs, for comparison with brute force."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from catapult_ext.models import Abs, Erf, NTKLinear, resnet, small_cnn, wide_resnet
from catapult_ext.testing.attention import GPT, ViT


def chain(*activations, d=5, p=7, o=3, make=nn.Linear):
    layers, width = [], d
    for act in activations:
        layers += [make(width, p), act()]
        width = p
    return nn.Sequential(*layers, make(width, o))


class Functional(nn.Module):
    """A chain in forward(): in-place ReLU, a scaled layer, an output activation, a squeeze."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 4, bias=False), nn.Linear(4, 1)
        self.shift = nn.Parameter(torch.randn(4))

    def forward(self, x):
        x = F.relu(self.a(x - 0.1), inplace=True) * 1.5
        x = -0.5 * self.b(x) + 0.3 * self.shift
        return torch.tanh(self.c(F.softplus(x))).squeeze(-1)


class Statement(nn.Module):
    """In-place activation as a statement: not provably a chain, and must still be right."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = self.a(x)
        h.relu_()
        return self.b(h)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.b(x + torch.tanh(self.a(x)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.a(torch.tanh(self.a(x)))))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.never = nn.Linear(5, 4), nn.Linear(3, 3)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


class Counting(nn.Module):
    """Integer parameter, integer buffer, and a buffer that forward writes."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 3)
        self.kind = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        self.calls += 1
        h = self.a(x)
        self.mean.lerp_(h.detach().mean(0), 0.5)
        return torch.tanh(h) * self.kind[1]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        h = self.norm(self.block(self.embed(x)))
        return h[:, 0] @ self.embed.weight[:3].T  # tied with the input embedding


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 3)

    def forward(self, left, right):
        return torch.tanh(self.a(left)) * right


def frozen_parts():
    net = chain(nn.ReLU, nn.ReLU)
    net[0].weight.requires_grad_(False)
    net[2].bias.requires_grad_(False)
    return net


def first_frozen():
    net = chain(nn.Tanh, nn.ReLU)
    net[0].requires_grad_(False)
    return net


def conv():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 2, stride=2, dilation=1),
        nn.GroupNorm(1, 5),
        nn.GELU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(5, 3),
    )


def ntk_chain():
    return nn.Sequential(
        nn.Flatten(),
        NTKLinear(6, 8, 1.4, 0.2),
        nn.ReLU(),
        nn.Sequential(NTKLinear(8, 7, 1.1, 0.0), Erf(), nn.Dropout(0.3)),
        nn.Identity(),
        NTKLinear(7, 2, 1.0, 0.5),
    )


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell, self.out = kind(5, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.cell(x)[0][:, -1])


class Stepwise(nn.Module):
    """A cell called step by step, whose parameter uses no rule knows."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRUCell(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = x.new_zeros(len(x), 4)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return self.out(h)


def weight_norm_conv():
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(2, 3, 3)),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        parametrizations.weight_norm(nn.Linear(12, 3), dim=1),
    )


def conv_1d():
    return nn.Sequential(
        nn.Conv1d(4, 4, 3, stride=2, padding=2, dilation=2, groups=4),  # depthwise
        nn.Tanh(),
        nn.Conv1d(4, 6, 1),
        nn.Flatten(),
        nn.RMSNorm(24),
        nn.Linear(24, 2),
    )


def conv_3d():
    return nn.Sequential(
        nn.Conv3d(2, 3, 2, padding=1), nn.ReLU(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(24, 2)
    )


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 3, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.ReLU(inplace=True),
        nn.Linear(6, 3),
    )


SMOOTH = (nn.Tanh, nn.GELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.ELU, nn.SELU, nn.Mish, nn.CELU)
KINKED = (nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.ReLU6, nn.Hardswish, Abs, nn.Softsign)


def vectors(n=6, d=5):
    return torch.randn(n, d)


# name: (model, inputs, engine expected of engine=None)
ZOO = {
    "smooth": (lambda: chain(*SMOOTH), vectors, "dense-chain"),
    "kinked": (lambda: chain(*KINKED), vectors, "dense-chain"),
    "linear": (lambda: nn.Linear(5, 3), vectors, "dense-chain"),
    "deep_linear": (lambda: chain(nn.Identity, nn.Identity), vectors, "dense-chain"),
    "ntk_chain": (ntk_chain, lambda: torch.randn(6, 2, 3), "dense-chain"),
    "functional": (Functional, vectors, "dense-chain"),
    "unused": (Unused, vectors, "dense-chain"),
    "frozen_parts": (frozen_parts, vectors, "dense-chain"),
    "first_frozen": (first_frozen, vectors, "dense-chain"),
    "statement": (Statement, vectors, "autograd"),
    "residual": (Residual, vectors, "autograd"),
    "tied": (Tied, vectors, "autograd"),
    "reused": (Reused, vectors, "autograd"),
    "counting": (Counting, vectors, "autograd"),
    "prelu": (lambda: chain(nn.PReLU), vectors, "autograd"),
    "softmax": (lambda: chain(lambda: nn.Softmax(1)), vectors, "autograd"),
    "weight_norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4)), nn.Linear(4, 2)),
        vectors,
        "autograd",
    ),
    "weight_norm_conv": (weight_norm_conv, lambda: torch.randn(4, 2, 4, 4), "autograd"),
    "spectral_norm": (
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 4)), nn.Linear(4, 2)),
        vectors,
        "autograd",
    ),
    "scalar": (
        lambda: nn.Sequential(chain(nn.Tanh, o=1), nn.Flatten(0)),
        vectors,
        "dense-chain",
    ),
    "vit": (ViT, lambda: torch.randn(3, 3, 8, 8), "autograd"),
    "gpt": (GPT, lambda: torch.randint(7, (3, 5)), "autograd"),
    "conv": (conv, lambda: torch.randn(4, 2, 4, 4), "autograd"),
    "small_cnn": (
        lambda: small_cnn(8, out_features=3),
        lambda: torch.randn(4, 1, 8, 8),
        "autograd",
    ),
    "conv_1d": (conv_1d, lambda: torch.randn(5, 4, 7), "autograd"),
    "conv_3d": (conv_3d, lambda: torch.randn(4, 2, 3, 3, 3), "autograd"),
    "lenet": (lenet, lambda: torch.randn(4, 1, 8, 8), "autograd"),
    "resnet20": (lambda: resnet(20, 2), lambda: torch.randn(2, 3, 8, 8), "autograd"),
    "wrn_16_1": (lambda: wide_resnet(16, 1, 2), lambda: torch.randn(2, 3, 8, 8), "autograd"),
    "lstm": (lambda: Recurrent(nn.LSTM), lambda: torch.randn(4, 3, 5), "autograd"),
    "gru": (lambda: Recurrent(nn.GRU), lambda: torch.randn(4, 3, 5), "autograd"),
    "cell": (Stepwise, lambda: torch.randn(4, 3, 5), "autograd"),
    "attention": (Attention, lambda: torch.randint(0, 11, (4, 5)), "autograd"),
    "tuple": (TwoInputs, lambda: (torch.randn(6, 5), torch.randn(6, 3)), "autograd"),
    "mapping": (
        TwoInputs,
        lambda: {"right": torch.randn(6, 3), "left": torch.randn(6, 5)},
        "autograd",
    ),
}


def build(name, dtype=torch.float64):
    """Model in eval mode and inputs, the same every time."""
    torch.manual_seed(0)
    make, inputs, _ = ZOO[name]
    model = make().double().eval()
    for b in model.buffers():
        if b.is_floating_point():
            b.uniform_(0.5, 1.5)
    return model.to(dtype), cast(inputs(), dtype)


def cast(x, dtype):
    if isinstance(x, dict):
        return {k: cast(v, dtype) for k, v in x.items()}
    if isinstance(x, tuple):
        return tuple(cast(v, dtype) for v in x)
    return x.to(dtype) if x.is_floating_point() else x


def call(model, x):
    if isinstance(x, dict):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def jacobian(model, x):
    """Brute force: one backward pass per output of the plain model, (N*O, P)."""
    params = trainable(model)
    rows = []
    for out in call(model, x).reshape(-1):
        grads = torch.autograd.grad(out, params, retain_graph=True, allow_unused=True)
        flat = [
            torch.zeros(p.numel(), dtype=p.dtype) if g is None else g.reshape(-1)
            for g, p in zip(grads, params, strict=True)
        ]
        rows.append(torch.cat(flat))
    return torch.stack(rows)
