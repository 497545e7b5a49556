"""An optimizer as a tracker sees it: the rates of the step that was taken, metric and threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext._module_copy import unwrapped
from catapult_ext.probes.step_metric import NoMetric, as_real, is_adaptive, step_metric
from catapult_ext.probes.threshold import StabilityThreshold, ThresholdCache


class OptimizerSteps:
    """Rates are read by a hook at the step itself, so that a scheduler called later is not seen.

    Args:
        optimizer: a torch optimizer, a wrapper that holds one as ``optimizer`` (accelerate's), or
            None.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = getattr(optimizer, "optimizer", optimizer)
        self._taken: list[float] | None = None
        self._thresholds = ThresholdCache()
        register = getattr(self.optimizer, "register_step_pre_hook", None)
        self._hook = None if register is None else register(self._before)

    def close(self) -> None:
        """Take the hook away."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = None

    def _before(self, *_: Any) -> None:
        self._taken = self._present()

    def _present(self) -> list[float]:
        groups = getattr(self.optimizer, "param_groups", [])
        return [float(group["lr"]) for group in groups if "lr" in group]

    @property
    def rates(self) -> list[float]:
        """Rate of each group at the last step, or the present one before any step."""
        return self._present() if self._taken is None else self._taken

    @property
    def eta(self) -> float | None:
        """The largest of :attr:`rates`; None without an optimizer."""
        return max(self.rates, default=None)

    @property
    def one_rate(self) -> float | None:
        """The rate, if all groups share one."""
        rates = set(self.rates)
        return rates.pop() if len(rates) == 1 else None

    @property
    def threshold(self) -> StabilityThreshold | None:
        """Metric under the present settings; None without a torch optimizer."""
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            return None
        return self._thresholds.of(self.optimizer)

    def metric(self, model: nn.Module, names: Sequence[str]) -> Tensor | None:
        """Diagonal of lr P^-1 over :attr:`eta`, (P,); None where it is the identity.

        Args:
            model: whose parameters the optimizer trains; those it does not have a metric of 0.
            names: names of the parameters wanted, in order.

        Raises:
            NoMetric: the preconditioner is not known to be diagonal, or has no state yet.
        """
        rates = self.rates
        if not rates:
            return None
        threshold = self.threshold
        if threshold is None:
            return None
        if not is_adaptive(self.optimizer):
            if threshold.preconditioned is None:  # no linear filter, or several
                raise NoMetric(threshold.reason)
            if self.one_rate is not None and not threshold.preconditioned:
                return None
        largest = max(rates)
        weights = [rate / largest if largest > 0 else 1.0 for rate in rates]
        parts = step_metric(self.optimizer, rates, bool(threshold.preconditioned), weights=weights)
        groups = self.optimizer.param_groups
        trained = [p for group in groups for p in group["params"] if p.requires_grad]
        found = {id(p): part for p, part in zip(trained, parts, strict=True)}
        own = dict(unwrapped(model).named_parameters())
        chosen = [(own[name], found.get(id(own[name]))) for name in names]
        flat = [
            torch.zeros_like(as_real(p)).reshape(-1) if part is None else part.reshape(-1)
            for p, part in chosen
        ]
        metric = torch.cat(flat).detach()
        if not bool(torch.isfinite(metric).all()):
            raise NoMetric("the preconditioner is not finite")
        if not bool((metric >= 0).all()):
            raise NoMetric("the preconditioner has negative entries")
        return metric

    def edge(self, preconditioned: bool) -> tuple[float | None, str | None]:
        """k* to which eta times an eigenvalue compares, or why there is none.

        Args:
            preconditioned: whether the eigenvalue is of the optimizer's metric.
        """
        threshold = self.threshold
        if threshold is None:
            return None, None
        if threshold.reason is not None or not math.isfinite(threshold.k):
            return None, threshold.reason
        if threshold.preconditioned and not preconditioned:
            return None, "the eigenvalues are not those of the optimizer's metric"
        return threshold.k, None
