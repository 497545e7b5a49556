"""Three ways to a Hessian-vector product: on a kept graph, forward over reverse, over chunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext.linops.engines.autograd import AutogradLinearization
from catapult_ext.linops.engines.base import Linearization
from catapult_ext.linops.engines.by_samples import LinearizationBySamples
from catapult_ext.linops.model.policy import frozen_context
from catapult_ext.linops.model.snapshot import Snapshot, require_second_derivatives
from catapult_ext.losses import AutogradHessian, Loss

MODES = ("reverse", "forward")


class ReverseHVP:
    """Forward and backward run once; a product is one backward through that backward."""

    def __init__(self, snapshot: Snapshot, loss: Loss, y: Any, outputs: Tensor) -> None:
        self._snapshot, self._where = snapshot, snapshot.where
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
        self.gradient = snapshot.join(grads)

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


class ForwardHVP:
    """Tangents through the backward pass: keeps no graph, runs the forward pass every product."""

    def __init__(self, snapshot: Snapshot, loss: Loss, y: Any, outputs: Tensor) -> None:
        self._snapshot, self._loss, self._y = snapshot, loss, y
        self._leaves = list(snapshot.params.values())
        with frozen_context():
            self.value = checked_loss(snapshot, loss, y, outputs)
            grads = torch.autograd.grad(self.value, self._leaves, allow_unused=True)
        self.gradient = snapshot.join(grads)
        self._trusted = False

    def product(self, vectors: Tensor) -> Tensor:
        """H V for V (P, K); the first one looks whether H is symmetric, by two more."""
        if not self._trusted:
            self._check_symmetry()
            self._trusted = True
        return self._pushed(vectors)

    def _check_symmetry(self) -> None:
        """An operation whose forward formula is wrong shows (embedding with padding)."""
        snapshot, generator = self._snapshot, torch.Generator().manual_seed(0)
        pair = torch.randn(
            snapshot.n_params, 2, generator=generator, dtype=torch.float64, device="cpu"
        )
        pair = pair.to(self.gradient)
        (a, b), (ha, hb) = pair.double().T, self._pushed(pair).double().T
        skew, size = a @ hb - b @ ha, a.norm() * hb.norm() + b.norm() * ha.norm()
        v.require(
            bool(skew.abs() <= 1e2 * torch.finfo(snapshot.dtype).eps * size),
            snapshot.where,
            "hvp='forward' must give a symmetric matrix; torch's forward mode does not for this "
            "model (leave hvp out)",
            f"<u, H v> - <v, H u> = {skew.item():.1e}",
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
            policy = snapshot.policy.applied(snapshot.where, snapshot.device, refuse=False)
            with frozen_context(), policy, no_second_derivative(snapshot.where):
                return torch.func.jvp(gradient, points, tangents)[1]

        return snapshot.columns(vectors.shape[1], column)


class StreamedHVP:
    """J' H_L J + the curvature of <g, f>, g = dL/df held fixed, over chunks of samples.

    The first term needs J V of every sample before any of them goes back, so that losses may
    couple samples; one product passes all chunks twice.
    """

    def __init__(self, linearization: LinearizationBySamples, loss: Loss, y: Any) -> None:
        self._linearization = linearization
        self.value, self._slope, self._outputs = output_curvature(
            linearization.snapshot, loss, y, linearization.outputs
        )

    @property
    def gradient(self) -> Tensor:
        """dL/dtheta (P,), by one pass over the chunks."""
        return self._linearization.vjp(self._slope.reshape(-1, 1))[:, 0]

    def product(self, vectors: Tensor) -> Tensor:
        """H V for V (P, K)."""
        linearization = self._linearization
        rows = vectors.new_empty(linearization.rows, vectors.shape[1])
        out = torch.zeros_like(vectors)

        def use(s: slice, piece: Linearization) -> None:
            assert isinstance(piece, AutogradLinearization)
            rows[linearization.rows_of(s)], curved = piece.second(self._slope[s], vectors)
            out.add_(curved)

        linearization.each(use)
        shaped = rows.reshape(linearization.n_samples, linearization.n_outputs, -1)
        out += linearization.vjp(self._outputs.hessian(shaped).reshape(rows.shape))
        return out


def output_curvature(
    snapshot: Snapshot, loss: Loss, y: Any, outputs: Tensor
) -> tuple[Tensor, Tensor, AutogradHessian]:
    """The loss, its slope dL/df (N, O) and its second derivative at detached outputs (N, O)."""
    with frozen_context():
        f = outputs.clone().requires_grad_()
        value = checked_loss(snapshot, loss, y, f)
        (slope,) = torch.autograd.grad(value, f)
    second = AutogradHessian(lambda moved: loss_value(snapshot, loss, y, moved), outputs, loss.name)
    return value, slope, second


def loss_value(snapshot: Snapshot, loss: Loss, y: Any, outputs: Tensor) -> Tensor:
    """The loss of outputs (N, O); a callable gets them as the model returns them."""
    vector = not loss.convex and snapshot.vector_outputs
    return loss(outputs.squeeze(1) if vector else outputs, y)


def checked_loss(snapshot: Snapshot, loss: Loss, y: Any, outputs: Tensor) -> Tensor:
    """The same, finite and with a graph, or a clear error."""
    value, where = loss_value(snapshot, loss, y, outputs), snapshot.where
    v.require(bool(torch.isfinite(value)), where, "the loss must be finite", value.item())
    v.require(value.requires_grad, where, "the loss must depend on the outputs", "a constant")
    return value


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
