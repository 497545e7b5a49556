"""One loss of R networks on shared targets, each value from its own outputs alone."""

from __future__ import annotations

import torch
from torch import Tensor

from catapult_ext.losses import Loss, SquaredLoss


class StackedLoss:
    """One loss of R outputs (R, N, O) on targets that all of them share."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self._given: Tensor | None = None
        self._targets: Tensor | None = None
        self._normaliser = 1.0

    def _check(self, f: Tensor, y: Tensor) -> Tensor:
        """The targets in the layout of the outputs; checked where they are new."""
        if self._targets is None or y is not self._given:
            self._given, self._targets = y, self.loss.targets(f[0], y)
            if isinstance(self.loss, SquaredLoss):
                self._normaliser = self.loss.normaliser(f[0], y)
        return self._targets

    def values(self, f: Tensor, y: Tensor) -> Tensor:
        """(R,) losses, each from its own outputs alone."""
        return torch.func.vmap(self.loss.value, in_dims=(0, None))(f, self._check(f, y))

    def __call__(self, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) losses and their derivatives (R, N, O) with respect to the outputs."""
        targets = self._check(f, y)
        if isinstance(self.loss, SquaredLoss):
            slope = f - targets
            values = slope.square().sum(dim=(1, 2)) / (2 * self._normaliser)
            return values, slope.div_(self._normaliser)
        with torch.enable_grad():
            leaf = f.detach().requires_grad_()
            values = self.values(leaf, y)
            (slope,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), slope
