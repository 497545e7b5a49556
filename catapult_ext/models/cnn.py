"""Convolutional networks without residual connections."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from catapult_ext import _validate as v
from catapult_ext.models.initialise import Parameterisation, check_init, initialise
from catapult_ext.models.layers import NTKConv2d, NTKLinear, activation


def small_cnn(
    image_size: int,
    out_features: int,
    *,
    in_channels: int = 1,
    channels: int = 32,
    activation_name: str | Callable[[], nn.Module] = "relu",
    parameterisation: Parameterisation = "ntk",
    init: str | None = None,
    sigma_w: float = math.sqrt(2.0),
    sigma_b: float = 0.0,
    bias: bool | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Conv 3x3 - activation - Conv 3x3 - activation - mean pool 2x2 - flatten - dense.

    Args:
        image_size: side S of the square images; inputs are (N, in_channels, S, S), S >= 2.
        out_features: outputs O; the model returns (N, O).
        in_channels: channels of the images.
        channels: number of channels of both convolutions.
        activation_name: as in ``models.fully_connected``, like all arguments below.
        parameterisation: ``"ntk"`` or ``"standard"``.
        init: named initialisation.
        sigma_w: NTK parameterisation only.
        sigma_b: NTK parameterisation only.
        bias: whether the layers have a bias.
        seed: seed of the initial values.
        dtype: dtype of the parameters.

    Raises:
        ValueError: for non-positive sizes or unknown names.

    Examples:
        >>> cx.models.small_cnn(8, 10, channels=4)(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    where = "models.small_cnn"
    v.require(image_size >= 2, where, "image_size must be >= 2", image_size)
    for name, value in (("out_features", out_features), ("channels", channels)):
        v.require(value > 0, where, f"{name} must be > 0", value)
    init = check_init(where, parameterisation, init)
    ntk = parameterisation == "ntk"

    def conv(c_in: int, c_out: int) -> nn.Module:
        if ntk:
            return NTKConv2d(c_in, c_out, 3, sigma_w, sigma_b, bias, padding=1)
        return nn.Conv2d(c_in, c_out, 3, padding=1, bias=bool(bias))

    features = channels * (image_size // 2) ** 2
    with torch.random.fork_rng(devices=[]):  # torch's layers draw values that are replaced below
        head = (
            NTKLinear(features, out_features, sigma_w, sigma_b, bias)
            if ntk
            else nn.Linear(features, out_features, bias=bool(bias))
        )
        model = nn.Sequential(
            conv(in_channels, channels),
            activation(activation_name),
            conv(channels, channels),
            activation(activation_name),
            nn.AvgPool2d(2),
            nn.Flatten(),
            head,
        )
    return initialise(model.float(), init, seed).to(dtype)


def paper_cnn(
    image_size: int,
    out_features: int,
    *,
    in_channels: int = 3,
    width: float = 1.0,
    activation_name: str | Callable[[], nn.Module] = "relu",
    parameterisation: Parameterisation = "standard",
    init: str | None = None,
    sigma_w: float = math.sqrt(2.0),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Conv 320 - Conv 320 - pool - Conv 320 - Conv 128 - pool - dense 256 - dense O.

    The layers of the paper's CNN are not in its main text; these are those of the authors' related
    work on L2, as remembered: a candidate, not a certainty. Convolutions are 3 x 3 with padding 1,
    pools are 2 x 2 maxima, every layer but the last is followed by the activation.

    Args:
        image_size: side S of the square images, a multiple of 4.
        out_features: outputs O; the model returns (N, O).
        in_channels: channels of the images.
        width: factor on all channel and unit counts; 1 as above.
        activation_name: as in ``models.fully_connected``, like all arguments below.
        parameterisation: ``"standard"`` (biases at 0) or ``"ntk"`` (no biases).
        init: named initialisation.
        sigma_w: NTK parameterisation only.
        seed: seed of the initial values.
        dtype: dtype of the parameters.

    Raises:
        ValueError: for sizes that do not fit or unknown names.

    Examples:
        >>> net = cx.models.paper_cnn(32, 10, width=0.05)
        >>> net(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    where = "models.paper_cnn"
    ok = image_size >= 4 and image_size % 4 == 0
    v.require(ok, where, "image_size must be a multiple of 4", image_size)
    v.require(out_features > 0, where, "out_features must be > 0", out_features)
    v.require(width > 0, where, "width must be > 0", width)
    init = check_init(where, parameterisation, init)
    ntk = parameterisation == "ntk"
    a, b, units = (max(1, round(n * width)) for n in (320, 128, 256))

    def conv(c_in: int, c_out: int) -> list[nn.Module]:
        layer: nn.Module = (
            NTKConv2d(c_in, c_out, 3, sigma_w, padding=1)
            if ntk
            else nn.Conv2d(c_in, c_out, 3, padding=1)
        )
        return [layer, activation(activation_name)]

    def dense(d: int, p: int) -> nn.Module:
        return NTKLinear(d, p, sigma_w) if ntk else nn.Linear(d, p)

    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(
            *conv(in_channels, a),
            *conv(a, a),
            nn.MaxPool2d(2),
            *conv(a, a),
            *conv(a, b),
            nn.MaxPool2d(2),
            nn.Flatten(),
            dense(b * (image_size // 4) ** 2, units),
            activation(activation_name),
            dense(units, out_features),
        )
    return initialise(model.float(), init, seed).to(dtype)
