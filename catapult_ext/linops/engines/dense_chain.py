"""Engine ``dense-chain``: a chain of dense layers from its fixed activations, K vectors at once.

Products are a few GEMMs per layer; the kernel comes from layer factors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext import ops
from catapult_ext.linops.engines.base import ForwardPass, Linearization
from catapult_ext.linops.engines.dense_chain_hessian import DenseChainHVP
from catapult_ext.linops.engines.dense_chain_int16 import ChainKernelInInt16
from catapult_ext.linops.engines.dense_layers import covers_all, layers_of, masked, scaled_
from catapult_ext.linops.engines.written_out import worth_writing_out
from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.tracing.dense_chain import Chain, ChainTracer, plausible
from catapult_ext.losses import Loss


class DenseChainLinearization(Linearization):
    """Products and kernels of a proven chain; keeps activations, not the graph."""

    engine = "dense-chain"
    why = "a chain of dense layers and element-wise activations"
    proven = True  # a chain is made of known functions of its inputs alone
    gains_from_columns = True
    memory_margin = 1.1  # measured on ten models: few and large pieces
    hvp_modes = ()

    def __init__(self, snapshot: FixedModel, outputs: Tensor, chain: Chain) -> None:
        super().__init__(snapshot, outputs)
        # second slopes need the graph of the activations, which no other product does
        self._chain = chain if snapshot.probe == "hessian" else None
        self.layers = layers_of(snapshot, chain)
        self.covered = covers_all(self.layers, self.n_params)
        self._trainable = all(layer.weight_at is not None for layer in self.layers)
        self._slopes = [
            (torch.ones_like(after.input) if layer.slope is None else layer.slope).unsqueeze(0)
            for layer, after in zip(self.layers[:-1], self.layers[1:], strict=True)
        ]
        self._grams: list[Tensor | None] | None = None

    @classmethod
    def build(cls, snapshot: FixedModel) -> DenseChainLinearization:
        """This engine by one traced forward pass.

        Raises:
            ValueError: the model is no chain of dense layers.
        """
        tracer = ChainTracer(snapshot.params)
        outputs = snapshot.forward(tracer)
        chain = tracer.result(snapshot.take_raw_output())
        if chain is None:
            v.fail(
                snapshot.where,
                f"engine='{cls.engine}' needs a chain of dense layers and element-wise activations",
                f"a model where {tracer.why}",
            )
        return cls(snapshot, outputs, chain)

    @classmethod
    def recorder(cls, snapshot: FixedModel) -> ChainRecorder:
        """A recorder that proves during the pass whether the model is a chain."""
        return ChainRecorder(snapshot)

    @classmethod
    def from_pass(
        cls, snapshot: FixedModel, recorder: ChainRecorder, forward: ForwardPass
    ) -> DenseChainLinearization | None:
        """This engine where the recorded pass is a chain of dense layers; else None."""
        if snapshot.probe == "hessian" and snapshot.observed.second:
            return None  # its second derivative is made by composition
        chain = recorder.tracer.result(forward.raw)
        return None if chain is None else cls(snapshot, forward.outputs, chain)

    def vjp(self, u: Tensor) -> Tensor:
        """J' u: (N*O, K) to (P, K), all columns in one GEMM per layer."""
        k = u.shape[1]
        make = torch.empty if self.covered else torch.zeros  # unused parameters: zero
        out = make(k, self.n_params, dtype=self.dtype, device=self.device)
        delta = u.reshape(self.n_samples, self.n_outputs, k).transpose(1, 2)
        for i in reversed(range(len(self.layers))):
            layer = self.layers[i]
            delta = masked(delta, layer.slope)  # (N, K, p)
            if layer.weight_at is not None:
                rows = delta.reshape(self.n_samples, -1).T @ layer.input
                out[:, layer.weight_at] = scaled_(rows, layer.sign * layer.root).reshape(k, -1)
            if layer.bias_at is not None:
                out[:, layer.bias_at] = layer.bias_scale * delta.sum(0)
            if i:
                delta = scaled_(delta @ layer.weight, layer.root)
        return out.T

    def jvp(self, t: Tensor) -> Tensor:
        """J t: (P, K) to (N*O, K), all columns in one GEMM per layer."""
        k = t.shape[1]
        rows = t.T.contiguous()
        dx: Tensor | None = None  # (N, K, d), tangent of the layer's input
        for layer in self.layers:
            p, d = layer.weight.shape
            dz = torch.zeros(self.n_samples, k, p, dtype=self.dtype, device=self.device)
            if layer.weight_at is not None:
                w = rows[:, layer.weight_at].reshape(k * p, d)
                dz = (layer.sign * layer.root) * (layer.input @ w.T).view(dz.shape)
            if layer.bias_at is not None:
                dz = dz + layer.bias_scale * rows[:, layer.bias_at]
            if dx is not None:
                dz = dz + scaled_(dx @ layer.weight.T, layer.root)
            dx = masked(dz, layer.slope)
        assert dx is not None
        return dx.transpose(1, 2).reshape(self.rows, k)

    def ntk(self, u: Tensor) -> Tensor:
        """J J' u: (N*O, K) to (N*O, K), by ``ops.ntk_matvec``."""
        if not self._trainable:
            return self.jvp(self.vjp(u))
        last = self.layers[-1].slope
        if last is not None:  # an activation after the last layer
            u = u * last.reshape(-1, 1)
        out = ops.ntk_matvec(
            u.unsqueeze(0),
            weights=[layer.weight.unsqueeze(0) for layer in self.layers],
            inputs=[layer.input.unsqueeze(0) for layer in self.layers],
            slopes=self._slopes,
            scale=[layer.scale for layer in self.layers],
            bias=[layer.bias for layer in self.layers],
            grams=self._cached_grams(),
        )
        out = out.squeeze(0)
        return out if last is None else out * last.reshape(-1, 1)

    def kernel_in_int16(self) -> ChainKernelInInt16 | None:
        """:meth:`ntk` from matrices that are rounded once, where all weights are trained."""
        if not self._trainable:
            return None
        return ChainKernelInInt16(self.layers, self._cached_grams())

    def native_bytes(self, n: int) -> float:
        """Workspace and cached Grams of :meth:`ntk` for n samples and one column, in bytes."""
        sizes = [layer.weight.shape for layer in self.layers]
        widths = [p for p, _ in sizes]
        weights = max((p * d for p, d in sizes if n >= 2 * d), default=0)
        grams = sum(n * n for _, d in sizes if n < 2 * d)
        # the general products keep K tangents of the widest layer
        rows = n * (sum(widths) + 4 * max(widths))
        return (grams + rows + weights) * self.snapshot.itemsize

    def native_flops(self, n: int) -> float:
        """Flops of :meth:`ntk` for n samples and one column."""
        total = 0.0
        for i, layer in enumerate(self.layers):
            p, d = layer.weight.shape
            total += 4.0 * n * p * d * (i > 0) + min(2.0 * n * n * p, 4.0 * n * p * d)
        return total

    def kernel_flops(self, n: int, product: float) -> float:
        """Flops of the kernel of n samples from the inner products of every layer's factors."""
        rows = float(self.n_outputs * n)
        widths = [layer.weight.shape for layer in self.layers]
        return sum(float(n) * n * d + rows * rows * (p + 1) for p, d in widths)

    def product_bytes(self, graph: int) -> float:
        """Upper bound on the bytes of a product, which keeps no graph of its own."""
        return graph + 4 * self.snapshot.bytes + self.native_bytes(self.n_samples)

    def hessian(self, loss: Loss, y: Any, hvp: str | None) -> DenseChainHVP:
        """Hessian products from the activations of the chain, which is given away."""
        assert self._chain is not None
        chain, self._chain = self._chain, None
        return DenseChainHVP(self, self.layers, chain, loss, y)

    def _cached_grams(self) -> list[Tensor | None]:
        """A A' (1, N, N) where the sample-space source is the cheaper one: N < 2 d."""
        if self._grams is None:
            one = self.outputs.new_ones(self.n_samples, 1, 1)
            self._grams = [
                ops.gram([layer.input], [one], scale=[1.0], bias=[0.0]).unsqueeze(0)  # half of it
                if self.n_samples < 2 * layer.input.shape[1]
                else None
                for layer in self.layers
            ]
        return self._grams

    def diagonal(self) -> Tensor:
        """Diagonal of J J', (N*O,), by factors of as many samples as fit the workspace."""
        step = max(1, self.workspace // (2 * self.part(slice(0, 1)).gradient_bytes("all")))
        out = torch.empty(self.rows, dtype=self.dtype, device=self.device)
        for at in range(0, self.n_samples, step):
            some = slice(at, min(at + step, self.n_samples))
            rows = slice(at * self.n_outputs, some.stop * self.n_outputs)
            out[rows] = self.part(some).kernel(None, "diagonal")
        return out

    def weighted_diagonal(self, product: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Diagonal of J' H J, (P,), from the factors of each layer; None beyond the workspace."""
        widest = max(layer.weight.shape[0] for layer in self.layers)
        if 4 * self.rows * widest * self.dtype.itemsize > self.workspace:
            return None
        out = torch.zeros(self.n_params, dtype=self.dtype, device=self.device)
        eye = torch.eye(self.n_outputs, dtype=self.dtype, device=self.device)
        delta = eye.expand(self.n_samples, -1, -1)  # (N, O, p) derivatives by z_l
        for i in reversed(range(len(self.layers))):
            layer = self.layers[i]
            delta = masked(delta, layer.slope).contiguous()
            weighted = (delta * product(delta)).sum(1)  # (N, p)
            if layer.weight_at is not None:
                entries = weighted.T @ layer.input.square()
                out[layer.weight_at] = entries.reshape(-1) * layer.scale
            if layer.bias_at is not None:
                out[layer.bias_at] = weighted.sum(0) * layer.bias
            if i:
                delta = scaled_(delta @ layer.weight, layer.root)
        return out

    def kernel(self, other: Linearization | None, outputs: str) -> Tensor | None:
        """J J2' by ``ops.gram``; None where the other model is no chain."""
        if other is not None and not isinstance(other, DenseChainLinearization):
            return None
        theirs = None if other is None else other.part(slice(0, other.n_samples))
        return self.part(slice(0, self.n_samples)).kernel(theirs, outputs)

    def written_out(self, seed: Tensor | None) -> Tensor | None:
        """S' J J' S by ``ops.gram``, where the kernel is small."""
        sizes = [layer.weight.shape for layer in self.layers]
        flops, n = self.native_flops(self.n_samples), self.n_samples
        if not worth_writing_out(n, self.n_outputs, sizes, flops, self.device):
            return None
        return self.part(slice(0, n)).kernel(None, "all", seed)

    def kernel_bytes(self, outputs: str) -> int:
        """Bytes that :meth:`kernel` takes besides its result."""
        if outputs == "trace":
            return self.workspace
        return self.kernel_room(self.n_samples)

    def kernel_room(self, n: int) -> int:
        """Bytes of the derivatives of all outputs of n samples, on both sides."""
        return 2 * n * self.part(slice(0, 1)).gradient_bytes("all")

    def part(self, samples: slice) -> DenseChainPart:
        """Inputs and derivatives of the layers for a slice of the samples."""
        return DenseChainPart(self, samples)


class ChainRecorder:
    """Tries to prove during a forward pass that the model is a chain."""

    cheap = True

    def __init__(self, snapshot: FixedModel) -> None:
        self.tracer = ChainTracer(snapshot.params)
        self.likely = plausible(snapshot.model)

    @property
    def why(self) -> str:
        """Reason why this is no chain; empty where it is one."""
        return f"not a chain of dense layers: {self.tracer.why}" if self.tracer.why else ""

    @property
    def altered(self) -> bool:
        """A call in place was given a copy of its argument."""
        return self.tracer.altered

    def mode(self) -> ChainTracer:
        """The tracer."""
        return self.tracer


class DenseChainPart:
    """Some samples: inputs a_l (n, d_l), derivatives g_l (n, O, p_l) of every output by every z_l.

    The derivatives of all outputs are kept: a row of tiles uses them again and again.
    """

    def __init__(self, linearization: DenseChainLinearization, samples: slice) -> None:
        self._linearization, self._samples = linearization, samples
        self.outputs = linearization.outputs[samples]
        self.workspace = linearization.workspace
        self._inputs = [layer.input[samples] for layer in linearization.layers]
        self._kept: list[Tensor] | None = None

    def _derivatives(self, outputs: slice, seed: Tensor | None = None) -> list[Tensor]:
        """Derivatives of every output, or of the combinations ``seed`` (n, O, O)."""
        layers, like = self._linearization.layers, self.outputs
        eye = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)[outputs]
        delta = eye.expand(len(like), -1, -1) if seed is None else seed
        found: list[Tensor] = []
        for i in reversed(range(len(layers))):
            slope = layers[i].slope
            delta = masked(delta, None if slope is None else slope[self._samples])
            found.insert(0, delta.contiguous())
            if i:
                delta = scaled_(delta @ layers[i].weight, layers[i].root)
        return found

    def _all(self) -> list[Tensor]:
        if self._kept is None:
            self._kept = self._derivatives(slice(0, self.outputs.shape[1]))
        return self._kept

    def kernel(
        self, other: DenseChainPart | None, outputs: str, seed: Tensor | None = None
    ) -> Tensor:
        """J J2' with another part by ``ops.gram``; the trace takes some outputs at a time.

        With ``seed`` (n, O, O), S' of each sample, S' J J' S.
        """
        if seed is not None:
            return self._gram(None, self._derivatives(slice(None), seed), None, outputs)
        if outputs != "trace":
            return self._gram(other, self._all(), None if other is None else other._all(), outputs)
        n = len(self.outputs) + (0 if other is None else len(other.outputs))
        step = max(1, self.workspace // (2 * n * self._widths()))
        total: Tensor | None = None
        for at in range(0, self.outputs.shape[1], step):  # a sum over outputs: some at a time
            some = slice(at, at + step)
            g2 = None if other is None else other._derivatives(some)
            found = self._gram(other, self._derivatives(some), g2, outputs)
            total = found if total is None else total.add_(found)
        assert total is not None
        return total

    def _gram(
        self, other: DenseChainPart | None, g: list[Tensor], g2: list[Tensor] | None, outputs: str
    ) -> Tensor:
        layers = self._linearization.layers
        return ops.gram(
            self._inputs,
            g,
            scale=[layer.scale for layer in layers],
            bias=[layer.bias for layer in layers],
            a2=None if other is None else other._inputs,
            g2=g2,
            outputs=outputs,
        )

    def _widths(self) -> int:
        """Bytes of the derivatives of one output of one sample."""
        return (
            sum(layer.weight.shape[0] for layer in self._linearization.layers)
            * self.outputs.element_size()
        )

    def gradient_bytes(self, outputs: str) -> int:
        """Bytes, for each sample, of the derivatives of the outputs that are used together."""
        return self._widths() * (1 if outputs == "trace" else self.outputs.shape[1])
