"""Jacobian products of R chains of dense layers: batched matrix products and ``ops.ntk_matvec``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from catapult_ext import ops
from catapult_ext.linops.engines.dense_layers import (
    DenseLayer,
    covers_all,
    places_of,
    scaled_,
)
from catapult_ext.linops.engines.written_out import worth_writing_out
from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.stacked.linearization import StackedLinearization, masked, some, times
from catapult_ext.linops.tracing.dense_chain import Chain

_WORKSPACE = 1 << 28  # bytes that a product of one column may take


@dataclass(frozen=True, eq=False)
class _Frozen:
    """Tensors of ``ops.ntk_matvec``: weights (R, p, d), inputs (R, N, d), slopes, A A' (R, N, N).

    Where A A' is there, the inputs are not read: any tensor of their shape will do.
    """

    weights: list[Tensor]
    inputs: list[Tensor]
    slopes: list[Tensor]
    grams: list[Tensor | None]

    @classmethod
    def of(cls, layers: Sequence[DenseLayer], samples: int) -> _Frozen:
        """Data of ``layers``, with A A' where the product in sample space is cheaper (N < 2 d)."""
        inputs = [layer.input for layer in layers]
        return cls(
            [layer.weight for layer in layers],
            inputs,
            [
                torch.ones_like(after.input) if layer.slope is None else layer.slope
                for layer, after in pairwise(layers)
            ],
            [torch.bmm(a, a.mT) if samples < 2 * a.shape[2] else None for a in inputs],
        )

    def select(self, index: Tensor) -> _Frozen:
        """Data of some replicas."""
        count = len(index)
        return _Frozen(
            [some(t, index) for t in self.weights],
            [
                a[:count] if gram is not None and count <= len(a) else some(a, index)
                for a, gram in zip(self.inputs, self.grams, strict=True)
            ],
            [some(t, index) for t in self.slopes],
            [None if t is None else some(t, index) for t in self.grams],
        )


