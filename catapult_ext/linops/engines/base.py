"""The base class of the engines, and what they offer to kernels written out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from catapult_ext.linops.model.snapshot import Snapshot

if TYPE_CHECKING:
    from catapult_ext.linops.engines.plan import Plan


class KernelPart(Protocol):
    """Some samples of a frozen model, as far as dense kernels need them."""

    outputs: Tensor  # (n, O)
    workspace: int  # bytes that :meth:`kernel` may use beside its result

    def kernel(self, other: Any, outputs: str) -> Tensor | None:
        """J J2' with another part of the same kind (None: this one).

        See :meth:`Linearization.kernel`.

        ``outputs="diagonal"`` as well; None where the workspace does not suffice.
        """

    def gradient_bytes(self, outputs: str) -> int:
        """Of one sample: derivatives that :meth:`kernel` makes at the least."""


class Linearization(ABC):
    """Products with the Jacobian J (N*O, P) at fixed parameters.  Subclasses are the engines.

    ``outputs`` (N, O); flat output index n*O + o; parameters in ``named_parameters`` order.
    """

    engine: str
    why = "chosen"  # what decided the engine
    columns = 64  # right-hand sides multiplied at once
    workspace = 1 << 30  # bytes that a dense kernel or a diagonal may use beside its result
    kernel_too_large = False  # the last :meth:`kernel` gave None for want of workspace alone
    streamed = False  # frozen anew, chunk by chunk, for every product
    # given by freeze
    make_plan: Callable[[], Plan]
    budget: int | str | None = None  # as the caller wrote it
    room = 1 << 62  # bytes of the budget that are left while no product runs

    def __init__(self, snapshot: Snapshot, outputs: Tensor) -> None:
        self.snapshot = snapshot
        self.outputs = outputs.detach()
        self.n_samples, self.n_outputs = outputs.shape
        self.n_params = snapshot.n_params
        self.dtype, self.device = snapshot.dtype, snapshot.device

    @property
    def plan(self) -> Plan:
        """Engine, chunks and predicted costs; a few samples are run to find them."""
        return self.make_plan()

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

    def diagonal(self) -> Tensor:
        """Diagonal of J J', (N*O,), one backward pass per entry."""
        unit = torch.zeros(self.rows, 1, dtype=self.dtype, device=self.device)
        out = torch.empty(self.rows, dtype=self.dtype, device=self.device)
        for r in range(self.rows):
            unit[r] = 1
            out[r] = self.vjp(unit).square().sum()
            unit[r] = 0
        return out

    def jacobian(self) -> Tensor:
        """J (N*O, P), one backward pass per row."""
        out = torch.empty(self.rows, self.n_params, dtype=self.dtype, device=self.device)
        unit = torch.zeros(self.rows, 1, dtype=self.dtype, device=self.device)
        for r in range(self.rows):
            unit[r] = 1
            out[r] = self.vjp(unit)[:, 0]
            unit[r] = 0
        return out

    def kernel(self, other: Linearization | None, outputs: str) -> Tensor | None:
        """J J2' as ``ops.gram`` lays it out, where the engine knows layer factors; else None."""
        return None

    def kernel_bytes(self, outputs: str) -> int:
        """What :meth:`kernel` takes beside its result."""
        return self.workspace

    def part(self, samples: slice) -> KernelPart | None:
        """Some of the samples for tiles of a kernel; None where they cannot be taken apart."""
        return None
