"""The base of the operators that are made of Jacobian products of one linearised model."""

from __future__ import annotations

from catapult_ext.linops.base import LinearOperator
from catapult_ext.linops.engines.base import Linearization
from catapult_ext.linops.engines.plan import Plan


class ModelOperator(LinearOperator):
    """An operator made of the Jacobian products of one frozen model."""

    linearization: Linearization

    def _use(self, linearization: Linearization) -> None:
        self.linearization, self.engine, self.columns = (
            linearization,
            linearization.engine,
            linearization.columns,
        )
        self.dtype, self.device = linearization.dtype, linearization.device

    @property
    def plan(self) -> Plan:
        """Engine, chunks and predicted flops, bytes and peak memory, to be printed."""
        return self.linearization.plan
