"""The layers of a proven chain, fixed: weights, inputs, slopes and places in the parameters.

Layer l maps its input a_l to z_l = c_l a_l W_l' + s_l b_l; the next input is phi(z_l), and only its
slope phi'(z_l) is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.tracing.dense_chain import Chain


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """One layer; ``slope`` (N, p) belongs to what follows it, None where nothing does."""

    weight: Tensor  # (p, d), times the sign of its scale
    root: float  # |c|
    input: Tensor  # (N, d)
    slope: Tensor | None
    weight_at: slice | None  # place in the flat parameter vector, None for a constant
    bias_at: slice | None
    bias_scale: float
    sign: float

    @property
    def scale(self) -> float:
        """Factor of A A' in the kernel."""
        return self.root**2 if self.weight_at is not None else 0.0

    @property
    def bias(self) -> float:
        """Constant added to A A'."""
        return self.bias_scale**2 if self.bias_at is not None else 0.0


def places_of(snapshot: FixedModel) -> dict[str, slice]:
    """The place of each parameter in the flat vector of all."""
    ends = accumulate(snapshot.sizes)
    return {
        name: slice(end - size, end)
        for name, end, size in zip(snapshot.names, ends, snapshot.sizes, strict=True)
    }


def layers_of(snapshot: FixedModel, chain: Chain) -> list[DenseLayer]:
    """The layers of ``chain`` in order, without its graph."""
    places = places_of(snapshot)
    layers = []
    for layer, after in zip(chain.layers, values_after(chain), strict=True):
        sign = -1.0 if layer.weight_scale < 0 else 1.0
        weight = layer.weight.detach()
        layers.append(
            DenseLayer(
                -weight if sign < 0 else weight,
                abs(layer.weight_scale),
                layer.input.detach(),
                _slope(layer.output, after),
                None if layer.weight_name is None else places[layer.weight_name],
                None if layer.bias_name is None else places[layer.bias_name],
                layer.bias_scale,
                sign,
            )
        )
    return layers


def values_after(chain: Chain) -> list[Tensor]:
    """The value that follows each layer: the next one's input, or the output of the chain."""
    assert chain.output is not None
    return [*(layer.input for layer in chain.layers[1:]), chain.output]


def covers_all(layers: list[DenseLayer], n_params: int) -> bool:
    """Whether every parameter belongs to a layer."""
    used = [at for layer in layers for at in (layer.weight_at, layer.bias_at)]
    return sum(at.stop - at.start for at in used if at is not None) == n_params


def _slope(z: Tensor, after: Tensor) -> Tensor | None:
    """Elementwise derivative of ``after`` by ``z`` from the graph between them; None if it is 1."""
    if after is z:
        return None
    (slope,) = torch.autograd.grad(after, z, torch.ones_like(after), retain_graph=True)
    return slope.detach()


def scaled_(x: Tensor, factor: float) -> Tensor:
    """``x`` times a number in place, skipped in standard parameterisation, where it is 1."""
    return x if factor == 1.0 else x.mul_(factor)


def masked(delta: Tensor, slope: Tensor | None) -> Tensor:
    """Multiply rows (N, K, p) by a slope (N, p); None is a slope of 1."""
    return delta if slope is None else delta * slope.unsqueeze(1)
