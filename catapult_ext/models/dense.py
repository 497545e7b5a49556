"""Fully connected networks of the experiments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import nn

from catapult_ext import _validate as v
from catapult_ext.models.initialise import Parameterisation, check_init, initialise
from catapult_ext.models.layers import NTKLinear, activation


def fully_connected(
    in_features: int,
    out_features: int,
    *,
    width: int = 512,
    depth: int = 3,
    activation_name: str | Callable[[], nn.Module] = "relu",
    parameterisation: Parameterisation = "ntk",
    init: str | None = None,
    sigma_w: float = math.sqrt(2.0),
    sigma_b: float = 0.0,
    bias: bool | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Chain of dense layers with one activation between them.

    Args:
        in_features: input dimension D; inputs are (N, D).
        out_features: outputs O; the model returns (N, O).
        width: units W of every hidden layer.
        depth: number of hidden layers (0 gives a linear model).
        activation_name: name in ``models.ACTIVATIONS``, or a factory such as ``nn.Mish``.
        parameterisation: ``"ntk"`` (sigma_w / sqrt(fan_in) W x + sigma_b b) or ``"standard"``.
        init: named initialisation, see ``models.initialise``; default ``normal`` or ``he``.
        sigma_w: NTK parameterisation only.
        sigma_b: NTK parameterisation only.
        bias: whether layers have a bias; default: only if ``sigma_b > 0`` (NTK), False (standard).
        seed: seed of the initial values; torch's global generator is not touched.
        dtype: floating dtype of the parameters; drawn in float32 and converted.

    Raises:
        ValueError: for non-positive sizes or unknown names.

    Examples:
        >>> net = cx.models.fully_connected(64, 10, width=128, depth=2)
        >>> net(torch.randn(5, 64)).shape
        torch.Size([5, 10])
    """
    where = "models.fully_connected"
    v.integers(where, in_features=in_features, out_features=out_features, width=width, depth=depth)
    v.integers(where, seed=seed)
    for name, value in (
        ("in_features", in_features),
        ("out_features", out_features),
        ("width", width),
    ):
        v.require(value > 0, where, f"{name} must be > 0", value)
    v.require(depth >= 0, where, "depth must be >= 0", depth)
    init = check_init(where, parameterisation, init)
    sizes = [in_features, *[width] * depth, out_features]
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):  # torch's layers draw values that are replaced below
        for d, p in itertools.pairwise(sizes):
            if layers:
                layers.append(activation(activation_name))
            if parameterisation == "ntk":
                layers.append(NTKLinear(d, p, sigma_w, sigma_b, bias))
            else:
                layers.append(nn.Linear(d, p, bias=bool(bias)))
    model = nn.Sequential(*layers)
    # Draw in float32, then convert: one seed gives one network in every dtype.
    return initialise(model.float(), init, seed).to(dtype)
