"""Ten kinds of models written by hand: kernels, traces, diagonals, products against autograd."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

spec = importlib.util.spec_from_file_location(
    "dense_kernels", Path(__file__).with_name("test_dense_kernels.py")
)
kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)


class SqueezeExcite(nn.Module):
    """A residual block whose channels are scaled by a net of their means."""

    def __init__(self):
        super().__init__()
        self.first, self.conv = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.squeeze, self.excite = nn.Linear(4, 2), nn.Linear(2, 4)
        self.last = nn.Linear(4, 3)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        h = self.first(x)
        z = self.norm(self.conv(torch.relu(h)))
        gate = torch.sigmoid(self.excite(torch.relu_(self.squeeze(z.mean((2, 3))))))
        h = h + z * gate[:, :, None, None]
        return self.last(h.relu_().mean((2, 3)))


class ConvNeXt(nn.Module):
    """Depthwise convolution, layer norm with channels last, a scale of the layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(2, 4, 2, 2), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm = nn.LayerNorm(4)
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
        self.gamma, self.last = nn.Parameter(torch.randn(4)), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = self.gamma * self.down(nn.functional.gelu(self.up(h)))
        return self.last((x + h.permute(0, 3, 1, 2)).mean((2, 3)))


class UNet(nn.Module):
    """Down, up by a transposed convolution, a skip connection, group norm."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up, self.c = nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv2d(8, 1, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x):
        a = nn.functional.silu(self.norm(self.a(x)))
        b = torch.tanh(self.b(nn.functional.max_pool2d(a, 2)))
        return self.c(torch.cat([a, self.up(b)], 1)).flatten(1)


class Bert(nn.Module):
    """Biases everywhere, token types and positions from buffers, a mask of the keys."""

    def __init__(self, fill=-1e4):
        super().__init__()
        self.words, self.positions, self.types = (nn.Embedding(n, 8) for n in (11, 6, 2))
        self.register_buffer("ids", torch.arange(6).expand(1, -1))
        self.register_buffer("kinds", torch.zeros(1, 6, dtype=torch.long))
        self.norm, self.last = nn.LayerNorm(8), nn.Linear(8, 3)
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down, self.fill = nn.Linear(8, 12), nn.Linear(12, 8), fill

    def forward(self, words, mask):
        n, s = words.shape
        kinds = self.kinds[:, :s].expand(n, s)
        h = self.words(words) + self.positions(self.ids[:, :s]) + self.types(kinds)
        h = self.norm(h)
        q, k, v = (
            f(h).view(n, s, 2, 4).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-1, -2) / 2 + (1 - mask[:, None, None, :].to(h)) * self.fill
        h = h + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, s, 8))
        h = h + self.down(nn.functional.gelu(self.up(h)))
        return self.last(torch.tanh(h[:, 0]))


class Decoder(Bert):
    """A causal mask filled in place."""

    def forward(self, words, mask):
        h = self.words(words) + self.positions.weight[: words.shape[1]]
        q, k, v = self.query(h), self.key(h), self.value(h)
        scores = q @ k.transpose(1, 2)
        causal = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        scores.masked_fill_(causal, float("-inf"))
        h = h + self.out(scores.softmax(-1) @ v)
        return self.last((h * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True))


class Recurrent(nn.Module):
    """A recurrent layer of torch, and one cell by cell."""

    def __init__(self, kind):
        super().__init__()
        self.layer, self.cell = kind(3, 4, batch_first=True), nn.GRUCell(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        h = x.new_zeros(len(x), 4)
        for step in self.layer(x)[0].unbind(1):
            h = self.cell(step, h)
        return self.last(h)


class DeepSets(nn.Module):
    """Sums over a set; the elements are folded into the batch."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))
        self.outer = nn.Sequential(nn.Linear(4, 5), nn.PReLU(), nn.Linear(5, 2))

    def forward(self, x):
        n, s, d = x.shape
        return self.outer(self.inner(x.reshape(n * s, d)).view(n, s, 4).sum(1))


class LengthFirst(DeepSets):
    """The elements first, as recurrent nets of torch take them."""

    def forward(self, x):
        h = self.inner(x.transpose(0, 1).flatten(0, 1))
        return self.outer(h.view(x.shape[1], x.shape[0], 4).amax(0))


class FeatureMixer(nn.Module):
    """Low-rank and tied weights, einsum, a bilinear form."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2, 4))
        self.form, self.last = nn.Bilinear(4, 4, 4), nn.Linear(4, 2)
        self.tied = nn.Linear(4, 4)
        self.tied.bias = self.form.bias

    def forward(self, x):
        h = torch.einsum("nsd,dr,rw->nsw", x, self.a, self.b).mean(1)
        return self.last(torch.tanh(self.tied(self.form(h, torch.sin(h)))))


def words(n):
    mask = torch.ones(n, 6)
    mask[0, 4:] = 0
    return torch.randint(11, (n, 6)), mask


MODELS = {
    "squeeze and excite": (lambda: SqueezeExcite().eval(), lambda n: torch.randn(n, 2, 6, 6)),
    "ConvNeXt": (ConvNeXt, lambda n: torch.randn(n, 2, 6, 6)),
    "U-Net": (UNet, lambda n: torch.randn(n, 2, 4, 4)),
    "BERT": (Bert, words),
    "decoder": (Decoder, words),
    "GRU": (lambda: Recurrent(nn.GRU), lambda n: torch.randn(n, 4, 3)),
    "LSTM": (lambda: Recurrent(nn.LSTM), lambda n: torch.randn(n, 4, 3)),
    "deep sets": (DeepSets, lambda n: torch.randn(n, 4, 3)),
    "length first": (LengthFirst, lambda n: torch.randn(n, 4, 3)),
    "mixer": (FeatureMixer, lambda n: torch.randn(n, 4, 3)),
}


# by the uses of their parameters; the others by one graph a sample
STRUCTURED = {"squeeze and excite", "ConvNeXt", "BERT", "decoder", "deep sets"}


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("name", list(MODELS))
def test_models(name, n):
    """With as many samples as the sets have elements, where axes are easily taken for another."""
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    kernels.assert_right(make(), inputs(n), structured=None if n == 1 else name in STRUCTURED)
