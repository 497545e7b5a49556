"""Networks by name, as experiments and the command line ask for them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from catapult_ext import _validate as v
from catapult_ext.models.cnn import paper_cnn, small_cnn
from catapult_ext.models.dense import fully_connected
from catapult_ext.models.resnet import resnet, wide_resnet
from catapult_ext.models.transformers import char_gpt, small_vit

# The names that stand for families: d and k are numbers.
NAMES = ("fc", "small-cnn", "cnn", "wrn-d-k", "resnet-d", "gpt", "vit")
_OF_IMAGES: dict[str, Any] = {"small-cnn": small_cnn, "cnn": paper_cnn, "vit": small_vit}


def is_name(name: str) -> bool:
    """Whether :func:`build` knows a network of this name."""
    return name in ("fc", "gpt", *_OF_IMAGES) or bool(re.fullmatch(r"wrn-\d+-\d+|resnet-\d+", name))


def build(name: str, in_shape: Sequence[int], out_features: int, **settings: Any) -> nn.Module:
    """A network by name.

    Args:
        name: ``"fc"``, ``"small-cnn"``, ``"cnn"``, ``"wrn-28-10"`` (any ``wrn-d-k``),
            ``"resnet-20"`` (any ``resnet-d``), ``"gpt"`` or ``"vit"``.
        in_shape: shape of one sample: (D,) or (C, S, S); ``fc`` flattens an image, and ``gpt``
            takes (T,) characters.
        out_features: outputs O.
        **settings: arguments of the builder: ``models.fully_connected``, ``small_cnn``,
            ``paper_cnn``, ``wide_resnet``, ``resnet``, ``char_gpt``, ``small_vit``.

    Raises:
        TypeError: a setting the builder does not know.
        ValueError: an unknown name, or samples of a shape the network cannot take.

    Examples:
        >>> cx.models.build("fc", (64,), 10, width=32)(torch.randn(5, 64)).shape
        torch.Size([5, 10])
    """
    where = "models.build"
    if not isinstance(name, str):
        v.fail(where, "name must be a string", type(name).__name__, TypeError)
    v.listed(where, in_shape=in_shape)
    v.integers(where, out_features=out_features)
    v.integers(where, **{f"in_shape[{i}]": size for i, size in enumerate(in_shape)})
    wide = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    plain = re.fullmatch(r"resnet-(\d+)", name)
    if name == "fc":
        net = fully_connected(math.prod(in_shape), out_features, **settings)
        return net if len(in_shape) == 1 else nn.Sequential(nn.Flatten(), *net)
    if name == "gpt":
        v.require(len(in_shape) == 1, where, "gpt needs samples of shape (T,)", tuple(in_shape))
        return char_gpt(in_shape[0], out_features, **settings)
    if not is_name(name):
        v.fail(where, f"name must be one of {', '.join(NAMES)}", repr(name))
    ok = len(in_shape) == 3 and in_shape[1] == in_shape[2]
    v.require(ok, where, f"{name} needs samples of shape (C, S, S)", tuple(in_shape))
    channels, side = in_shape[0], in_shape[1]
    if wide:
        depth, width = int(wide[1]), int(wide[2])
        return wide_resnet(depth, width, out_features, in_channels=channels, **settings)
    if plain:
        return resnet(int(plain[1]), out_features, in_channels=channels, **settings)
    return _OF_IMAGES[name](side, out_features, in_channels=channels, **settings)
