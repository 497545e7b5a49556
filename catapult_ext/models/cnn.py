"""A small convolutional network for images such as the 8 x 8 digits."""

from __future__ import annotations

import math

import torch
from torch import nn

from catapult_ext._validate import require
from catapult_ext.models.initialise import check_init, initialise
from catapult_ext.models.layers import NTKConv2d, NTKLinear, activation


def small_cnn(
    image_size: int,
    out_features: int,
    *,
    in_channels: int = 1,
    channels: int = 32,
    activation_name: str = "relu",
    parameterisation: str = "ntk",
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
        in_channels: of the images.
        channels: of both convolutions.
        activation_name: as in ``models.fully_connected``, like all arguments below.
        parameterisation: ``"ntk"`` or ``"standard"``.
        init: named initialisation.
        sigma_w: NTK parameterisation only.
        sigma_b: NTK parameterisation only.
        bias: whether layers have one.
        seed: of the initial values.
        dtype: of the parameters.

    Raises:
        ValueError: for non-positive sizes or unknown names.
    """
    where = "models.small_cnn"
    require(image_size >= 2, where, "image_size must be >= 2", image_size)
    for name, value in (("out_features", out_features), ("channels", channels)):
        require(value > 0, where, f"{name} must be > 0", value)
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
