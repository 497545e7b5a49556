"""Two ways to a Hessian-vector product of any model: on a kept graph, and forward over reverse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext.linops.engines.base import HessianProducts
from catapult_ext.linops.engines.block_errors import differing
from catapult_ext.linops.engines.difference_proof import (
    Suspects,
    check_second,
    gradient_of,
    suspects,
)
from catapult_ext.linops.engines.loss_curvature import checked_loss, loss_value
from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.model.graphs import require_second_derivatives
from catapult_ext.linops.model.memory_meter import LIMITS
from catapult_ext.linops.model.pass_context import frozen_context
from catapult_ext.losses import Loss

Mode = Literal["reverse", "forward"]
MODES = get_args(Mode)


class _OfGraph(HessianProducts):
    """Products of one graph of model and loss."""

    def __init__(self, snapshot: FixedModel, loss: Loss, y: Any) -> None:
        self._snapshot, self._loss, self._y = snapshot, loss, y

    def check(self) -> None:
        """Compare with central differences where Python code is in the graph of model or loss."""
        suspected = suspects(self._snapshot, self.value, always=not self._loss.convex)
        check_second(self._snapshot, suspected, self._gradient_at(), self.product)

    def _gradient_at(self) -> Callable[[list[Tensor]], list[Tensor]]:
        """The gradient of the loss as a function of the parameters, in blocks."""
        snapshot = self._snapshot
        return gradient_of(snapshot, lambda f: loss_value(snapshot, self._loss, self._y, f))


class ReverseHVP(_OfGraph):
    """Forward and backward run once; a product is one backward through that backward."""

    def __init__(self, snapshot: FixedModel, loss: Loss, y: Any, outputs: Tensor) -> None:
        super().__init__(snapshot, loss, y)
        self._where = snapshot.where
        self._leaves = list(snapshot.params.values())
        with frozen_context():
            self.value = checked_loss(snapshot, loss, y, outputs)
            grads = torch.autograd.grad(
                self.value, self._leaves, create_graph=True, allow_unused=True
            )
        # a gradient without graph is constant: its rows of the Hessian are zero
        self._which = [i for i, g in enumerate(grads) if g is not None and g.requires_grad]
        self._used = [g for g in grads if g is not None and g.requires_grad]
        require_second_derivatives(self._used, self._where)
        self._gradient = snapshot.join(grads)

    @property
    def gradient(self) -> Tensor:
        """Gradient of the loss, (P,), made with the graph of the products."""
        return self._gradient

    def product(self, vectors: Tensor) -> Tensor:
        """H V for V (P, K)."""
        if not self._used:
            return torch.zeros_like(vectors)
        return self._snapshot.columns(vectors.shape[1], lambda k: self._column(vectors[:, k]))

    def _column(self, vector: Tensor) -> tuple[Tensor, ...]:
        blocks = self._snapshot.split(vector.contiguous())
        with no_second_derivative(self._where):
            return torch.autograd.grad(
                self._used,
                self._leaves,
                [blocks[i] for i in self._which],
                retain_graph=True,
                allow_unused=True,
            )


class ForwardHVP(_OfGraph):
    """Tangents through the backward pass: keeps no graph, runs the forward pass every product."""

    def __init__(self, snapshot: FixedModel, loss: Loss, y: Any, outputs: Tensor) -> None:
        super().__init__(snapshot, loss, y)
        self._leaves = list(snapshot.params.values())
        with frozen_context():
            self.value = checked_loss(snapshot, loss, y, outputs)
            grads = torch.autograd.grad(self.value, self._leaves, allow_unused=True)
        self._gradient = snapshot.join(grads)
        self._trusted = False

    @property
    def gradient(self) -> Tensor:
        """Gradient of the loss, (P,), made once."""
        return self._gradient

    def product(self, vectors: Tensor) -> Tensor:
        """H V for V (P, K); the first one is compared with double backward."""
        if not self._trusted:
            self._compare()
            self._trusted = True
        return self._pushed(vectors)

    def _compare(self) -> None:
        """Shows operations whose forward formulas are wrong, by every parameter."""
        snapshot = self._snapshot

        def draw(seed: int) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            t = torch.randn(snapshot.n_params, 1, generator=generator, device="cpu")
            return t.to(self._gradient)

        try:
            reverse = ReverseHVP(snapshot, self._loss, self._y, snapshot.forward())
            reverse.product(draw(0))
        except LIMITS:
            raise
        except RuntimeError:  # no double backward: by differences of the gradient
            suspected = Suspects(["torch's forward mode"], list(range(len(snapshot.names))))
            check_second(snapshot, suspected, self._gradient_at(), self._pushed)
            return

        def errors(t: Tensor, _: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
            found, right = self._pushed(t), reverse.product(t)
            return snapshot.split(found[:, 0]), snapshot.split(right[:, 0])

        everything = range(len(snapshot.names))
        wrong = [snapshot.names[i] for i in differing(snapshot, errors, draw, [everything])]
        v.require(
            not wrong,
            snapshot.where,
            "hvp='forward' must give a symmetric matrix, that of double backward; torch's forward "
            "mode does not for this model (leave hvp out)",
            f"other rows by {', '.join(wrong[:3])}",
        )

    def _pushed(self, vectors: Tensor) -> Tensor:
        snapshot = self._snapshot
        points = tuple(p.detach() for p in self._leaves)

        def value(*params: Tensor) -> Tensor:
            outputs = snapshot.outputs(dict(zip(snapshot.names, params, strict=True)))
            return loss_value(snapshot, self._loss, self._y, outputs)

        gradient = torch.func.grad(value, tuple(range(len(points))))

        def column(k: int) -> tuple[Tensor, ...]:
            tangents = tuple(snapshot.split(vectors[:, k].contiguous()))
            with (
                snapshot.aside(),
                _accepted_by_transforms(snapshot.where),
                no_second_derivative(snapshot.where),
            ):
                return torch.func.jvp(gradient, points, tangents)[1]

        return snapshot.columns(vectors.shape[1], column)


@contextmanager
def _accepted_by_transforms(where: str) -> Iterator[None]:
    """Names the way out where torch.func does not take what the model does."""
    try:
        yield
    except LIMITS:
        raise
    except RuntimeError as error:
        if str(error).startswith("catapult_ext."):
            raise
        raise RuntimeError(
            f"catapult_ext.{where}: hvp='forward' needs a model that torch.func transforms can "
            f"run, without custom autograd Functions of the old form or writes in place to what "
            f"it holds (leave hvp out): {error}"
        ) from error


class no_second_derivative:
    """Names the cause where torch says that a derivative is missing."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Rephrase torch's error."""
        if isinstance(error, NotImplementedError) and "forward AD" in str(error):
            raise RuntimeError(
                f"catapult_ext.{self._where}: an operation has no forward derivative "
                f"(try hvp='reverse'): {error}"
            ) from error
        if isinstance(error, RuntimeError) and "derivative" in str(error):
            raise RuntimeError(
                f"catapult_ext.{self._where}: an operation of the model has no second "
                f"derivative: {error}"
            ) from error
