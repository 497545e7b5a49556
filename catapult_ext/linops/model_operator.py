"""The base of the operators that are made of Jacobian products of one linearized model."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from catapult_ext._deprecated import warn_renamed
from catapult_ext.linops.base import LinearOperator
from catapult_ext.linops.engines.base import Linearization
from catapult_ext.linops.engines.mixed_precision import format_of, mixed_text
from catapult_ext.linops.engines.plan import Plan
from catapult_ext.linops.model.captured import CapturedProducts
from catapult_ext.linops.model.fixed_model import Probe
from catapult_ext.linops.model.keeps_graph import KeepsGraph

if TYPE_CHECKING:
    from typing_extensions import Self


class ModelOperator(KeepsGraph, LinearOperator):
    """An operator made of the Jacobian products of one linearized model.

    Attributes:
        linearization: the Jacobian products.
        engine: the name of the engine that makes them.
        probe: the product by which a plan predicts costs.
    """

    linearization: Linearization
    engine: str
    probe: ClassVar[Probe] = "parameter"
    _graphs: CapturedProducts | None = None

    def _use(self, linearization: Linearization) -> None:
        self.linearization, self.engine = linearization, linearization.engine
        self.columns = linearization.columns
        self.dtype, self.device = linearization.dtype, linearization.device
        asked = linearization.allowance.graphs
        self._graphs = None if asked is None else asked.another()

    def _product(self, vectors: Tensor) -> Tensor:
        self.linearization.snapshot.require_unchanged()
        return super()._product(vectors)

    def _at_once(self, vectors: Tensor) -> Tensor:
        graphs = self._graphs
        return self._matmat(vectors) if graphs is None else graphs.product(self._matmat, vectors)

    def _on(self, linearization: Linearization) -> Self:
        """The same operator made of other products of the same model."""
        out = copy.copy(self)
        out._use(linearization)
        return out

    @property
    def plan(self) -> Plan:
        """Engine, chunks and predicted flops, bytes and peak memory, to be printed."""
        made = self.linearization
        return replace(made.plan, mixed=mixed_text(made.snapshot, made.streamed))

    @property
    def mixed(self) -> str:
        """Format of products of ``eigsh(precision="mixed")``: ``"int16"``, ``"bfloat16"``, ``""``.

        An empty string means full precision.  :attr:`plan` gives the reason.
        """
        return format_of(self.linearization.snapshot, self.linearization.streamed)[0]

    @property
    def budget(self) -> int | None:
        """Bytes of ``memory_budget``; None where none was given."""
        return None if self.linearization.allowance.budget is None else self.plan.budget

    def solver_room(self, columns: int) -> int | None:
        """Bytes of the budget that a product of ``columns`` leaves; None without a budget."""
        return None if self.budget is None else self.plan.room(min(columns, self.columns))

    @property
    def rounding_unit(self) -> float:
        """Eps of ``dtype``, or of what the forward pass computes in where that is coarser."""
        return self.linearization.snapshot.observed.eps

    @property
    def n_samples(self) -> int:
        """N: the leading size of the outputs."""
        return self.output_shape[0] if self.output_shape else 1

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(N, d1, ..., dk) of the outputs as the model returns them."""
        return self.linearization.snapshot.output_shape

    @property
    def n_params(self) -> int:
        """P."""
        return self.linearization.n_params

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters that J differentiates by, in order."""
        return self.linearization.snapshot.names

    @property
    def parameter_shapes(self) -> tuple[torch.Size, ...]:
        """Shapes of these parameters; a complex one has a last dimension of its two parts."""
        return self.linearization.snapshot.shapes

    @property
    def frozen(self) -> Linearization:
        """Deprecated: the old name of ``linearization``."""
        warn_renamed(f"{self.name}.frozen", f"{self.name}.linearization")
        return self.linearization
