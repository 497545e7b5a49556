"""Eight small architectures, with torch's initialisation or in NTK parameterisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import benchmarks.installed_first  # noqa: F401
import catapult_ext as cx
from benchmarks.largest_rates.nets import Residual

SAMPLES = 32
WIDTH, CHANNELS, EMBEDDED = 32, 8, 16
GAIN = 2**0.5  # sigma_w of the NTK parameterisation
INITIALISATIONS = ("default", "ntk")


def dense(init: str, d: int, p: int) -> nn.Module:
    """A layer with bias."""
    if init == "default":
        return nn.Linear(d, p)
    return cx.models.NTKLinear(d, p, sigma_w=GAIN, sigma_b=0.1)


def convolution(init: str, c: int, k: int, size: int, stride: int = 1) -> nn.Module:
    """A layer with bias; odd sizes keep the image's."""
    padding = size // 2 if size % 2 else 0
    if init == "default":
        return nn.Conv2d(c, k, size, stride=stride, padding=padding)
    return cx.models.NTKConv2d(
        c, k, size, sigma_w=GAIN, sigma_b=0.1, padding=padding, stride=stride
    )


class ViT(nn.Module):
    """One block, norm first, on the 16 patches of an 8 x 8 image."""

    def __init__(self, init: str) -> None:
        super().__init__()
        self.patches = convolution(init, 1, EMBEDDED, 2, stride=2)
        self.place = nn.Parameter(0.02 * torch.randn(16, EMBEDDED))
        self.norm1, self.norm2 = nn.LayerNorm(EMBEDDED), nn.LayerNorm(EMBEDDED)
        self.qkv, self.out = dense(init, EMBEDDED, 3 * EMBEDDED), dense(init, EMBEDDED, EMBEDDED)
        self.mlp = nn.Sequential(
            dense(init, EMBEDDED, 2 * EMBEDDED), nn.GELU(), dense(init, 2 * EMBEDDED, EMBEDDED)
        )
        self.norm, self.head = nn.LayerNorm(EMBEDDED), dense(init, EMBEDDED, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images as rows (N, 64)."""
        h = self.patches(x.unflatten(1, (1, 8, 8))).flatten(2).transpose(1, 2) + self.place
        q, k, v = self.qkv(self.norm1(h)).chunk(3, dim=-1)
        h = h + self.out(F.softmax(q @ k.transpose(1, 2) / EMBEDDED**0.5, dim=-1) @ v)
        h = h + self.mlp(self.norm2(h))
        return self.head(self.norm(h.mean(dim=1)))


def mlp(init: str, activation: Callable[[], nn.Module], norm: bool = False) -> nn.Module:
    """64-32x3-10."""
    layers: list[nn.Module] = []
    for d in (64, WIDTH, WIDTH):
        layers.append(dense(init, d, WIDTH))
        layers += [nn.LayerNorm(WIDTH)] if norm else []
        layers.append(activation())
    return nn.Sequential(*layers, dense(init, WIDTH, 10))


def cnn(init: str, norm: bool = False) -> nn.Module:
    """Two 3 x 3 convolutions of 8 channels."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for c in (1, CHANNELS):
        layers.append(convolution(init, c, CHANNELS, 3))
        layers += [nn.BatchNorm2d(CHANNELS)] if norm else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), dense(init, 16 * CHANNELS, 10))


def residual(init: str) -> nn.Module:
    """64-32, two residual branches of two layers, 10; no norm."""
    branches = [
        Residual(dense(init, WIDTH, WIDTH), nn.ReLU(), dense(init, WIDTH, WIDTH)) for _ in range(2)
    ]
    return nn.Sequential(dense(init, 64, WIDTH), *branches, nn.ReLU(), dense(init, WIDTH, 10))


ARCHITECTURES: dict[str, Callable[[str], nn.Module]] = {
    "tanh-mlp": lambda init: mlp(init, nn.Tanh),
    "relu-mlp": lambda init: mlp(init, nn.ReLU),
    "gelu-mlp": lambda init: mlp(init, nn.GELU),
    "ln-mlp": lambda init: mlp(init, nn.ReLU, norm=True),
    "residual-mlp": residual,
    "cnn": cnn,
    "bn-cnn": lambda init: cnn(init, norm=True),
    "vit": ViT,
}


def make(architecture: str, init: str, seed: int) -> nn.Module:
    """A net at its start; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[architecture](init)


def digits(loss: str) -> tuple[Tensor, Tensor]:
    """The batch: one-hot targets for the squared loss, labels for cross entropy."""
    x, y = cx.data.digits(train=SAMPLES).train
    return x.flatten(1), y if loss == "half_mse" else y.argmax(dim=1)
