"""Jacobian products of R models of any kind: ``torch.func.vmap`` of the forward pass, one graph.

vmap runs the convolutions of R models as one grouped convolution and their matrix products as
batched ones.  That saves calls, not arithmetic: it is faster where layers are small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from catapult_ext.linops.model.pass_context import frozen_context
from catapult_ext.linops.stacked.base import StackedProducts
from catapult_ext.linops.stacked.linearization import StackedLinearization, some
from catapult_ext.linops.stacked.loss import StackedLoss

_WORKSPACE = 1 << 30  # bytes of the Jacobians that an explicit kernel is made of
Call = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Tensor], Tensor]


class StackedAutograd(StackedLinearization):
    """One graph of the stacked models: backward for J', backward through it for J.

    Args:
        call: outputs (N, O) of one model, by its parameters, other tensors and inputs.
        params: by name, (R, ...); copies.
        constants: the other tensors, by name, (R, ...).
        x: inputs: of all models, or (R, N, ...) where ``shared`` is false.
        shared: whether the inputs are those of all models.
        output_shape: (N, d1, ..., dk) of each model's outputs.
        rounding_unit: of the least precise numbers of the forward pass.
    """

    engine = "vmap"
    why = "torch.func.vmap of small layers"
    at_once = 1 << 30

    def __init__(
        self,
        call: Call,
        params: Mapping[str, Tensor],
        constants: Mapping[str, Tensor],
        x: Tensor,
        shared: bool,
        output_shape: tuple[int, ...],
        rounding_unit: float,
    ) -> None:
        self._call, self._constants = call, dict(constants)
        self._x, self._shared = x, shared
        self.names, self.output_shape = tuple(params), output_shape
        self.rounding_unit = rounding_unit
        self._params = {k: p.detach().requires_grad_() for k, p in params.items()}
        self._leaves = list(self._params.values())
        self._sizes = [p[0].numel() for p in self._leaves]
        self.n_params = sum(self._sizes)
        run = torch.func.vmap(call, in_dims=(0, 0, None if shared else 0))
        with frozen_context(), _differentiable():
            self.graph = run(self._params, self._constants, x)
        self.outputs = self.graph.detach()
        self._linear: tuple[Tensor, list[Tensor | None]] | None = None

    def select(self, index: Tensor) -> StackedAutograd:
        """The linearization of the replicas ``index``; runs the forward pass again."""
        return StackedAutograd(
            self._call,
            {k: some(p.detach(), index) for k, p in self._params.items()},
            {k: some(t, index) for k, t in self._constants.items()},
            self._x if self._shared else some(self._x, index),
            self._shared,
            self.output_shape,
            self.rounding_unit,
        )

    def vjp(self, u: Tensor) -> Tensor:
        """J' u: (R, N*O, K) to (R, P, K), one backward pass a column for all replicas."""
        return self._columns(
            u.shape[2], lambda k: self._pulled(self.graph, u[:, :, k].reshape(self.graph.shape))
        )

    def jvp(self, t: Tensor) -> Tensor:
        """J t: (R, P, K) to (R, N*O, K), by one double backward pass per column."""
        if self._linear is None:
            with frozen_context():
                seed = torch.zeros_like(self.graph, requires_grad=True)
                grads = torch.autograd.grad(
                    self.graph, self._leaves, seed, create_graph=True, allow_unused=True
                )
            self._linear = seed, list(grads)
        seed, pulled = self._linear
        which = [i for i, g in enumerate(pulled) if g is not None and g.requires_grad]
        used = [g for g in pulled if g is not None and g.requires_grad]
        out = torch.empty(len(t), self.rows, t.shape[2], dtype=t.dtype, device=t.device)
        for k in range(t.shape[2]):
            blocks = self.split(t[:, :, k])
            (pushed,) = torch.autograd.grad(
                used, seed, [blocks[i] for i in which], retain_graph=True
            )
            out[:, :, k] = pushed.reshape(len(t), -1)
        return out

    def kernel(self, outputs: str) -> Tensor | None:
        """J J' from the Jacobians, where these are small."""
        if self.replicas * self.rows * self.n_params * self.graph.element_size() > _WORKSPACE:
            return None
        eye = torch.eye(self.rows, dtype=self.graph.dtype, device=self.graph.device)
        rows = self.vjp(eye.expand(self.replicas, -1, -1)).mT
        return torch.bmm(rows, rows.mT) if outputs == "all" else rows.square().sum(2)

    def split(self, vectors: Tensor) -> list[Tensor]:
        """Vectors (R, P) in the shapes of the stacked parameters."""
        parts = vectors.split(self._sizes, 1)
        return [a.reshape(p.shape) for a, p in zip(parts, self._leaves, strict=True)]

    def gradient_graph(self, seed: Tensor) -> list[Tensor | None]:
        """J' seed of every replica in the shapes of the parameters, with a graph."""
        with frozen_context():
            return list(
                torch.autograd.grad(
                    self.graph, self._leaves, seed, create_graph=True, allow_unused=True
                )
            )

    def pulled_through(self, grads: Sequence[Tensor], seeds: Sequence[Tensor]) -> Tensor:
        """The derivative of <grads, seeds> by the parameters, (R, P)."""
        return self._joined(
            torch.autograd.grad(
                list(grads), self._leaves, list(seeds), retain_graph=True, allow_unused=True
            )
        )

    def _pulled(self, graph: Tensor, seed: Tensor) -> Tensor:
        return self._joined(
            torch.autograd.grad(graph, self._leaves, seed, retain_graph=True, allow_unused=True)
        )

    def _joined(self, grads: Sequence[Tensor | None]) -> Tensor:
        """Per-parameter tensors as (R, P); None, an unused parameter, is zero."""
        blocks = [
            torch.zeros_like(p) if g is None else g
            for g, p in zip(grads, self._leaves, strict=True)
        ]
        return torch.cat([b.detach().reshape(len(b), -1) for b in blocks], 1)

    def _columns(self, count: int, column: Callable[[int], Tensor]) -> Tensor:
        """(R, P, count) of columns (R, P)."""
        if count == 1:
            return column(0).unsqueeze(2)
        shape = (count, self.replicas, self.n_params)
        out = torch.empty(shape, dtype=self.graph.dtype, device=self.graph.device)
        for k in range(count):
            out[k] = column(k)
        return out.permute(1, 2, 0)


