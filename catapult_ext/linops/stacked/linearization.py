"""The base class of the ways to multiply by the Jacobians of R models together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self


class StackedLinearization(ABC):
    """Products with the Jacobians J (N*O, P) of R models at fixed parameters.

    Attributes:
        engine: the name of the way, for the plan.
        why: what decided it.
        names: names of the parameters, in order.
        n_params: P.
        outputs: (R, N, O), in the order n*O + o of the flat index.
        output_shape: (N, d1, ..., dk) of each model's outputs as it returns them.
        rounding_unit: of the least precise numbers of the forward pass.
        columns: right-hand sides multiplied at once.
        at_once: replicas that the workspace of a product of one column suffices for.
    """

    engine: str
    why: str
    names: tuple[str, ...]
    n_params: int
    outputs: Tensor
    output_shape: tuple[int, ...]
    rounding_unit: float
    columns: int = 64
    at_once: int

    @property
    def replicas(self) -> int:
        """R."""
        return len(self.outputs)

    @property
    def rows(self) -> int:
        """N*O."""
        return self.outputs[0].numel()

    @abstractmethod
    def vjp(self, u: Tensor) -> Tensor:
        """J' u: (R, N*O, K) to (R, P, K)."""

    @abstractmethod
    def jvp(self, t: Tensor) -> Tensor:
        """J t: (R, P, K) to (R, N*O, K)."""

    @abstractmethod
    def select(self, index: Tensor) -> Self:
        """Linearization of the replicas ``index``."""

    def ntk(self, u: Tensor) -> Tensor:
        """J J' u: (R, N*O, K) to (R, N*O, K)."""
        return self.jvp(self.vjp(u))

    def kernel(self, outputs: str) -> Tensor | None:
        """J J' (R, N*O, N*O) for ``"all"``, (R, N*O) for ``"diagonal"``; None: by products."""
        return None

    def written_out(self, seed: Tensor | None) -> Tensor | None:
        """S' J J' S (R, N*O, N*O) where solves with them are cheaper than products; else None.

        Args:
            seed: S' of each sample, (R, N, O, O); None: the identity.
        """
        return None


def some(tensor: Tensor, index: Tensor) -> Tensor:
    """Rows of a tensor: a view where ``index`` counts up by one, else a copy."""
    first, count = int(index[0]), len(index)
    if torch.equal(index, torch.arange(first, first + count, device="cpu")):
        return tensor[first : first + count]
    return tensor.index_select(0, index.to(tensor.device))


def masked(delta: Tensor, slope: Tensor | None) -> Tensor:
    """Rows (R, N, K, p) times a slope (R, N, p)."""
    return delta if slope is None else delta * slope.unsqueeze(2)


def times(x: Tensor, matrix: Tensor) -> Tensor:
    """Rows (R, N, K, p) times matrices (R, p, d), one product a replica."""
    r, n, k, p = x.shape
    return torch.bmm(x.reshape(r, n * k, p), matrix).view(r, n, k, -1)
