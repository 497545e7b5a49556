"""Many dense networks as one program: weights stacked along a replica axis, batched products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext.eig.batched import top_eigenvalues
from catapult_ext.experiments.stacked_chain import DenseLayer, StackedChain, dense_layers, in_cache
from catapult_ext.linops import StackedNTK
from catapult_ext.models import NTKLinear
from catapult_ext.probes.observables import ONE_SIDED

DROP_AT = (4, 16, 64, 256)  # steps after which diverged replicas leave the stack
KERNEL_VALUES = 1 << 25  # of the explicit kernels held at once


@dataclass(frozen=True)
class StackedRecord:
    """Full-batch descent of R replicas.

    Attributes:
        loss: (R, steps + 1); after a divergence the value stays at the last one.
        diverged_at: (R,) int64, -1 for none.
        lambda_end: (R,) top eigenvalue of the squared loss's Gauss-Newton matrix, NaN if diverged
            or not asked for.
        inactive: (R,) largest share, over the layers, of pre-activations <= 0 at the end; NaN
            for activations that are not one-sided.
    """

    loss: Tensor
    diverged_at: Tensor
    lambda_end: Tensor
    inactive: Tensor


class StackedDense:
    """R chains of :class:`~catapult_ext.models.NTKLinear` without bias, all on the same data.

    The loss of each is 1/(2N) sum (f - y)^2 over samples and outputs.

    Args:
        models: networks of equal layout, as ``models.fully_connected`` builds them.
        x: (N, D) inputs that all of them share.
        y: (N, O) targets.

    Raises:
        ValueError: layers of another kind or with biases, depths that differ, or targets whose
            columns are not the outputs.
    """

    def __init__(self, models: Sequence[nn.Sequential], x: Tensor, y: Tensor) -> None:
        where = "experiments.StackedDense"
        first = [m for m in models[0] if isinstance(m, NTKLinear)]
        v.require(all(m.bias is None for m in first), where, "layers must have no bias", models[0])
        fits = y.dim() == 2 and y.shape[1] == first[-1].out_features
        v.require(fits, where, "y must have a column per output", tuple(y.shape))
        self.x, self.y = x, y
        self.activation = next(
            (m for m in models[0] if not isinstance(m, NTKLinear)), nn.Identity()
        )
        self.scales = [m.scale for m in first]
        chains = [[m for m in net if isinstance(m, NTKLinear)] for net in models]
        v.require(
            all(len(chain) == len(first) for chain in chains),
            where,
            "depths must agree",
            len(first),
        )
        self.weights = [
            torch.stack([chain[i].weight.detach() for chain in chains]).requires_grad_()
            for i in range(len(first))
        ]
        self._layers = dense_layers(models[0])
        self._model = models[0]
        own = self._model.named_modules()
        self._names = [f"{name}.weight" for name, m in own if isinstance(m, NTKLinear)]

    def forward(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Outputs (R, N, O), the input of every layer and every pre-activation, (R, N, width)."""
        h = self.x.expand(len(self.weights[0]), *self.x.shape)
        inputs, before = [], []
        for i, (w, scale) in enumerate(zip(self.weights, self.scales, strict=True)):
            inputs.append(h)
            z = torch.bmm(h * math.sqrt(scale), w.transpose(1, 2))
            before.append(z)
            h = z if i == len(self.weights) - 1 else self.activation(z)
        return h, inputs, before

    def losses(self) -> Tensor:
        """(R,) present losses, differentiable."""
        f, _, _ = self.forward()
        return (f - self.y).square().sum(dim=(1, 2)) / (2 * len(self.x))

    @torch.no_grad()
    def top_eigenvalue(self) -> Tensor:
        """(R,) lambda of the loss, from the explicit (N*O, N*O) kernels in double precision."""
        rows = self.y.numel()
        at_once = max(1, KERNEL_VALUES // rows**2)
        parts = zip(*(w.detach().double().split(at_once) for w in self.weights), strict=True)
        return torch.cat([self._top(part) for part in parts])

    def _top(self, weights: Sequence[Tensor]) -> Tensor:
        """Top eigenvalues of some replicas; NaN where their weights or outputs are not finite."""
        state = dict(zip(self._names, weights, strict=True))
        try:
            kernel = StackedNTK((state, {}, self._model), self.x.double()).dense()
        except v.NotFinite:  # of all of them
            return torch.full_like(weights[0][:, 0, 0], torch.nan)
        broken = ~torch.isfinite(kernel).all(dim=2).all(dim=1)
        kernel = torch.where(broken[:, None, None], 0, kernel)
        top = top_eigenvalues(kernel)[:, 0] / len(self.x)
        return torch.where(broken, torch.nan, top)

    def descend(
        self,
        eta: Tensor,
        steps: int,
        cut: Tensor,
        *,
        watch: Callable[[Tensor, list[Tensor]], None] | None = None,
        curvature: bool = True,
    ) -> StackedRecord:
        """Gradient descent of all replicas, each at its own rate; moves the weights.

        A replica whose loss is not finite or above ``cut`` is given up; at steps ``DROP_AT`` those
        leave the stack, and only there is anything read back. On a GPU a step is one CUDA graph.

        Args:
            eta: (R,) learning rates.
            steps: number of steps.
            cut: (R,) loss above which a replica is given up.
            watch: called at every step, before it, with the indices of the replicas that are still
                in the stack and the stacked weights.
            curvature: whether the record's lambda_end is wanted.
        """
        replicas, device = len(eta), self.x.device
        diverged = torch.full((replicas,), -1, dtype=torch.int64, device=device)
        curves = torch.zeros(replicas, steps + 1, dtype=self.x.dtype, device=device)
        held = torch.arange(replicas, device=device)
        advance = self._advance(eta)
        for step in range(steps + 1):
            if watch is not None:
                watch(held, self.weights)
            if step < steps:
                now = advance()
            else:
                with torch.no_grad():
                    now = self.losses()
            curves[held, step] = now
            bad = (diverged[held] < 0) & ~(now <= cut[held])
            diverged[held] = torch.where(bad, step, diverged[held])
            if step in DROP_AT and not bool((kept := diverged[held] < 0).all()):
                held = self._drop(held, kept)
                advance = self._advance(eta[held])
        held = self._drop(held, diverged[held] < 0)
        # What a diverged replica did after its divergence says nothing.
        columns = torch.arange(steps + 1, device=device)
        first = torch.where(diverged < 0, steps, diverged)[:, None]
        at = curves.gather(1, first)
        curves = torch.where(columns > first, torch.nan_to_num(at, nan=torch.inf), curves)
        return self._record(curves, diverged, held, curvature)

    def _advance(self, eta: Tensor) -> Callable[[], Tensor]:
        """One step of all replicas as a call that returns the losses before it."""

        def step() -> Tensor:
            with torch.enable_grad():
                losses = self.losses()
                gradients = torch.autograd.grad(losses.sum(), self.weights)
            self._move(gradients, eta)
            return losses.detach()

        if not len(eta):
            return step
        if not self.x.is_cuda:
            return self._in_place(self._layers, eta) if self._layers is not None else step
        before = [w.detach().clone() for w in self.weights]
        with torch.cuda.device(self.x.device):  # where streams and graphs are made
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                step()  # a graph must not meet a library's first use
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                losses = step()
        with torch.no_grad():
            for w, start in zip(self.weights, before, strict=True):
                w.copy_(start)

        def replay() -> Tensor:
            graph.replay()
            return losses

        return replay

    def _in_place(self, layers: Sequence[DenseLayer], eta: Tensor) -> Callable[[], Tensor]:
        """The step without a graph, as many replicas at once as fit the cache of a core."""
        names = [layer.weight for layer in layers]
        with torch.no_grad():
            chain = StackedChain(layers, dict(zip(names, self.weights, strict=True)))
            x, y = self.x, self.y
            size = in_cache(layers, len(x), x.element_size(), x.device.type)
            pieces = chain.pieces(size)
        rates = (eta / len(x)).to(x.dtype).view(-1, 1, 1).split(size)

        @torch.no_grad()
        def step() -> Tensor:
            losses = []
            for piece, rate in zip(pieces, rates, strict=True):
                residual = piece.forward(x) - y
                losses.append(residual.square().sum(dim=(1, 2)) / (2 * len(x)))
                piece.move(residual.mul_(rate))
            return torch.cat(losses)

        return step

    @torch.no_grad()
    def _move(self, gradients: tuple[Tensor, ...], eta: Tensor) -> None:
        for w, g in zip(self.weights, gradients, strict=True):
            w.addcmul_(g, eta.view(-1, 1, 1).to(g.dtype), value=-1)

    def _drop(self, held: Tensor, kept: Tensor) -> Tensor:
        """Take replicas out of the stack; indices of those that stay."""
        if bool(kept.all()):
            return held
        self.weights = [w.detach()[kept].requires_grad_() for w in self.weights]
        return held[kept]

    @torch.no_grad()
    def _record(
        self, curves: Tensor, diverged: Tensor, held: Tensor, curvature: bool
    ) -> StackedRecord:
        top = torch.full_like(curves[:, 0], torch.nan)
        inactive = top.clone()
        if len(held):
            if curvature:
                top[held] = self.top_eigenvalue().to(curves.dtype)
            if isinstance(self.activation, ONE_SIDED):
                _, _, before = self.forward()
                shares = [(z <= 0).to(curves.dtype).mean(dim=(1, 2)) for z in before[:-1]]
                inactive[held] = torch.stack(shares).amax(dim=0)
        return StackedRecord(curves, diverged, top, inactive)
