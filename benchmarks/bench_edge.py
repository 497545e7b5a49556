"""A training step with EdgeMeter against the same step without it, interleaved."""

import copy
import math

import pytest
import torch
from harness import Case
from torch import nn

import catapult_ext as cx


class Gpt(nn.Module):
    """Causal transformer: 4 blocks of width 128, pre-norm, no dropout."""

    def __init__(self, words=64, length=64, width=128, blocks=4):
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        block = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, blocks, enable_nested_tensor=False)
        self.head = nn.Linear(width, words)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, x):
        """Logits (N, T, words) of tokens (N, T)."""
        return self.head(self.blocks(self.words(x) + self.places, mask=self.mask, is_causal=True))


def mlp(quick):
    model = cx.models.fully_connected(784, 10, width=64 if quick else 512, depth=3)
    x, y = torch.randn(64 if quick else 512, 784), torch.randint(10, (64 if quick else 512,))
    return model, lambda m: nn.functional.cross_entropy(m(x), y)


def gpt(quick):
    model = Gpt(width=16, blocks=1) if quick else Gpt()
    x = torch.randint(64, (2 if quick else 16, 65))
    return model, lambda m: nn.functional.cross_entropy(m(x[:, :-1]).mT, x[:, 1:])


def resnet(quick):
    count = 4 if quick else 128
    x, y = torch.randn(count, 3, 16, 16), torch.randint(10, (count,))
    return cx.models.resnet(20, 10), lambda m: nn.functional.cross_entropy(m(x), y)


NETS = {"mlp": mlp, "gpt": gpt, "resnet20": resnet}
# mode: options of the meter, steps a call, and the share of a step that it may cost
MODES = {
    "full batch, every step": ({"full_batch": True}, 1, 0.05),
    "mini-batches, every 10th": ({"every": 10}, 10, 0.05),
    "zeta, chi, varsigma and tau, every 50th": (
        {"every": 50, "curvature_every": 50, "batch_sharpness": False},
        50,
        0.10,
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("net", NETS)
def test_edge_meter(measure, quick, net, mode):
    options, steps, share = MODES[mode]
    if net == "resnet20" and mode == "full batch, every step":
        share = 0.01
    torch.manual_seed(0)
    model, loss_of = NETS[net](quick)
    plain = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9) for m in (model, plain)]
    meter = cx.EdgeMeter(model, optimizers[0], **options)

    def train(of, optimizer, after=None):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_of(of)
            loss.backward()
            optimizer.step()
            value = loss.item()  # a loop that logs its loss
            if after is not None:
                after.step(value, evaluate=lambda: loss_of(of))

    def check():
        for _ in range(2):
            train(model, optimizers[0], meter)
            train(plain, optimizers[1])
        assert math.isfinite(meter.rows[0]["zeta"])
        pairs = zip(model.parameters(), plain.parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)

    measure(
        Case(
            ours=lambda: train(model, optimizers[0], meter),
            baselines={"without the meter": lambda: train(plain, optimizers[1])},
            check=check,
            unit=("steps", steps),
            target={"without the meter": 1 / (1 + share)},
        )
    )
