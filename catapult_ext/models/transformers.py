"""Small transformers: a language model of characters and a vision transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from catapult_ext import _validate as v
from catapult_ext.models.initialise import Parameterisation, check_init, initialise
from catapult_ext.models.layers import NTKLinear, activation, draw_

Dense = Callable[[int, int], nn.Module]
_Net = TypeVar("_Net", bound=nn.Module)


class Block(nn.Module):
    """Attention and two dense layers, each behind a LayerNorm and beside a residual connection."""

    def __init__(self, width: int, heads: int, causal: bool, act: nn.Module, dense: Dense) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.before_attention, self.before_layers = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.mixed = dense(width, 3 * width), dense(width, width)
        self.up, self.down, self.act = dense(width, 4 * width), dense(4 * width, width), act

    def forward(self, h: Tensor) -> Tensor:
        """(N, T, width), kept."""
        n, length, width = h.shape
        three = self.queries_keys_values(self.before_attention(h))
        q, k, v = three.view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        h = h + self.mixed(seen.transpose(1, 2).reshape(n, length, width))
        return h + self.down(self.act(self.up(self.before_layers(h))))


class CharGPT(nn.Module):
    """Characters (N, T), int64, to the logits (N, O) of the one that follows them."""

    def __init__(
        self, length: int, characters: int, width: int, blocks: list[Block], dense: Dense
    ) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(characters, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(width), dense(width, characters)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, O)."""
        places = torch.arange(x.shape[1], device=x.device)
        h = self.blocks(self.characters(x) + self.places(places))
        return self.head(self.norm(h)[:, -1])


