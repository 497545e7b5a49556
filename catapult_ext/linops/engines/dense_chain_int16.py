"""Kernel products of a chain of dense layers in 16-bit integers, from matrices rounded once.

With G_l the derivatives by the outputs of layer l and X_l their tangents, one product J J' u is

    G_(l-1) = (G_l W_l) o phi'_(l-1)         X_l = (M_l G_l + X_(l-1) W_l') o phi'_l

where M_l = A_l A_l' + bias in sample space (N < 2 d), and M_l G_l = A_l (G_l' A_l)' + bias beyond.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from catapult_ext.linops.engines.dense_layers import DenseLayer
from catapult_ext.linops.model.large_products import are_large
from catapult_ext.ops.int16_product import (
    Int16Matrix,
    int16_product,
    packed_left,
    packed_right,
)

Factor = Tensor | Int16Matrix


class ChainKernelInInt16:
    """u (N*O, K) to J J' u, for layers whose weights are all differentiated by.

    Args:
        layers: layers of the chain.
        grams: A A' (1, N, N) of the layers in sample space; None for the others.
    """

    def __init__(self, layers: Sequence[DenseLayer], grams: Sequence[Tensor | None]) -> None:
        self._layers = layers
        samples = len(layers[0].input)
        self._back: list[Factor] = []
        self._forth: list[Factor] = []
        self._sources: list[tuple[Factor, Factor | None]] = []
        for layer, gram in zip(layers, grams, strict=True):
            large = are_large(samples, *layer.weight.shape)
            left = packed_left if large else _same
            right = packed_right if large else _same
            weight = layer.weight * layer.root
            self._back.append(right(weight))
            self._forth.append(right(weight.T))
            if gram is None:
                a = layer.input * layer.root
                self._sources.append((left(a), right(a)))
            else:
                self._sources.append((left(gram[0] * layer.scale + layer.bias), None))

    def __call__(self, u: Tensor) -> Tensor:
        """One column after another."""
        return torch.stack([self._column(column) for column in u.T], 1)

    def _column(self, u: Tensor) -> Tensor:
        layers, last = self._layers, len(self._layers) - 1
        g = u.reshape(len(layers[0].input), -1)
        slope = layers[last].slope
        if slope is not None:
            g = g * slope
        grads = [g]
        for i in range(last, 0, -1):
            g = _product(g, self._back[i], None, layers[i - 1].slope)
            grads.append(g)
        x: Tensor | None = None
        for i, g in enumerate(reversed(grads)):
            slope = layers[i].slope
            source = self._source(i, g, slope if x is None else None)
            x = source if x is None else _product(x, self._forth[i], source, slope)
        assert x is not None
        return x.reshape(-1)

    def _source(self, i: int, g: Tensor, mask: Tensor | None) -> Tensor:
        """M_l G_l, times ``mask``."""
        left, right = self._sources[i]
        bias = self._layers[i].bias
        if right is None:
            return _product(left, g, None, mask)
        sums = (g.sum(0) * bias).expand(len(g), -1).contiguous() if bias else None
        return _product(left, _product(g.T, right, None, None).T, sums, mask)


def _same(x: Tensor) -> Tensor:
    return x


def _product(a: Factor, b: Factor, out: Tensor | None, mask: Tensor | None) -> Tensor:
    """Mask o (a b + out), in integers where one side is."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        out = a @ b if out is None else out.addmm_(a, b)
        return out if mask is None else out.mul_(mask)
    return int16_product(a, b, out, mask=mask)