class StackedAutogradHVP(StackedProducts):
    """H V of R models: one backward pass through the gradients of all of them a column.

    Args:
        linearization: of the models.
        loss: at their outputs.
    """

    skew_is_rounding = True  # the loss is one of the library's own

    def __init__(self, linearization: StackedAutograd, loss: StackedLoss) -> None:
        self._j, self._loss = linearization, loss
        f = linearization.outputs
        self.replicas, self.n = len(f), linearization.n_params
        self.dtype, self.device = f.dtype, f.device
        self.parameter_names = linearization.names
        self.rounding_unit = linearization.rounding_unit
        self.plan = (
            f"{len(f)} replicas at once, engine {linearization.engine} ({linearization.why})"
        )
        with frozen_context():
            slopes = loss.slopes(linearization.graph)
        grads = linearization.gradient_graph(slopes.reshape(linearization.graph.shape))
        # a gradient without graph is constant: its rows of the Hessian are zero
        self._which = [i for i, g in enumerate(grads) if g is not None and g.requires_grad]
        self._used = [g for g in grads if g is not None and g.requires_grad]

    def select(self, index: Tensor) -> StackedAutogradHVP:
        """The same operator restricted to some replicas."""
        return StackedAutogradHVP(self._j.select(index), self._loss.select(index))

    def matmat(self, vectors: Tensor) -> Tensor:
        """H V for V (R, P, K)."""
        out = torch.zeros_like(vectors, memory_format=torch.contiguous_format)
        for k in range(vectors.shape[2] if self._used else 0):
            blocks = self._j.split(vectors[:, :, k])
            out[:, :, k] = self._j.pulled_through(self._used, [blocks[i] for i in self._which])
        return out


@contextmanager
def _differentiable() -> Iterator[None]:
    """Attention by operations that have second derivatives and rules for vmap."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def adjoint(linearization: StackedAutograd, good: Tensor) -> bool:
    """Whether <u, J t> = <J' u, t> for random u and t, in the replicas that are ``good``.

    A backward pass through a backward pass that loses a term would show here.
    """
    draw = torch.Generator().manual_seed(0)
    f = linearization.outputs

    def random(n: int) -> Tensor:
        return torch.randn(len(f), n, 1, generator=draw, device="cpu").to(f)

    u, t = random(linearization.rows), random(linearization.n_params)
    pushed, pulled = linearization.jvp(t), linearization.vjp(u)
    left, right = ((a * b).double().sum((1, 2))[good] for a, b in ((u, pushed), (pulled, t)))
    size = (u.double().norm(dim=1) * pushed.double().norm(dim=1))[good, 0]
    allowed = 1e3 * torch.finfo(f.dtype).eps * size
    return bool(((left - right).abs() <= allowed).all())
