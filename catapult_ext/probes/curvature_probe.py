"""One probe of a tracker: the top of a spectrum at the present parameters, as a row."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext._state import attributes, put
from catapult_ext.eig import EigshResult, TopTracker
from catapult_ext.linops import GGN, NTK, Hessian, Preconditioned
from catapult_ext.linops.ggn import DualGGN
from catapult_ext.losses import Loss, SquaredLoss
from catapult_ext.models import batch_stats_held, with_batch_stats
from catapult_ext.probes import free
from catapult_ext.probes.observables import Activity, ActivityWatch, activity, weight_norm
from catapult_ext.probes.optimizer_steps import OptimizerSteps
from catapult_ext.probes.problem import Problem
from catapult_ext.probes.record import Row
from catapult_ext.probes.step_metric import NoMetric

Quantity = Literal["ggn", "hessian", "ntk"]
QUANTITIES = get_args(Quantity)
_STATE = ("made", "_last_check", "_kernel")
_ABOVE_TOL = 2.0  # an error above this multiple of tol is one of rounding


class CurvatureProbe:
    """Measures rows, each warm-started from the last one.

    Args:
        model: the module trained.
        loss: the loss trained.
        quantity: one of ``QUANTITIES``.
        top: follows the eigenvalues.
        fixed: whether every probe has the same samples.
        preconditioned: None where the optimizer's metric is used if it is known; see
            :class:`~catapult_ext.CurvatureTracker`.
        kernel_samples: samples of the trace kernel whose drift is measured.
        batch_stats: treatment of batch normalisation.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        quantity: str,
        top: TopTracker,
        *,
        fixed: bool,
        preconditioned: bool | None,
        kernel_samples: int,
        batch_stats: str | None,
    ) -> None:
        self.model, self.loss = model, loss
        self.quantity, self.top = quantity, top
        self.fixed, self.preconditioned = fixed, preconditioned
        self.kernel_samples, self.batch_stats = kernel_samples, batch_stats
        self.steps = OptimizerSteps(None)
        self.made = 0
        self._last_check = 0
        self._kernel: Tensor | None = None

    def measure(self, step: int, data: Problem, check: bool) -> Row:
        """The row after ``step`` steps.

        Args:
            step: steps made.
            data: the samples, and the model's call.
            check: make a checked solve.

        Raises:
            NotFinite: the model, the loss or a product is not finite.
        """
        drawn = data.dropout is not None
        still = batch_stats_held(self.model, self.batch_stats, data.outputs, drawn=drawn)
        with still as (held, policy):
            options = {**data.options, "batch_stats": policy, "check": not self.made}
            row = self._measured(step, held, data, check, options)
        self.made += 1
        return row

    def state_dict(self) -> dict[str, Any]:
        """The state on which later rows depend, except that of ``top``."""
        return attributes(self, _STATE)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` kept."""
        put(self, _STATE, state)

    def lost(self, step: int, flag: str, reason: str | None = None) -> Row:
        """A row of NaN with a flag, for a probe that could not be made."""
        return self._row(step, [float("nan")] * self.top.k, flag, reason)

    def _row(self, step: int, values: list[float], flag: str, reason: str | None) -> Row:
        """A row with what every probe has; the rest not measured yet."""
        eta = self.steps.eta
        return {
            "step": step,
            "values": values,
            "errors": values,
            "index_check": "none",
            "products": 0,
            "flags": [flag],
            "eta": eta,
            "eta_lambda": None if eta is None else eta * values[0],
            "preconditioned": False,
            "threshold": None,
            "reason": reason,
            "weight_norm": weight_norm(self.model),
            "inactive": None,
            "top_shares": None,
            "drift": None,
            "drift_norm": None,
        }

    def _measured(
        self, step: int, held: nn.Module, data: Problem, check: bool, options: dict[str, Any]
    ) -> Row:
        with ActivityWatch(held) as watch:  # in the forward pass that freezes the model
            operator = self._operator(held, data, options)
        metric, reason = self._metric(operator)
        followed = self._followed(operator, metric)
        found = self.top.update(followed, check=check)
        inherited = found.index_check == "inherited"
        self._last_check = self._last_check if inherited else step
        row = self._row(step, found.eigenvalues.tolist(), "", reason)
        row["errors"], row["products"] = found.errors.tolist(), found.matvecs
        row["index_check"], row["flags"] = found.index_check, self._flags(found)
        if inherited:
            row["index_check"] = f"inherited since step {self._last_check}"
        row["preconditioned"] = metric is not None
        if metric is None:
            row["eta"] = self.steps.one_rate
            row["eta_lambda"] = None if row["eta"] is None else row["eta"] * row["values"][0]
        if self.quantity != "ntk":
            row["threshold"], missing = self.steps.edge(metric is not None)
            row["reason"] = reason or missing
        row["top_shares"] = self._shares(operator, followed, found, data.y, metric)
        if watch.watches:
            active = watch.found(data.n_samples) or self._activity(data)
            row["inactive"] = None if active is None else active.inactive
        if self.kernel_samples:
            few = data.first(self.kernel_samples)
            kernel = NTK(held, few.x, **options).dense(outputs="trace")
            self._kernel = kernel if self._kernel is None else self._kernel
            row["drift"], row["drift_norm"] = free.kernel_drift(kernel, self._kernel)
        return row

    def _activity(self, data: Problem) -> Activity | None:
        """By a forward pass of its own, which leaves running averages alone."""
        drawn = data.dropout is not None
        still = with_batch_stats(self.model, self.batch_stats, data.outputs, drawn=drawn)
        return activity(still, data.x, data.outputs)[1]

    def _operator(self, model: nn.Module, data: Problem, options: dict[str, Any]) -> Any:
        if self.quantity == "ntk":
            return NTK(model, data.x, **options)
        kind = GGN if self.quantity == "ggn" else Hessian
        return kind(model, self.loss, data.data, **options)

    def _metric(self, operator: Any) -> tuple[Tensor | None, str | None]:
        """The optimizer's metric (P,), None for the identity or where it is not known, and why."""
        if self.preconditioned is False or self.quantity == "ntk":
            return None, None
        try:
            return self.steps.metric(self.model, operator.parameter_names), None
        except NoMetric as error:
            needs = "preconditioned=True needs a diagonal preconditioner"
            v.require(self.preconditioned is None, "CurvatureTracker", needs, error)
            return None, str(error)

    def _followed(self, operator: Any, metric: Tensor | None) -> Any:
        """The smaller space where there is one: its vectors serve, nothing is lifted."""
        if metric is not None:
            return Preconditioned.by(operator, metric)
        dual = operator.dual() if hasattr(operator, "dual") else None
        if dual is None:
            return operator
        if not self.fixed:
            # another batch has another sample space: follow the vectors of parameter space
            return _WithoutDual(operator)
        return dual.operator if self.top.k <= dual.operator.shape[0] else operator

    def _flags(self, found: EigshResult) -> list[str]:
        flags = [] if found.index_check == "inherited" else ["checked"]
        if not found.converged:
            return [*flags, "missed"]
        asked = self.top.between if found.index_check == "inherited" else self.top.tol
        loose = found.errors > _ABOVE_TOL * asked * found.eigenvalues.abs()
        return [*flags, "rounding"] if bool(loose.any()) else flags

    def _shares(
        self, operator: Any, followed: Any, found: EigshResult, y: Any, metric: Tensor | None
    ) -> list[float] | None:
        if isinstance(operator, Hessian) or not isinstance(self.loss, SquaredLoss):
            return None
        f = operator.linearization.snapshot.as_returned(operator.linearization.outputs)
        targets = self.loss.targets(f, y)
        residual = (f - targets).reshape(-1, 1)
        if isinstance(followed, (NTK, DualGGN)):  # the same space for a squared loss
            parts = found.eigenvectors.double().T @ residual.double()
            return (parts.square() / residual.double().square().sum())[:, 0].tolist()
        gradient = operator.linearization.vjp(residual / self.loss.normaliser(f, y))[:, 0]
        value = self.loss.value(f, targets).item()
        if metric is not None:  # kernel J D J' in place of J J'
            gradient = gradient * metric.to(gradient).sqrt()
        return free.top_shares(found.eigenvectors, found.eigenvalues, gradient, value)


class _WithoutDual:
    """An operator seen through shape, dtype, device and @ only."""

    def __init__(self, operator: Any) -> None:
        self._operator = operator
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device
        self.skew_is_rounding = operator.skew_is_rounding
        self.rounding_unit = operator.rounding_unit

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self._operator @ vectors
