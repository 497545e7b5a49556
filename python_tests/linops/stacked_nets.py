"""Several models of one architecture in float64, and their operators, batched and single."""

from itertools import pairwise

import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.models import resnet, small_cnn

RIGHT = 1e-12  # of the largest number of a result in float64


class Attention(nn.Module):
    """A small transformer: one block on tokens."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.block(self.embed(ids)).mean(1))


def mlp(*widths, act=nn.Tanh):
    layers = []
    for d, p in pairwise(widths):
        layers += [nn.Linear(d, p), act()]
    return nn.Sequential(*layers[:-1])


def rows(n):
    return torch.randn(n, 5, dtype=torch.float64)


def images(n):
    return torch.randn(n, 3, 8, 8, dtype=torch.float64)


def tokens(n):
    return torch.randint(7, (n, 4))


MODELS = {
    "chain": (lambda seed: mlp(5, 7, 6, 3, act=nn.ReLU), rows),
    "cnn": (lambda seed: small_cnn(8, 3, in_channels=3, channels=4, seed=seed), images),
    "resnet20": (lambda seed: resnet(20, 3, width=0.25, seed=seed), images),
    "transformer": (lambda seed: Attention(), tokens),
}


def build(name, replicas, n=3):
    """R models in eval mode, a batch of inputs for each, and the number of outputs."""
    torch.manual_seed(0)
    make, draw = MODELS[name]
    nets = [make(seed).double() for seed in range(replicas)]
    inputs = [draw(n) for _ in range(replicas)]
    with torch.no_grad():
        for model in nets[: replicas if name == "resnet20" else 0]:
            model(images(16))  # statistics of batch norms that differ
    return [model.eval() for model in nets], inputs, 3


def close(found, wanted, right=RIGHT):
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert ((found - wanted).abs() <= right * wanted.abs().max()).all()


def operators(kind, nets, inputs, o, shared, **options):
    """The batched operator, and the single ones."""
    if shared:
        inputs = inputs[:1] * len(inputs)
    n = len(inputs[0])
    labels = [torch.randint(o, (n,)) for _ in nets]
    targets = [torch.randn(n, o, dtype=torch.float64) for _ in nets]
    if kind == "ntk":
        data = inputs[0] if shared else inputs
        single = [cx.NTK(m, x, **options) for m, x in zip(nets, inputs, strict=True)]
        return cx.NTK(nets, data, **options), single
    make = {"ggn": cx.GGN, "ggn_mse": cx.GGN, "hessian": cx.Hessian}[kind]
    loss, ys = ("half_mse", targets) if kind == "ggn_mse" else ("cross_entropy", labels)
    batches = list(zip(inputs, ys[:1] * len(ys) if shared else ys, strict=True))
    single = [make(m, loss, batch, **options) for m, batch in zip(nets, batches, strict=True)]
    return make(nets, loss, batches[0] if shared else batches, **options), single


AT_ONCE = ["chain", "cnn", "resnet20", "transformer"]
KINDS = ["ntk", "ggn", "ggn_mse", "hessian"]


def operator_of(kind, nets, x, o):
    if kind == "ntk":
        return cx.NTK(nets, x)
    torch.manual_seed(5)
    labels, targets = torch.randint(o, (len(x),)), torch.randn(len(x), o, dtype=torch.float64)
    make = cx.Hessian if kind == "hessian" else cx.GGN
    if kind == "ggn_mse":
        return make(nets, "half_mse", (x, targets))
    return make(nets, "cross_entropy", (x, labels))
