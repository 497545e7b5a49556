"""Tiles of the kernels of any model: some samples by the uses of its parameters alone."""

from __future__ import annotations

from torch import Tensor

from catapult_ext.linops.engines.base import WORKSPACE
from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.model.memory_meter import LIMITS
from catapult_ext.linops.tracing import parameter_kernel, parameter_rows
from catapult_ext.linops.tracing.parameter_uses import Structured


class UsesPart:
    """Some samples of a model by the uses of its parameters alone, without a second graph."""

    def __init__(self, found: Structured, workspace: int = WORKSPACE) -> None:
        self._found, self.workspace = found, workspace
        self.outputs = found.graph.detach()

    @classmethod
    def of(cls, part: FixedModel, workspace: int = WORKSPACE) -> UsesPart | None:
        """None where uses are not known, or samples are not independent."""
        coupled = part.policy.batch_stats is not None or part.policy.dropout is not None
        if coupled or part.coarse:
            return None
        try:
            found = Structured(part)
        except LIMITS:
            raise
        except Exception:  # the model needs all samples: a graph's edges, statistics of a batch
            return None
        return None if found.why else cls(found, workspace)

    def kernel(self, other: UsesPart | None, outputs: str) -> Tensor | None:
        """J J2' with another part from per-sample gradients; None beyond the workspace."""
        if outputs == "diagonal":
            return parameter_kernel.diagonal(self._found, self.workspace)
        theirs = None if other is None else other._found
        return parameter_kernel.kernel(self._found, theirs, outputs, self.workspace)

    def gradient_bytes(self, outputs: str) -> int:
        """Bytes, for each sample, of the gradients of the largest group of uses."""
        return parameter_rows.gradient_bytes(self._found)