class SmallViT(nn.Module):
    """Images (N, C, S, S) to outputs (N, O): patches as tokens, whose mean ends in the head."""

    def __init__(
        self,
        pixels: int,
        patch: int,
        places: int,
        width: int,
        blocks: list[Block],
        dense: Dense,
        outputs: int,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.patches, self.places = dense(pixels, width), nn.Embedding(places, width)
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(width), dense(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, O)."""
        n, channels, side, _ = x.shape
        p, across = self.patch, side // self.patch
        cut = x.reshape(n, channels, across, p, across, p).permute(0, 2, 4, 1, 3, 5)
        places = torch.arange(across * across, device=x.device)
        h = self.patches(cut.reshape(n, across * across, channels * p * p)) + self.places(places)
        return self.head(self.norm(self.blocks(h)).mean(dim=1))


def char_gpt(
    length: int,
    characters: int,
    *,
    width: int = 32,
    depth: int = 2,
    heads: int = 2,
    activation_name: str | Callable[[], nn.Module] = "gelu",
    parameterisation: Parameterisation = "standard",
    init: str | None = None,
    sigma_w: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> CharGPT:
    """A character-level GPT: ``depth`` blocks of causal attention, the loss at the last place.

    Args:
        length: characters T of an input; inputs are (N, T), int64 in [0, characters).
        characters: known ones, and outputs O: logits of the next character.
        width: of the residual stream, a multiple of ``heads``; the hidden layers have 4 times it.
        depth: blocks.
        heads: number of heads of the attention.
        activation_name: as in ``models.fully_connected``, like all arguments below.
        parameterisation: ``"standard"`` (biases at 0) or ``"ntk"`` (every dense layer in NTK
            parameterisation, no biases). LayerNorms start at weight 1 and bias 0, embeddings at
            N(0, 1) in both.
        init: named initialisation of the dense layers; default ``lecun`` or ``normal``.
        sigma_w: NTK parameterisation only.
        seed: seed of the initial values; torch's global generator is not touched.
        dtype: dtype of the parameters.

    Raises:
        ValueError: for sizes that do not fit or unknown names.

    Examples:
        >>> net = cx.models.char_gpt(8, 20)
        >>> net(torch.zeros(3, 8, dtype=torch.int64)).shape
        torch.Size([3, 20])
    """
    where = "models.char_gpt"
    v.integers(where, length=length, characters=characters)
    for name, value in (("length", length), ("characters", characters)):
        v.require(value > 0, where, f"{name} must be > 0", value)
    made = _Parts(where, width, depth, heads, activation_name, parameterisation, init, sigma_w)
    with torch.random.fork_rng(devices=[]):  # torch's layers draw values that are replaced below
        net = CharGPT(length, characters, width, made.blocks(causal=True), made.dense)
    return made.drawn(net, seed).to(dtype)


def small_vit(
    image_size: int,
    out_features: int,
    *,
    in_channels: int = 1,
    patch: int | None = None,
    width: int = 32,
    depth: int = 2,
    heads: int = 2,
    activation_name: str | Callable[[], nn.Module] = "gelu",
    parameterisation: Parameterisation = "standard",
    init: str | None = None,
    sigma_w: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> SmallViT:
    """A vision transformer: square patches as tokens, ``depth`` blocks, then the mean over tokens.

    Args:
        image_size: side S of the square images; inputs are (N, in_channels, S, S).
        out_features: outputs O; the model returns (N, O).
        in_channels: channels of the images.
        patch: side of a patch, a divisor of S; default S / 4, which gives 16 tokens.
        width: width of the residual stream, as in :func:`char_gpt`, like all arguments below.
        depth: number of blocks.
        heads: number of attention heads.
        activation_name: name or factory of the activation.
        parameterisation: ``"standard"`` or ``"ntk"``.
        init: named initialisation.
        sigma_w: scale of the weights, in NTK parameterisation only.
        seed: seed of the initial values.
        dtype: dtype of the parameters.

    Raises:
        ValueError: sizes that do not fit, or unknown names.

    Examples:
        >>> cx.models.small_vit(8, 10)(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 10])
    """
    where = "models.small_vit"
    v.integers(where, image_size=image_size, out_features=out_features, in_channels=in_channels)
    v.integers(where, patch=patch, optional=True)
    held = (
        ("image_size", image_size),
        ("out_features", out_features),
        ("in_channels", in_channels),
    )
    for name, value in held:
        v.require(value > 0, where, f"{name} must be > 0", value)
    patch = max(1, image_size // 4) if patch is None else patch
    fits = patch > 0 and image_size % patch == 0
    v.require(fits, where, f"patch must be a divisor of image_size {image_size}", patch)
    made = _Parts(where, width, depth, heads, activation_name, parameterisation, init, sigma_w)
    places, pixels = (image_size // patch) ** 2, in_channels * patch * patch
    with torch.random.fork_rng(devices=[]):
        blocks = made.blocks(causal=False)
        net = SmallViT(pixels, patch, places, width, blocks, made.dense, out_features)
    return made.drawn(net, seed).to(dtype)


class _Parts:
    """Layers of both transformers, in one parameterisation."""

    def __init__(
        self,
        where: str,
        width: int,
        depth: int,
        heads: int,
        act: str | Callable[[], nn.Module],
        parameterisation: str,
        init: str | None,
        sigma_w: float,
    ) -> None:
        v.integers(where, width=width, depth=depth, heads=heads)
        for name, value in (("width", width), ("heads", heads)):
            v.require(value > 0, where, f"{name} must be > 0", value)
        v.require(depth >= 0, where, "depth must be >= 0", depth)
        v.require(width % heads == 0, where, f"width must be a multiple of heads {heads}", width)
        self.ntk = parameterisation == "ntk"
        init = "lecun" if init is None and parameterisation == "standard" else init
        self.init = check_init(where, parameterisation, init)
        self.width, self.depth, self.heads = width, depth, heads
        self.act, self.sigma_w = act, sigma_w

    def dense(self, inputs: int, units: int) -> nn.Module:
        """A dense layer."""
        return NTKLinear(inputs, units, self.sigma_w) if self.ntk else nn.Linear(inputs, units)

    def blocks(self, causal: bool) -> list[Block]:
        """All blocks."""
        return [
            Block(self.width, self.heads, causal, activation(self.act), self.dense)
            for _ in range(self.depth)
        ]

    @torch.no_grad()
    def drawn(self, net: _Net, seed: int) -> _Net:
        """``net`` with its initial values: layers by the initialisation, embeddings N(0, 1)."""
        initialise(net.float(), self.init, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        for module in net.modules():
            if isinstance(module, nn.Embedding):
                draw_(module.weight, "normal_", generator=generator)
        return net
