"""Hessian-vector products by a recorded gradient: forward and backward pass as one program.

The backward pass is recorded like the forward pass before it, operation by operation with a rule
for the tangent of each.  A product replays the tangents of both: the derivative of the gradient
along a vector (forward over reverse, Pearlmutter 1994), without the graph of a graph, whose
convolutions and normalisations torch computes more slowly.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from catapult_ext.linops.engines.base import HessianProducts
from catapult_ext.linops.engines.block_errors import differing
from catapult_ext.linops.engines.loss_curvature import checked_loss, is_known
from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.model.memory_meter import LIMITS
from catapult_ext.linops.model.pass_context import frozen_context
from catapult_ext.losses import Loss

_ROUTE = "recorded gradient"
_FEW = 2  # samples that prove the rules of all: of one, torch makes other operations


class Program(Protocol):
    """Tangents of the parameters to those of the gradient; None is zero."""

    signature: int

    def results(self, tangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """One product."""


class Tracer(AbstractContextManager[Any], Protocol):
    """Records a pass: :class:`~catapult_ext.linops.tracing.tangent_program.TangentTracer`."""

    why: str
    output: Any
    program: Any

    def another(self) -> Tracer:
        """A tracer of another pass from the same leaves."""

    def forward(self, snapshot: Any) -> Tensor:
        """Outputs of a forward pass that is recorded."""

    def finish_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Make ``program`` of the finished backward pass."""


class RecordedHVP(HessianProducts):
    """Products by the tangents of a recorded gradient, proven equal to double backward.

    The proof takes a few samples where that serves, and holds for later passes of the same model
    (:attr:`~catapult_ext.linops.model.fixed_model.FixedModel.facts`).
    """

    def __init__(self, snapshot: FixedModel, value: Tensor, gradient: Tensor, program: Program):
        self._snapshot, self._program = snapshot, program
        self.value, self._gradient = value, gradient

    @classmethod
    def of(
        cls, snapshot: FixedModel, loss: Loss, y: Any, outputs: Tensor, tracer: Tracer | None
    ) -> RecordedHVP | None:
        """The products where the pass can be replayed, else None.

        Args:
            snapshot: the frozen model.
            loss: of the library's own; a callable takes another way.
            y: targets.
            outputs: (N, O), with graph.
            tracer: that has recorded the pass which gave them, for gradients; None without one.
        """
        if (
            tracer is None
            or tracer.why
            or not is_known(loss)
            or not snapshot.observed.plain
            or snapshot.coarse
        ):
            return None
        recorded = _Recorded(snapshot, loss, y, outputs, tracer)
        if recorded.program is None:
            return None
        key = _ROUTE, snapshot.coarse, recorded.program.signature
        if key not in snapshot.facts:
            proven = _proven_on_few(snapshot, loss, y, tracer, recorded.program.signature)
            if not (recorded.matches() if proven is None else proven):
                return None
            snapshot.facts.add(key)
        gradient = snapshot.join(tuple(recorded.detached()))
        return cls(snapshot, recorded.value.detach(), gradient, recorded.program)

    @property
    def gradient(self) -> Tensor:
        """Gradient of the loss, (P,), of the recorded pass."""
        return self._gradient

    def product(self, vectors: Tensor) -> Tensor:
        """H V for V (P, K)."""
        return _product(self._snapshot, self._program, vectors)


def _product(snapshot: FixedModel, program: Program, vectors: Tensor) -> Tensor:
    def column(k: int) -> tuple[Tensor | None, ...]:
        return tuple(program.results(snapshot.split(vectors[:, k].contiguous())))

    return snapshot.columns(vectors.shape[1], column)


class _Recorded:
    """A loss and its gradient, with graph, and the program of both; None where there is none."""

    def __init__(
        self, snapshot: FixedModel, loss: Loss, y: Any, outputs: Tensor, tracer: Tracer
    ) -> None:
        self._snapshot = snapshot
        self._leaves = list(snapshot.params.values())
        with frozen_context(), tracer:
            seen = tracer.output.to(outputs.dtype).reshape(outputs.shape)
            self.value = checked_loss(snapshot, loss, y, seen)
            self._grads = torch.autograd.grad(
                self.value, self._leaves, create_graph=True, allow_unused=True
            )
        tracer.finish_gradients(self._grads)
        self.program = tracer.program

    def detached(self) -> list[Tensor | None]:
        """The gradient in blocks."""
        return [None if g is None else g.detach() for g in self._grads]

    def matches(self) -> bool:
        """Whether the program gives the products of double backward, block by block."""
        snapshot, program = self._snapshot, self.program
        assert program is not None
        which = [i for i, g in enumerate(self._grads) if g is not None and g.requires_grad]
        if not which:
            return False

        def right(t: Tensor) -> Tensor:
            blocks = snapshot.split(t[:, 0].contiguous())
            found = torch.autograd.grad(
                [self._grads[i] for i in which],
                self._leaves,
                [blocks[i] for i in which],
                retain_graph=True,
                allow_unused=True,
            )
            return snapshot.join(found)

        def errors(t: Tensor, _: Sequence[int]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
            mine = _product(snapshot, program, t)[:, 0]
            return snapshot.split(mine), snapshot.split(right(t))

        def draw(seed: int) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            t = torch.randn(snapshot.n_params, 1, generator=generator, device="cpu")
            return t.to(self._leaves[0].detach())

        try:
            return not differing(snapshot, errors, draw, [range(len(self._leaves))])
        except LIMITS:
            raise
        except (RuntimeError, NotImplementedError):  # a formula that torch does not have
            return False


def _proven_on_few(
    snapshot: FixedModel, loss: Loss, y: Any, tracer: Tracer, signature: int
) -> bool | None:
    """Whether a few samples prove a program of this signature; None where they cannot tell."""
    policy, n = snapshot.policy, snapshot.n_samples
    if n <= _FEW or policy.batch_stats or policy.dropout or not isinstance(y, Tensor):
        return None
    if not y.dim() or len(y) != n or snapshot.output_shape[:1] != (n,):
        return None
    few = tracer.another()
    try:
        part = snapshot.part(slice(0, _FEW))
        recorded = _Recorded(part, loss, y[:_FEW], few.forward(part), few)
    except LIMITS:
        raise
    except Exception:  # the model needs more samples, or sparse inputs have no parts
        return None
    if recorded.program is None or recorded.program.signature != signature:
        return None
    return recorded.matches()
