"""Loss of a batch at chosen parameters, with the same random numbers and buffers as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from catapult_ext.linops.model.graphs import require_second_derivatives
from catapult_ext.probes.step_metric import as_real

Evaluate = Callable[[], Any]


class Replay:
    """Keeps random state and buffers as they were when a training step's forward pass began."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.keeping = False
        self._random: tuple[Tensor, list[Tensor]] | None = None
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._hook = model.register_forward_pre_hook(self._begin)

    def close(self) -> None:
        """Take the hook away."""
        self._hook.remove()

    def clear(self, *, keeping: bool) -> None:
        """Forget the step; say whether the state before the next one is kept."""
        self.keeping, self._random = keeping, None

    @torch.no_grad()
    def _begin(self, _module: nn.Module, _inputs: Any) -> None:
        if not self.keeping or self._random is not None:
            return
        self._random = _random_state()
        self._buffers = [(b, b.detach().clone()) for b in self._model.buffers()]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, the state is the kept one; afterwards it is what it was before."""
        random, buffers = _random_state(), [(b, b.detach().clone()) for b in self._model.buffers()]
        try:
            if self._random is not None:
                _set_random_state(self._random)
                _write(self._buffers)
            yield
        finally:
            _set_random_state(random)
            _write(buffers)


def _random_state() -> tuple[Tensor, list[Tensor]]:
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if cuda else []


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


@torch.no_grad()
def _write(buffers: Sequence[tuple[Tensor, Tensor]]) -> None:
    for buffer, value in buffers:
        buffer.copy_(value)


@contextmanager
def moved_back(parameters: Sequence[Tensor], displacement: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the parameters are where the step began; afterwards they are bit for bit as before.

    Values are exchanged without a new version, so that graphs which hold them stay usable.
    """
    data = [p.data for p in parameters]
    after = [t.clone() for t in data]
    torch._foreach_add_(data, list(displacement))
    try:
        yield
    finally:
        torch._foreach_copy_(data, after)


class StepHessian:
    """D^1/2 H D^1/2, (P, P), of the loss that ``evaluate`` returns, at the present parameters.

    Forward and backward run once; a product is one backward pass through them.

    Args:
        evaluate: the batch's loss.
        parameters: with respect to which; complex ones by their real and imaginary parts.
        metric: D, a tensor for each parameter.

    Raises:
        RuntimeError: an operation without second derivative.
    """

    def __init__(
        self, evaluate: Evaluate, parameters: Sequence[Tensor], metric: Sequence[Tensor]
    ) -> None:
        self._parameters = list(parameters)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            loss = evaluate()
            found = torch.autograd.grad(
                loss, self._parameters, create_graph=True, allow_unused=True
            )
        graphs = [g for g in found if g is not None]
        require_second_derivatives(graphs, "EdgeMeter")
        pairs = zip(found, self._parameters, strict=True)
        self._gradients = [as_real(torch.zeros_like(p) if g is None else g) for g, p in pairs]
        self.root = _flat(metric).sqrt()
        self.gradient = self.root * _flat(self._gradients).detach()
        self.shape = (len(self.root),) * 2
        self.dtype, self.device = self.root.dtype, self.root.device
        self.products = 0

    def __matmul__(self, vectors: Tensor) -> Tensor:
        block = vectors if vectors.dim() == 2 else vectors[:, None]
        out = torch.stack([self._product(v) for v in block.unbind(1)], dim=1)
        return out.reshape(vectors.shape)

    def _product(self, vector: Tensor) -> Tensor:
        self.products += 1
        sizes = [g.numel() for g in self._gradients]
        parts = (self.root * vector).split(sizes)
        directions = [v.view_as(g) for v, g in zip(parts, self._gradients, strict=True)]
        live = [(g, v) for g, v in zip(self._gradients, directions, strict=True) if g.requires_grad]
        if not live:  # a loss linear in the parameters
            return torch.zeros_like(vector)
        outputs, weights = [g for g, _ in live], [v for _, v in live]
        with torch.enable_grad():
            found = torch.autograd.grad(
                outputs, self._parameters, weights, retain_graph=True, allow_unused=True
            )
        pairs = zip(found, self._parameters, strict=True)
        return self.root * _flat(
            [as_real(torch.zeros_like(p) if h is None else h) for h, p in pairs]
        )


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in parts])
