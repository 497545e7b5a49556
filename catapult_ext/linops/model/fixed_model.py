"""A model at fixed parameters and inputs, as tracing and engines see it.

:class:`~catapult_ext.linops.model.snapshot.Snapshot` makes one of a user's module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from catapult_ext._batches import count_samples, tensors_of

Probe = Literal["kernel", "parameter", "hessian"]


class Counter(Protocol):
    """A meter of forward passes: see :class:`~catapult_ext.linops.model.memory_meter.Meter`."""

    live: int  # bytes that the passes have made and keep


class Choices(Protocol):
    """Choices of the user: see :class:`~catapult_ext.linops.model.policy.Policy`."""

    @property
    def batch_stats(self) -> str | None:
        """``"frozen"`` or ``"coupled"`` for batch norms on the statistics of the batch."""

    @property
    def dropout(self) -> str | None:
        """``"fixed"`` where every random number of a pass is drawn once, from ``seed``."""

    @property
    def seed(self) -> int:
        """Seed of the random numbers."""

    def seeded(self, device: torch.device) -> AbstractContextManager[None]:
        """Random numbers from ``seed`` inside, and the caller's generators as they were after."""


class Notes(Protocol):
    """Facts about a pass: see :class:`~catapult_ext.linops.model.observed.Observed`."""

    hooked: list[Tensor]
    scaled: list[str]
    third: bool
    second: bool
    eps: float

    @property
    def plain(self) -> bool:
        """Whether torch's own operations with their own derivatives alone were seen."""

    @property
    def large_share(self) -> float:
        """Share of large matrix products in the multiply-adds of the pass."""


