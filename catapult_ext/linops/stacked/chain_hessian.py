"""Hessian products of R chains of dense layers: the sweeps of a single chain, batched."""

from __future__ import annotations

import torch
from torch import Tensor

from catapult_ext.linops.engines.dense_layers import DenseLayer, scaled_
from catapult_ext.linops.stacked.base import StackedProducts
from catapult_ext.linops.stacked.chain import StackedChain
from catapult_ext.linops.stacked.linearization import masked, times
from catapult_ext.linops.stacked.loss import StackedLoss


class StackedChainHVP(StackedProducts):
    """H V of R chains: :class:`~catapult_ext.linops.engines.dense_chain_hessian.DenseChainHVP`.

    Args:
        chain: built with its ``bends``.
        loss: at its outputs.
    """

    skew_is_rounding = True  # the loss is one of the library's own, of a proven chain

    def __init__(self, chain: StackedChain, loss: StackedLoss) -> None:
        self._chain, self._loss = chain, loss
        self.replicas, self.n = chain.replicas, chain.n_params
        self.dtype, self.device = chain.outputs.dtype, chain.outputs.device
        self.parameter_names, self.rounding_unit = chain.names, chain.rounding_unit
        self.columns, self.at_once = chain.columns, max(1, chain.at_once // 4)
        self.plan = f"{self.replicas} replicas at once, engine {chain.engine} ({chain.why})"
        # of every layer: delta = dL/dz (R, N, p), and phi'' o dL/da, or None where it is zero
        self._deltas: list[Tensor] = []
        self._bends: list[Tensor | None] = []
        back = loss.slopes().view(chain.outputs.shape)
        for layer, bend in zip(reversed(chain.layers), reversed(chain.bends), strict=True):
            self._bends.insert(0, None if bend is None else bend * back)
            delta = back if layer.slope is None else back * layer.slope
            self._deltas.insert(0, delta)
            back = scaled_(torch.bmm(delta, layer.weight), layer.root)

    def select(self, index: Tensor) -> StackedChainHVP:
        """The Hessians of some replicas."""
        return StackedChainHVP(self._chain.select(index), self._loss.select(index))

    def matmat(self, vectors: Tensor) -> Tensor:
        """H V for V (R, P, K)."""
        r, k, layers = len(vectors), vectors.shape[2], self._chain.layers
        rows = vectors.mT.contiguous()
        inputs, outputs = self._chain.tangents(vectors)
        out = torch.zeros_like(rows)
        n = outputs[0].shape[1]
        du = masked(outputs[-1], layers[-1].slope).transpose(2, 3).reshape(r, -1, k)
        back = self._loss.hessian(du).view(r, n, -1, k).transpose(2, 3)
        for i in reversed(range(len(layers))):
            layer, bend = layers[i], self._bends[i]
            change = masked(back, layer.slope)
            if bend is not None:
                change = change + bend.unsqueeze(2) * outputs[i]
            self._gradient_of(i, change, inputs[i], out)
            if i:
                back = scaled_(times(change, layer.weight), layer.root)
                if layer.weight_at is not None:
                    p, d = layer.weight.shape[1:]
                    w = rows[:, :, layer.weight_at].view(r, k, p, d)
                    by_weights = torch.matmul(self._deltas[i].unsqueeze(1), w)  # (R, K, N, d)
                    back.add_(by_weights.transpose(1, 2), alpha=_scale(layer))
        return out.mT

    def _gradient_of(self, i: int, change: Tensor, da: Tensor | None, out: Tensor) -> None:
        """This layer's blocks of H V into ``out`` (R, K, P)."""
        layer = self._chain.layers[i]
        r, k = out.shape[:2]
        if layer.bias_at is not None:
            out[:, :, layer.bias_at] = layer.bias_scale * change.sum(1)
        if layer.weight_at is None:
            return
        p, d = layer.weight.shape[1:]
        n = change.shape[1]
        block = torch.bmm(change.reshape(r, n, k * p).mT, layer.input).view(r, k, p, d)
        if da is not None:
            moved = torch.bmm(self._deltas[i].mT, da.reshape(r, n, k * d))  # (R, p, K*d)
            block = block + moved.view(r, p, k, d).transpose(1, 2)
        out[:, :, layer.weight_at] = (_scale(layer) * block).reshape(r, k, p * d)


def _scale(layer: DenseLayer) -> float:
    """Factor of the raw weight in z."""
    return layer.sign * layer.root
