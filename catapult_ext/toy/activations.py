"""Activations of the two-layer network: phi(z) and phi'(z), by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from catapult_ext.ops.toy_model import parse_activation


class Activation(NamedTuple):
    """An element-wise activation.

    Attributes:
        name: as it was asked for.
        both: z -> (phi(z), phi'(z)).
        steepest: bound on |phi'|.
        at_zero: phi(0).
    """

    name: str
    both: Callable[[Tensor], tuple[Tensor, Tensor]]
    steepest: float = 1.0
    at_zero: float = 0.0


def _tanh(z: Tensor) -> tuple[Tensor, Tensor]:
    t = z.tanh()
    return t, 1 - t * t


def _gelu(z: Tensor) -> tuple[Tensor, Tensor]:
    below = torch.special.ndtr(z)
    density = (z * z).mul_(-0.5).exp_().mul_((2 * math.pi) ** -0.5)
    return z * below, below + z * density


def _silu(z: Tensor) -> tuple[Tensor, Tensor]:
    gate = z.sigmoid()
    value = z * gate
    return value, gate + value * (1 - gate)


def _leaky(slope: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def both(z: Tensor) -> tuple[Tensor, Tensor]:
        steep = torch.where(z > 0, 1.0, slope).to(z.dtype)
        return z * steep, steep

    return both


_TWO_BY_ROOT_PI = 2 / math.sqrt(math.pi)
_NAMED = {
    "linear": Activation("linear", lambda z: (z, torch.ones_like(z))),
    "abs": Activation("abs", lambda z: (z.abs(), z.sign())),
    "tanh": Activation("tanh", _tanh),
    "erf": Activation(
        "erf", lambda z: (z.erf(), (z * z).neg_().exp_().mul_(_TWO_BY_ROOT_PI)), _TWO_BY_ROOT_PI
    ),
    "gelu": Activation("gelu", _gelu, 1.13),
    "softplus": Activation(
        "softplus",
        lambda z: (torch.logaddexp(z, torch.zeros_like(z)), z.sigmoid()),
        1.0,
        math.log(2),
    ),
    "silu": Activation("silu", _silu, 1.1),
}


def find_activation(where: str, name: str) -> Activation:
    """The activation called ``name``, one of ``ACTIVATIONS``; GELU is the exact one, with erf.

    Raises:
        TypeError: not a string.
        ValueError: an unknown name.
    """
    _, slope = parse_activation(where, name)
    return _NAMED.get(name) or Activation(name, _leaky(slope), max(1.0, abs(slope)))
