"""What every engine of a frozen model offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from catapult_ext.linops.snapshot import Snapshot


class Frozen(ABC):
    """Products with the Jacobian J (N*O, P) at fixed parameters.  Subclasses are the engines.

    ``outputs`` (N, O); flat output index n*O + o; parameters in ``named_parameters`` order.
    """

    engine: str

    def __init__(self, snapshot: Snapshot, outputs: Tensor) -> None:
        self.snapshot = snapshot
        self.outputs = outputs.detach()
        self.n_samples, self.n_outputs = outputs.shape
        self.n_params = snapshot.n_params
        self.dtype, self.device = snapshot.dtype, snapshot.device

    @property
    def rows(self) -> int:
        """N*O."""
        return self.n_samples * self.n_outputs

    @abstractmethod
    def vjp(self, u: Tensor) -> Tensor:
        """J' u: (N*O, K) to (P, K)."""

    @abstractmethod
    def jvp(self, t: Tensor) -> Tensor:
        """J t: (P, K) to (N*O, K)."""

    def ntk(self, u: Tensor) -> Tensor:
        """J J' u: (N*O, K) to (N*O, K)."""
        return self.jvp(self.vjp(u))

    def kernel(self, other: Frozen | None, outputs: str) -> Tensor | None:
        """J J2' as ``ops.gram`` lays it out, where the engine knows layer factors; else None."""
        return None