class FixedModel(ABC):
    """Parameters as one vector, memory, and forward passes at those parameters.

    Attributes:
        where: the public function named in errors.
        probe: the product that the operator makes and a plan measures: ``"kernel"`` J J' u,
            ``"parameter"`` J' J t, or ``"hessian"`` H t.
        policy: what a pass does about batch statistics and random numbers.
        params: the P parameters by name, leaves that require grad, in the order of the vector.
        constants: buffers and all other parameters by name.
        x: the inputs.
        names, shapes, sizes: of the parameters.
        n_params: P.
        dtype, device: of the parameters.
        coarse: passes run in bfloat16 where torch's autocast has it.
        channels_last: images and filters have their channels last.
        output_shape: of what the model returns, shown as (N, O); known after a pass.
        returned_loss: the loss that the model returned with its outputs in the last pass, and of
            which samples; None where it returned none.
        observed: notes on the last pass with graph.
        meter: counts what passes make, and stops one that grows too large; None: nothing counts.
        proofs: by (route, ``coarse``, signature of the pass): why products by that route are wrong,
            "" where they are right.  Parts of the model share it.
    """

    where: str
    probe: Probe
    policy: Choices
    params: dict[str, Tensor]
    constants: dict[str, Tensor]
    x: Any
    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    sizes: tuple[int, ...]
    n_params: int
    dtype: torch.dtype
    device: torch.device
    coarse: bool
    channels_last: bool
    output_shape: tuple[int, ...]
    returned_loss: tuple[float, slice] | None
    observed: Notes
    meter: Counter | None
    proofs: dict[tuple[str, bool, int], str]

    # Passes.

    @abstractmethod
    def call(self, params: Mapping[str, Tensor]) -> Any:
        """The object that the model returns at ``params``."""

    @abstractmethod
    def outputs_in(self, returned: Any) -> Tensor:
        """The tensor of outputs in what the model returned."""

    @abstractmethod
    def outputs(
        self, params: Mapping[str, Tensor], tracer: AbstractContextManager[Any] | None = None
    ) -> Tensor:
        """Outputs (N, O) at ``params``."""

    @abstractmethod
    def forward(self, tracer: AbstractContextManager[Any] | None = None) -> Tensor:
        """Outputs (N, O) with graph of a pass inside ``tracer``, finite and checked."""

    @abstractmethod
    def take_raw_output(self) -> Any:
        """The object that the model returned in the last traced pass; one call gets it."""

    @abstractmethod
    def plain_outputs(self, samples: slice) -> Tensor:
        """Outputs of some samples without graph; checks that other samples do not affect them."""

    @abstractmethod
    def check_repeats(self, outputs: Tensor) -> None:
        """Raise ValueError unless another pass gives ``outputs`` again."""

    @abstractmethod
    def composes(self) -> bool:
        """Whether the last pass with graph has to run again: composed, from now on."""

    @property
    @abstractmethod
    def facts(self) -> set[Any]:
        """Proofs of engines that hold for every pass of this kind: model, shapes, modes, hooks."""

    @abstractmethod
    def require_unchanged(self) -> None:
        """Raise RuntimeError where a parameter that is shared with the user's module changed."""

    @property
    @abstractmethod
    def writes_parameters(self) -> bool:
        """Whether the model writes its parameters in place, so that every pass takes copies."""

    @abstractmethod
    def aside(self) -> AbstractContextManager[None]:
        """Around passes that no product belongs to: nothing is refused, and no state is left."""

    @abstractmethod
    def own_loss(self, loss: Any) -> Any:
        """A copy of ``loss`` that refers to the modules of the last pass."""

    @abstractmethod
    def own_names(self, tensors: Sequence[Tensor]) -> list[str]:
        """Names of those among ``tensors`` that are parameters of the user's module itself."""

    @abstractmethod
    def part(self, samples: slice) -> FixedModel:
        """The same model on some of the samples; parameters and constants are shared."""

    @abstractmethod
    def in_bfloat16(self) -> FixedModel:
        """The same model with passes in bfloat16, where torch's autocast has it."""

    @abstractmethod
    def metered(self, limit: float) -> AbstractContextManager[Counter]:
        """Counts what passes make inside, and stops one that exceeds ``limit`` bytes."""

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The structure of the model; its parameters and buffers may be placeholders."""

    @abstractmethod
    def description(self) -> str:
        """The model as it prints itself."""

    # Memory.

    @property
    def n_samples(self) -> int:
        """N by the inputs: see :func:`~catapult_ext._batches.count_samples`."""
        return count_samples(self.x)

    def as_returned(self, outputs: Tensor) -> Tensor:
        """Outputs (N, O) in the shape that the model returns, of as many samples."""
        shape = self.output_shape
        return outputs.reshape(-1, *shape[1:]) if shape else outputs.reshape(())

    def tensors(self) -> list[Tensor]:
        """All tensors of the snapshot: parameters, constants and inputs."""
        return [*self.params.values(), *self.constants.values(), *tensors_of(self.x)]

    @property
    def bytes(self) -> int:
        """Total size of :meth:`tensors`."""
        return sum(t.numel() * t.element_size() for t in self.tensors())

    @property
    def itemsize(self) -> int:
        """Bytes of one number of the operator's dtype."""
        return next(iter(self.params.values())).element_size()

    # The parameters as one vector.

    def split(self, vector: Tensor) -> list[Tensor]:
        """A flat (P,) vector as views of the parameters' shapes."""
        return [a.view(s) for a, s in zip(vector.split(self.sizes), self.shapes, strict=True)]

    def join(self, grads: list[Tensor | None] | tuple[Tensor | None, ...]) -> Tensor:
        """Per-parameter tensors as one flat (P,) vector; None (an unused parameter) is zero."""
        blocks = [
            p.new_zeros(p.numel())
            if g is None
            else (g.to_dense() if g.is_sparse else g).reshape(-1)
            for g, p in zip(grads, self.params.values(), strict=True)
        ]
        return torch.cat([b.detach() for b in blocks])

    def columns(self, count: int, column: Callable[[int], Any]) -> Tensor:
        """(P, count) whose column k joins the per-parameter tensors ``column(k)``."""
        if count == 1:  # no second copy of what may be the largest tensor of all
            return self.join(column(0)).unsqueeze(1)
        out = torch.empty(count, self.n_params, dtype=self.dtype, device=self.device)
        for k in range(count):
            out[k] = self.join(column(k))
        return out.T
