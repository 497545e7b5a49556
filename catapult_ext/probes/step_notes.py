"""Numbers that a loop has at every step: loss, gradient, zeta, and whether they have jumped."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from catapult_ext._state import attributes, put
from catapult_ext.losses import Loss
from catapult_ext.probes import free
from catapult_ext.probes.edge_meter import EdgeMeter
from catapult_ext.probes.edge_row import EdgeRow
from catapult_ext.probes.jumps import Jumps
from catapult_ext.probes.late_numbers import LateNumbers
from catapult_ext.probes.optimizer_steps import OptimizerSteps
from catapult_ext.probes.overhead import Overhead

_FREE_SHARE = 1 / 3  # of a budget, for the norms of gradients
_STATE = ("jumped", "_norms")


class StepNotes:
    """The steps that a tracker has seen; numbers of a GPU are noted when they have arrived.

    Args:
        model: the module trained.
        loss: the loss trained.
        overhead: whose budget the norms of gradients keep to.

    Attributes:
        jumped: whether a loss or a gradient has jumped since the last probe.
        edge: meter of zeta, or None.
    """

    def __init__(self, model: nn.Module, loss: Loss, overhead: Overhead) -> None:
        self.jumped = False
        self.edge: EdgeMeter | None = None
        self._model, self._overhead = model, overhead
        self._free = free.StepObservables(loss)
        self._late = LateNumbers(self._arrived)
        self._jumps = Jumps()
        self._norms = 0.0  # seconds spent on the norms of gradients

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One a step, all that is known by now."""
        self._late.take_all()
        return self._free.rows

    def take(self, loss: Tensor | float | None, step: int, steps: OptimizerSteps) -> None:
        """Note the loss and the gradient of ``step``."""
        eta, plain = steps.one_rate, free.is_plain_descent(steps.optimizer)
        if isinstance(loss, Tensor) and loss.is_cuda and self.edge is None:
            gradient = self._squared_gradient()
            numbers = [loss] if gradient is None else [loss, gradient.to(loss.device)]
            self._late.put(numbers, step, eta, plain)
            self._late.take_arrived()
            return
        value = loss.item() if isinstance(loss, Tensor) else loss
        edge = None if self.edge is None else self.edge.step(value)
        if value is not None:
            gradient = self._squared_gradient()
            found = [float(value)] if gradient is None else [float(value), float(gradient)]
            self._arrived(found, step, eta, plain, _zeta(edge))

    def take_all(self) -> None:
        """Wait for what a GPU has not handed over yet."""
        self._late.take_all()

    def probed(self) -> None:
        """A probe was made."""
        self._jumps.probed()
        self.jumped = False

    def last_zeta(self) -> float | None:
        """Zeta of the last step that has one; None without ``edge``."""
        found = [row["zeta"] for row in self._free.rows[-2:] if row.get("zeta") is not None]
        return found[-1] if found else None

    def close(self) -> None:
        """Take the hooks of the meter away."""
        if self.edge is not None:
            self.edge.close()
            self.edge = None

    def state_dict(self) -> dict[str, Any]:
        """Without that of ``edge``."""
        self._late.take_all()
        parts = {"free": self._free.state_dict(), "jumps": self._jumps.state_dict()}
        return {**attributes(self, _STATE), **parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` kept."""
        put(self, _STATE, state)
        self._free.load_state_dict(state["free"])
        self._jumps.load_state_dict(state["jumps"])

    def _arrived(
        self,
        numbers: list[float],
        step: int,
        eta: float | None,
        plain: bool,
        zeta: dict[str, Any] | None = None,
    ) -> None:
        """Follow the loss and, where it was taken, the squared gradient of ``step``."""
        value, gradient = numbers[0], numbers[1] if len(numbers) > 1 else None
        self._free.follow(step, value, gradient, eta, plain, zeta)
        norm = None if gradient is None else math.sqrt(gradient)
        self.jumped |= self._jumps.follow(loss=value, gradient=norm)

    def _squared_gradient(self) -> Tensor | None:
        """|g|^2, at as many steps as its share of a budget pays for."""
        began = self._overhead.clock()
        budget = self._overhead.budget
        if budget is not None and self._norms > _FREE_SHARE * budget * self._overhead.training:
            return None
        value = free.squared_gradient(self._model)
        self._norms += self._overhead.clock() - began
        return value


def _zeta(edge: EdgeRow | None) -> dict[str, Any]:
    """Zeta of the last step, as far as the meter has completed it."""
    if edge is None:
        return {}
    zeta = edge["zeta"] if math.isfinite(edge["zeta"]) else None
    return {"zeta": zeta, "zeta_flags": edge["flags"]}
