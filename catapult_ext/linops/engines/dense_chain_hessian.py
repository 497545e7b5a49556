"""Hessian products of a chain of dense layers from frozen activations, K vectors at once.

Pearlmutter's R-operator (1994) by plain GEMMs: one sweep forth carries the tangents dz of every
pre-activation, one sweep back those of the loss gradients delta = dL/dz.  With z = W a and
a' = phi(z),

    d delta = phi'(z) o (W' d delta' + dW' delta') + phi''(z) o dz o (W' delta')
    H v     = d delta a' + delta da'

(primes on delta: of the layer above).  phi' and phi'' come from the graph of the activations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from catapult_ext.linops.engines.base import HessianProducts, Linearization
from catapult_ext.linops.engines.dense_layers import (
    DenseLayer,
    covers_all,
    scaled_,
    values_after,
)
from catapult_ext.linops.engines.loss_curvature import output_curvature
from catapult_ext.linops.model.pass_context import frozen_context
from catapult_ext.linops.tracing.dense_chain import Chain
from catapult_ext.losses import Loss

_WORKSPACE = 1 << 27  # bytes that the columns of one product may take


class DenseChainHVP(HessianProducts):
    """Keeps activations, phi' and phi'' o dL/da, not the graph.

    A product costs 2 GEMMs forth, 2 back and 2 for the gradient per layer, less those of the
    inputs: at most 6 forward passes.
    """

    def __init__(
        self,
        linearization: Linearization,
        layers: list[DenseLayer],
        chain: Chain,
        loss: Loss,
        y: Any,
    ) -> None:
        self._linearization, self._layers = linearization, layers
        self._covered = covers_all(layers, linearization.n_params)
        snapshot = linearization.snapshot
        self.value, slope, self._outputs = output_curvature(
            snapshot, loss, y, linearization.outputs
        )
        self._slope = slope.reshape(linearization.rows, 1)
        # of every layer: delta = dL/dz (N, p), and phi'' o dL/da (N, p) or None where it is zero
        self._deltas: list[Tensor] = []
        self._bends: list[Tensor | None] = []
        back = slope.reshape(linearization.n_samples, -1)
        for traced, follows, layer in zip(
            reversed(chain.layers), reversed(values_after(chain)), reversed(layers), strict=True
        ):
            bend = _second_slope(traced.output, follows)
            self._bends.insert(0, None if bend is None else bend * back)
            delta = back if layer.slope is None else back * layer.slope
            self._deltas.insert(0, delta)
            back = scaled_(delta @ layer.weight, layer.root)
        widths = sum(sum(layer.weight.shape) for layer in self._layers)
        column = (
            linearization.n_samples * 2 * widths + 2 * linearization.n_params
        ) * snapshot.itemsize
        self.columns = max(1, min(64, _WORKSPACE // column))

    @property
    def gradient(self) -> Tensor:
        """dL/dtheta (P,)."""
        return self._linearization.vjp(self._slope)[:, 0]

    def product(self, vectors: Tensor) -> Tensor:
        """H V for V (P, K)."""
        rows = vectors.T.contiguous()
        inputs, outputs = self._tangents(rows)
        out = torch.empty_like(rows) if self._covered else torch.zeros_like(rows)
        n, k = self._linearization.n_samples, len(rows)
        back = self._outputs.hessian(self._last(outputs[-1]).transpose(1, 2)).transpose(1, 2)
        for i in reversed(range(len(self._layers))):
            layer, bend = self._layers[i], self._bends[i]
            change = back if layer.slope is None else back * layer.slope.unsqueeze(1)
            if bend is not None:
                change = change + bend.unsqueeze(1) * outputs[i]
            self._gradient_of(i, change, inputs[i], out)
            if i:
                p, d = layer.weight.shape
                back = scaled_(change.reshape(n * k, p) @ layer.weight, layer.root).view(n, k, d)
                for j in range(k if layer.weight_at is not None else 0):
                    back[:, j].addmm_(self._deltas[i], _weight(rows, layer, j), alpha=_scale(layer))
        return out.T

    def _tangents(self, rows: Tensor) -> tuple[list[Tensor | None], list[Tensor]]:
        """Tangents of every layer's input (N, K, d), None for the data, and output (N, K, p)."""
        n, k = self._linearization.n_samples, len(rows)
        inputs: list[Tensor | None] = []
        outputs: list[Tensor] = []
        da: Tensor | None = None
        for layer in self._layers:
            p, d = layer.weight.shape
            if layer.weight_at is not None:
                w = rows[:, layer.weight_at].reshape(k * p, d)
                dz = scaled_(layer.input @ w.T, _scale(layer)).view(n, k, p)
            else:
                dz = rows.new_zeros(n, k, p)
            if layer.bias_at is not None:
                dz.add_(rows[:, layer.bias_at], alpha=layer.bias_scale)
            if da is not None:
                dz.view(n * k, p).addmm_(da.view(n * k, d), layer.weight.T, alpha=layer.root)
            inputs.append(da)
            outputs.append(dz)
            da = dz if layer.slope is None else dz * layer.slope.unsqueeze(1)
        return inputs, outputs

    def _last(self, dz: Tensor) -> Tensor:
        slope = self._layers[-1].slope
        return dz if slope is None else dz * slope.unsqueeze(1)

    def _gradient_of(self, i: int, change: Tensor, da: Tensor | None, out: Tensor) -> None:
        """This layer's blocks of H V into ``out`` (K, P)."""
        layer = self._layers[i]
        if layer.bias_at is not None:
            out[:, layer.bias_at] = layer.bias_scale * change.sum(0)
        for j in range(len(out) if layer.weight_at is not None else 0):
            block = _weight(out, layer, j)
            block.addmm_(change[:, j].T, layer.input, beta=0, alpha=_scale(layer))
            if da is not None:
                block.addmm_(self._deltas[i].T, da[:, j], alpha=_scale(layer))


def _scale(layer: DenseLayer) -> float:
    """Factor of the raw weight in z."""
    return layer.sign * layer.root


def _weight(rows: Tensor, layer: DenseLayer, j: int) -> Tensor:
    """Row j of (K, P) as this layer's raw weight (p, d), a view."""
    assert layer.weight_at is not None
    return rows[j, layer.weight_at].view(layer.weight.shape)


def _second_slope(z: Tensor, after: Tensor) -> Tensor | None:
    """Elementwise second derivative of ``after`` by ``z``; None where all of it is zero."""
    if after is z:
        return None
    with frozen_context():
        (slope,) = torch.autograd.grad(
            after, z, torch.ones_like(after), retain_graph=True, create_graph=True
        )
        if not slope.requires_grad:
            return None
        (bend,) = torch.autograd.grad(
            slope, z, torch.ones_like(slope), retain_graph=True, allow_unused=True
        )
    return None if bend is None or not bool(bend.any()) else bend.detach()
