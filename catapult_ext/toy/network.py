"""The two-layer network f = W^-1/2 v . phi(U x) of many replicas at once, in plain torch.

The number of rows of U may be less than the width W of the model: with a linear activation, plain
or heavy-ball gradient descent with or without L2, on all samples or on some, commutes with
rotations of the hidden space, where the columns of U and v span at most D + 1 directions. D + 1
rows are thus an exact model of any width, which is then only the W in f = W^-1/2 v . phi(U x).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from catapult_ext.toy.activations import Activation
from catapult_ext.toy.problem import Data

# Residuals (A, N) over the normaliser of the loss -> gradients of U (A, H, D) and v (A, H).
PullBack = Callable[[Tensor], tuple[Tensor, Tensor]]


class Network(NamedTuple):
    """f = W^-1/2 v . phi(U x) for A replicas at once, U (A, H, D) and v (A, H)."""

    phi: Activation
    width: float

    @property
    def linear(self) -> bool:
        """Whether phi is the identity."""
        return self.phi.name == "linear"

    def run(self, U: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, PullBack]:
        """Outputs (A, N) and their vector-Jacobian product."""
        scale = self.width**-0.5
        if self.linear:
            w = (v[:, None, :] @ U)[:, 0]

            def pull_linear(r: Tensor) -> tuple[Tensor, Tensor]:
                zeta = scale * (r @ x)
                return v[:, :, None] * zeta[:, None, :], (U @ zeta[:, :, None])[:, :, 0]

            return scale * (w @ x.mT), pull_linear
        hidden, slope = self.phi.both(U @ x.mT)  # (A, H, N)

        def pull_back(r: Tensor) -> tuple[Tensor, Tensor]:
            inner = (slope * r[:, None, :]) @ x
            return inner.mul_(scale * v[:, :, None]), scale * (hidden @ r[:, :, None])[:, :, 0]

        return scale * (v[:, None, :] @ hidden)[:, 0], pull_back

    def kernel(self, U: Tensor, v: Tensor, x: Tensor) -> Tensor:
        """(A, N, N) kernel of the gradients, divided by N: X (U'U + |v|^2) X' / (N W) if linear."""
        if self.linear:
            inner = U.mT @ U
            inner.diagonal(dim1=1, dim2=2).add_(v.square().sum(1)[:, None])
            kernel = x @ inner @ x.mT
        else:
            hidden, slope = self.phi.both(U @ x.mT)
            pulled = slope.mul_(v[:, :, None])
            kernel = hidden.mT @ hidden + (x @ x.mT) * (pulled.mT @ pulled)
        return kernel / (self.width * len(x))

    def cut(self, data: Data, U: Tensor, v: Tensor) -> Tensor:
        """(A,) loss beyond which a run counts as diverged: the rule of ``ops.toy_gd``.

        1000 times the loss of the largest outputs that weights of this norm can give.
        """
        norm = U.double().square().sum((1, 2)) + v.double().square().sum(1)
        reach = self.phi.steepest * data.x.double().norm() * norm / (2 * math.sqrt(self.width))
        reach += abs(self.phi.at_zero) * math.sqrt(len(data.x)) * v.double().norm(dim=1)
        bound = (reach + data.y.double().norm()).square() / (2 * len(data.x))
        return (1e3 * bound).clamp(max=torch.finfo(U.dtype).max).to(U.dtype)
