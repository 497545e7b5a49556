"""Named initialisations, drawn from an own generator so that no global random state moves."""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch
from torch import nn

from catapult_ext import _validate as v
from catapult_ext.models.layers import NTKConv2d, NTKLinear, draw_

# Variance of a weight times its fan-in, for every layer but the last and for the last one.
STANDARD = {
    "he": (2.0, 2.0),
    "lecun": (1.0, 1.0),
    "he_lecun_last": (2.0, 1.0),
    "zero_last": (2.0, 0.0),
}
NTK = {"normal": 1.0, "zero_last": 0.0}

_Net = TypeVar("_Net", bound=nn.Module)

Parameterisation = Literal["ntk", "standard"]
PARAMETERISATIONS: dict[Parameterisation, tuple[str, ...]] = {
    "ntk": tuple(NTK),
    "standard": (*STANDARD, "torch"),
}


def check_init(where: str, parameterisation: str, init: str | None) -> str:
    """The initialisation to use (the parameterisation's default for None).

    Raises:
        ValueError: for an unknown parameterisation or an initialisation it does not know.
    """
    if parameterisation not in PARAMETERISATIONS:
        known = " or ".join(repr(p) for p in PARAMETERISATIONS)
        v.fail(where, f"parameterisation must be {known}", repr(parameterisation))
    names = PARAMETERISATIONS[parameterisation]
    if init is None:
        return names[0]
    if init not in names:
        v.fail(where, f"init of {parameterisation} must be one of {', '.join(names)}", repr(init))
    return init


def fan_in(layer: nn.Module) -> int:
    """Inputs that one output of a dense or convolutional layer sums over."""
    assert isinstance(layer.weight, torch.Tensor)
    return layer.weight[0].numel()


@torch.no_grad()
def initialise(model: _Net, init: str, seed: int) -> _Net:
    """Set all dense and convolutional layers of ``model`` by the named initialisation.

    ``he`` 2/fan_in, ``lecun`` 1/fan_in, ``he_lecun_last`` 2/fan_in and 1/fan_in in the last
    layer, ``zero_last`` as ``he`` with a last layer of zeros, ``torch`` uniform
    +-1/sqrt(fan_in) as torch's own layers; NTK layers: ``normal`` N(0, 1) and ``zero_last``.
    Biases start at 0 in standard and at N(0, 1) in NTK parameterisation.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> _ = cx.models.initialise(net, "he", seed=0)
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = (nn.Linear, nn.Conv2d, NTKLinear, NTKConv2d)
    layers = [m for m in model.modules() if isinstance(m, kinds)]
    for index, layer in enumerate(layers):
        last = index == len(layers) - 1
        if isinstance(layer, NTKLinear | NTKConv2d):
            layer.reset_parameters(generator)
            if last:
                layer.weight.mul_(NTK[init])
        elif init == "torch":
            bound = 1 / math.sqrt(fan_in(layer))
            for p in layer.parameters():
                draw_(p, "uniform_", -bound, bound, generator=generator)
        else:
            variance = STANDARD[init][last] / fan_in(layer)
            draw_(layer.weight, "normal_", 0.0, 1.0, generator=generator)
            layer.weight.mul_(math.sqrt(variance))
            if layer.bias is not None:
                layer.bias.zero_()
    return model