class StackedChain(StackedLinearization):
    """Products of R chains from fixed activations.

    Its layers are those of a single chain with a leading dimension R: weights (R, p, d), inputs
    (R, N, d), slopes (R, N, p).

    Args:
        layers: in order.
        outputs: (R, N, O).
        names: names of the parameters, in order.
        n_params: P.
        output_shape: (N, d1, ..., dk) of each model's outputs.
        rounding_unit: of the least precise numbers of the forward pass.
        bends: of each layer its element-wise function's second derivative (R, N, p), None where
            that is zero; for Hessians only.
    """

    engine = "dense-chain"
    why = "chains of dense layers and element-wise activations"

    def __init__(
        self,
        layers: Sequence[DenseLayer],
        outputs: Tensor,
        names: tuple[str, ...],
        n_params: int,
        output_shape: tuple[int, ...],
        rounding_unit: float,
        bends: Sequence[Tensor | None] | None = None,
    ) -> None:
        self._layers: list[DenseLayer] | None = list(layers)
        self.outputs, self.names = outputs, names
        self.n_params, self.output_shape = n_params, output_shape
        self.rounding_unit = rounding_unit
        self._bends = None if bends is None else list(bends)
        self._of: tuple[StackedChain, Tensor] | None = None
        self._n, self._o = outputs.shape[1:]
        self._covered = covers_all(self.layers, n_params)
        self._trainable = all(layer.weight_at is not None for layer in self.layers)
        self._frozen: _Frozen | None = None
        widths = [max(layer.weight.shape[1:]) for layer in self.layers]
        rows = self._n * (sum(widths) + 4 * max(widths))
        weights = max(layer.weight[0].numel() for layer in self.layers)
        self.at_once = max(1, _WORKSPACE // ((rows + weights) * outputs.element_size()))

    @property
    def layers(self) -> list[DenseLayer]:
        """In order; those of some replicas are copied when they are first asked for."""
        if self._layers is None:
            assert self._of is not None
            whole, index = self._of
            self._layers = [
                replace(
                    layer,
                    weight=some(layer.weight, index),
                    input=some(layer.input, index),
                    slope=None if layer.slope is None else some(layer.slope, index),
                )
                for layer in whole.layers
            ]
        return self._layers

    @property
    def bends(self) -> list[Tensor | None]:
        """Second derivatives of the element-wise functions, for Hessians."""
        whole, index = self._of or (self, None)
        assert whole._bends is not None
        if index is None:
            return whole._bends
        return [None if bend is None else some(bend, index) for bend in whole._bends]

    def select(self, index: Tensor) -> StackedChain:
        """The chains of some replicas, which share what their products do not need."""
        whole, within = self._of or (self, None)
        out = copy.copy(self)
        out._of = whole, index if within is None else within[index]
        out._layers = None
        out.outputs = some(self.outputs, index)
        if self._trainable:
            out._frozen = self._native().select(index)
        return out

    def vjp(self, u: Tensor) -> Tensor:
        """J' u: (R, N*O, K) to (R, P, K), all replicas and columns in one product a layer."""
        r, k = len(u), u.shape[2]
        make = u.new_empty if self._covered else u.new_zeros
        out = make(r, k, self.n_params)
        delta = u.reshape(r, self._n, self._o, k).transpose(2, 3)
        for i in reversed(range(len(self.layers))):
            layer = self.layers[i]
            delta = masked(delta, layer.slope)  # (R, N, K, p)
            if layer.weight_at is not None:
                rows = torch.bmm(delta.reshape(r, self._n, -1).mT, layer.input)
                out[:, :, layer.weight_at] = scaled_(rows, layer.sign * layer.root).view(r, k, -1)
            if layer.bias_at is not None:
                out[:, :, layer.bias_at] = layer.bias_scale * delta.sum(1)
            if i:
                delta = scaled_(times(delta, layer.weight), layer.root)
        return out.mT

    def jvp(self, t: Tensor) -> Tensor:
        """J t: (R, P, K) to (R, N*O, K), all replicas and columns in one product a layer."""
        dx = masked(self.tangents(t)[1][-1], self.layers[-1].slope)
        return dx.transpose(2, 3).reshape(len(t), -1, t.shape[2])

    def tangents(self, t: Tensor) -> tuple[list[Tensor | None], list[Tensor]]:
        """Tangents of every layer's input (R, N, K, d), None for the data, and output."""
        r, k = len(t), t.shape[2]
        rows = t.mT.contiguous()
        inputs: list[Tensor | None] = []
        outputs: list[Tensor] = []
        dx: Tensor | None = None
        for layer in self.layers:
            p, d = layer.weight.shape[1:]
            if layer.weight_at is not None:
                w = rows[:, :, layer.weight_at].reshape(r, k * p, d)
                dz = torch.bmm(layer.input, w.mT).view(r, self._n, k, p)
                dz = scaled_(dz, layer.sign * layer.root)
            else:
                dz = rows.new_zeros(r, self._n, k, p)
            if layer.bias_at is not None:
                dz.add_(rows[:, None, :, layer.bias_at], alpha=layer.bias_scale)
            if dx is not None:
                dz.add_(times(dx, layer.weight.mT), alpha=layer.root)
            inputs.append(dx)
            outputs.append(dz)
            dx = masked(dz, layer.slope)
        return inputs, outputs

    def ntk(self, u: Tensor) -> Tensor:
        """J J' u, by one call of ``ops.ntk_matvec`` for all replicas."""
        if not self._trainable:
            return self.jvp(self.vjp(u))
        whole = self if self._of is None else self._of[0]
        last = None if whole.layers[-1].slope is None else self.layers[-1].slope
        if last is not None:  # an activation after the last layer
            u = u * last.reshape(len(u), -1, 1)
        frozen = self._native()
        out = ops.ntk_matvec(
            u,
            weights=frozen.weights,
            inputs=frozen.inputs,
            slopes=frozen.slopes,
            scale=[layer.scale for layer in whole.layers],
            bias=[layer.bias for layer in whole.layers],
            grams=frozen.grams,
        )
        return out if last is None else out.mul_(last.reshape(len(u), -1, 1))

    def _native(self) -> _Frozen:
        """Arguments of ``ops.ntk_matvec``; made once."""
        if self._frozen is None:
            self._frozen = _Frozen.of(self.layers, self._n)
        return self._frozen

    def kernel(self, outputs: str, seed: Tensor | None = None) -> Tensor | None:
        """J J' by ``ops.gram`` from the derivatives of every output by every pre-activation.

        With ``seed`` (R, N, O, O), S' of each sample, S' J J' S.
        """
        a, g = [layer.input for layer in self.layers], self._derivatives(seed)
        scale = [layer.scale for layer in self.layers]
        bias = [layer.bias for layer in self.layers]
        return ops.gram(a, g, scale=scale, bias=bias, outputs=outputs)

    def written_out(self, seed: Tensor | None) -> Tensor | None:
        """S' J J' S by ``ops.gram``, where the kernels are small."""
        whole = self if self._of is None else self._of[0]
        sizes = [layer.weight.shape[1:] for layer in whole.layers]
        flops = sum(4.0 * self._n * p * d for p, d in sizes)
        if not worth_writing_out(self._n, self._o, sizes, flops, self.outputs.device):
            return None
        return self.kernel("all", seed)

    def _derivatives(self, seed: Tensor | None) -> list[Tensor]:
        """(R, N, O, p_l) for every layer."""
        o = self._o
        eye = torch.eye(o, dtype=self.outputs.dtype, device=self.outputs.device)
        delta = eye.expand(self.replicas, self._n, o, o) if seed is None else seed
        found: list[Tensor] = []
        for i in reversed(range(len(self.layers))):
            delta = masked(delta, self.layers[i].slope)
            found.insert(0, delta.contiguous())
            if i:
                delta = scaled_(times(delta, self.layers[i].weight), self.layers[i].root)
        return found


@dataclass(frozen=True)
class ChainParts:
    """Description of a traced chain that suffices to run it with other parameters.

    Attributes:
        chain: the chain of one replica.
        weights: the name of each layer's weight, trainable or not.
        biases: the name of each layer's bias; None for a layer without bias.
    """

    chain: Chain
    weights: list[str]
    biases: list[str | None]


def parts_of(chain: Chain, snapshot: FixedModel) -> ChainParts | None:
    """The names of all tensors of ``chain``; None where one is computed, not kept by the model."""
    known = {id(t): name for name, t in (*snapshot.params.items(), *snapshot.constants.items())}
    weights, biases = [], []
    for layer in chain.layers:
        weight, bias = known.get(id(layer.weight)), known.get(id(layer.bias))
        lost = weight is None or (layer.has_bias and bias is None) or layer.follows is None
        if lost:
            return None
        assert weight is not None
        weights.append(weight)
        biases.append(bias if layer.has_bias else None)
    return ChainParts(chain, weights, biases)


def stacked_chain(
    parts: ChainParts,
    snapshot: FixedModel,
    stacked: Callable[[str], Tensor],
    first: Tensor,
    bends: bool,
) -> StackedChain:
    """The chains of R replicas by a batched forward pass.

    Args:
        parts: of one replica's chain.
        snapshot: that replica.
        stacked: gives the tensor of a name of all replicas, (R, ...).
        first: (R, N, d), the inputs of the first layer.
        bends: whether second derivatives of activations are wanted.
    """
    places = places_of(snapshot)
    layers, second = [], []
    a = first.contiguous()
    for traced, weight_name, bias_name in zip(
        parts.chain.layers, parts.weights, parts.biases, strict=True
    ):
        weight = stacked(weight_name)
        z = scaled_(torch.bmm(a, weight.mT), traced.weight_scale)
        if bias_name is not None:
            z.add_(stacked(bias_name).unsqueeze(1), alpha=traced.bias_scale)
        after, slope, bend = activated(z, traced.follows or [], bends)
        second.append(bend)
        negative = traced.weight_scale < 0
        layers.append(
            DenseLayer(
                -weight if negative else weight,
                abs(traced.weight_scale),
                a,
                slope,
                None if traced.weight_name is None else places[traced.weight_name],
                None if traced.bias_name is None else places[traced.bias_name],
                traced.bias_scale,
                -1.0 if negative else 1.0,
            )
        )
        a = after
    shape, eps = snapshot.output_shape, snapshot.observed.eps
    return StackedChain(
        layers, a, snapshot.names, snapshot.n_params, shape, eps, second if bends else None
    )


def activated(
    z: Tensor, follows: Sequence[Callable[[Tensor], Tensor]], bends: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The element-wise functions of ``z``, their derivative and, if wanted, the second one.

    A derivative that is one everywhere by construction is None, and so is a second one of zeros.
    """
    if not follows:
        return z, None, None
    with torch.inference_mode(False), torch.enable_grad():
        z = z.detach().requires_grad_()
        after = z
        for function in follows:
            after = function(after)
        ones = torch.ones_like(after)
        (slope,) = torch.autograd.grad(after, z, ones, create_graph=bends)
        bend = None
        if bends and slope.requires_grad:
            (bend,) = torch.autograd.grad(slope, z, ones, allow_unused=True)
    if bend is not None and not bool(bend.any()):
        bend = None
    return after.detach(), slope.detach(), None if bend is None else bend.detach()
