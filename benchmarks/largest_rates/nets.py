"""Twelve nets, their data, losses and optimizers: on them the advice about rates is judged.

The list was fixed before the rule that `learning_rate_window` follows. A rate *trains* if after
``STEPS`` steps from the start the loss is finite and below its start, and no layer is dead (more
than 95 % of the pre-activations of a one-sided activation are <= 0).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import benchmarks.installed_first  # noqa: F401
import catapult_ext as cx

STEPS = 200
SAMPLES = 128


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return x + self.branch(x)


class Block(nn.Module):
    """A transformer block, norm first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def attend(self, x: Tensor, causal: bool) -> Tensor:
        """Self-attention, (N, T, width) to the same."""
        n, t, width = x.shape
        q, k, v = (
            part.view(n, t, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out(mixed.transpose(1, 2).reshape(n, t, width))

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """(N, T, width), kept."""
        x = x + self.attend(self.norm1(x), causal)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Two blocks of width 32 on tokens (N, T); logits (N, T, V)."""

    def __init__(self, tokens: int = 17, length: int = 32, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T) to (N, T, V)."""
        h = self.embed(x) + self.place
        for block in self.blocks:
            h = block(h, causal=True)
        return self.head(self.norm(h))


class ViT(nn.Module):
    """Two blocks of width 32 on the 16 patches of an 8 x 8 image (N, 1, 8, 8)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.place = nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) to (N, 10)."""
        h = self.patches(x).flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            h = block(h, causal=False)
        return self.head(self.norm(h.mean(dim=1)))


def default_mlp(activation: Callable[[], nn.Module]) -> nn.Module:
    """64-256x3-10 of torch's layers as torch initialises them."""
    sizes = [64, 256, 256, 256]
    layers: list[nn.Module] = []
    for d, p in itertools.pairwise(sizes):
        layers += [nn.Linear(d, p), activation()]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def ntk_mlp(activation: str, seed: int) -> nn.Module:
    """64-256x3-10 in NTK parameterisation."""
    return cx.models.fully_connected(64, 10, width=256, activation_name=activation, seed=seed)


def default_cnn(norm: bool) -> nn.Module:
    """Two 3 x 3 convolutions of 16 channels, with or without batch norm."""
    layers: list[nn.Module] = []
    for channels in (1, 16):
        layers.append(nn.Conv2d(channels, 16, 3, padding=1))
        layers += [nn.BatchNorm2d(16)] if norm else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 10))


def normed_mlp() -> nn.Module:
    """64-128x3-10 with layer norm before every activation."""
    layers: list[nn.Module] = []
    for d in (64, 128, 128):
        layers += [nn.Linear(d, 128), nn.LayerNorm(128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 10))


def residual_mlp() -> nn.Module:
    """64-128, three residual branches of two layers, 10; no norm."""
    branches = [Residual(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128)) for _ in range(3)]
    return nn.Sequential(nn.Linear(64, 128), *branches, nn.ReLU(), nn.Linear(128, 10))


def images(loss: str | nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Digits: one-hot targets for the squared loss, labels for cross entropy."""
    x, y = cx.data.digits(train=SAMPLES).train
    return x.view(-1, *shape), y if loss == "half_mse" else y.argmax(dim=1)


def sequences() -> tuple[Tensor, Tensor]:
    """The grey values (17) along the first 33 pixels of each digit, 32 digits; next-token."""
    x, _ = cx.data.digits(train=32).train
    ranks = torch.unique(x, return_inverse=True)[1]
    tokens = (ranks * 17) // (int(ranks.max()) + 1)
    return tokens[:, 16:48], tokens[:, 17:49]


@dataclass(frozen=True)
class Net:
    """One of the twelve.

    Attributes:
        model: makes it, given a seed (torch's generator is seeded as well).
        loss: a name that ``losses.resolve`` knows, or torch's module.
        optimizer: SGD, momentum (0.9) or Adam.
        shape: of one input; None for sequences.
    """

    model: Callable[[int], nn.Module]
    loss: str | nn.Module
    optimizer: str
    shape: tuple[int, ...] | None = (64,)

    def build(self, seed: int) -> nn.Module:
        """The model at its start."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.model(seed)

    def data(self) -> tuple[Tensor, Tensor]:
        """The full batch."""
        return sequences() if self.shape is None else images(self.loss, self.shape)

    def steps(self, model: nn.Module, rate: float) -> torch.optim.Optimizer:
        """The optimizer at ``rate``."""
        make: dict[str, Any] = {
            "SGD": lambda w: torch.optim.SGD(w, lr=rate),
            "momentum": lambda w: torch.optim.SGD(w, lr=rate, momentum=0.9),
            "Adam": lambda w: torch.optim.Adam(w, lr=rate),
        }
        return make[self.optimizer](model.parameters())


IMAGE = (1, 8, 8)
CE, MSE = "cross_entropy", "half_mse"
NETS = {
    "relu-mlp-default": Net(lambda _: default_mlp(nn.ReLU), CE, "SGD"),
    "gelu-mlp-default": Net(lambda _: default_mlp(nn.GELU), CE, "momentum"),
    "tanh-mlp-default": Net(lambda _: default_mlp(nn.Tanh), MSE, "SGD"),
    "relu-mlp-ntk": Net(lambda s: ntk_mlp("relu", s), MSE, "momentum"),
    "gelu-mlp-ntk": Net(lambda s: ntk_mlp("gelu", s), CE, "SGD"),
    "tanh-cnn-ntk": Net(
        lambda s: cx.models.small_cnn(8, 10, channels=16, activation_name="tanh", seed=s),
        MSE,
        "SGD",
        IMAGE,
    ),
    "relu-cnn-default": Net(lambda _: default_cnn(norm=False), CE, "Adam", IMAGE),
    "bn-cnn-default": Net(lambda _: default_cnn(norm=True), CE, "momentum", IMAGE),
    "ln-mlp-default": Net(lambda _: normed_mlp(), MSE, "Adam"),
    "residual-mlp-default": Net(lambda _: residual_mlp(), CE, "SGD"),
    "vit": Net(lambda _: ViT(), CE, "Adam", IMAGE),
    "gpt": Net(lambda _: GPT(), CE, "momentum", None),
}
