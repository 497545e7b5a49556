"""Observables that cost a training loop next to nothing: from losses and gradients it has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext.losses import Loss, SquaredLoss
from catapult_ext.probes.record import BoundedRecord


def learning_rate(optimizer: Any) -> float | None:
    """The optimizer's present rate, if all its groups share one."""
    rates = {float(group["lr"]) for group in getattr(optimizer, "param_groups", [])}
    return rates.pop() if len(rates) == 1 else None


def is_plain_descent(optimizer: Any) -> bool:
    """Whether steps are -lr * gradient: SGD without momentum and weight decay."""
    return isinstance(optimizer, torch.optim.SGD) and all(
        not group["momentum"] and not group["weight_decay"] and not group["maximize"]
        for group in optimizer.param_groups
    )


def squared_gradient(model: nn.Module) -> Tensor | None:
    """Sum of squares of the parameters' ``.grad``, a float64 scalar; None if no gradient is set."""
    held = [p.grad for p in model.parameters() if p.grad is not None]
    if not held:
        return None
    norms = torch.stack(torch._foreach_norm([g.detach() for g in held])).double()
    return norms.square().sum()


class StepObservables:
    """r_t and lambda_r, step by step.

    With L_t and g_t the loss and gradient that step t uses and d_t = -eta g_t:
    ``r`` = 2/eta + 2 (L_{t+1} - L_t) / |d_t|^2, the curvature along the step averaged over it,
    above 2/eta exactly when the loss rises (arXiv 2604.20446; plain full-batch descent), and
    ``lambda_r`` = |g|^2 / (2 L), the Gauss-Newton matrix's curvature along the residual (squared
    losses).  ``r`` of a step is known one step later.
    """

    def __init__(self, loss: Loss) -> None:
        self.squared = isinstance(loss, SquaredLoss)
        self._record: BoundedRecord[dict[str, Any]] = BoundedRecord()
        self._last: dict[str, Any] | None = None  # whatever the record keeps

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The steps that are kept (:class:`~catapult_ext.probes.record.BoundedRecord`)."""
        return self._record.rows

    def follow(
        self,
        step: int,
        loss: float,
        gradient: float | None,
        eta: float | None,
        plain: bool,
        completed: dict[str, Any] | None = None,
    ) -> None:
        """Append step ``step``: its loss, |g|^2, rate, and whether it is plain descent.

        ``completed``: what is known by now of the step before, such as its ``zeta``.
        """
        last = self._last
        if last is not None and last["step"] == step - 1:
            last.update(completed or {})
            size = last["gradient"]
            if last["plain"] and last["eta"] and size:
                moved = (last["eta"] ** 2) * size
                last["r"] = 2 / last["eta"] + 2 * (loss - last["loss"]) / moved
        ratio = None if gradient is None or loss <= 0 else gradient / (2 * loss)
        self._last = {
            "step": step,
            "loss": loss,
            "gradient": gradient,
            "eta": eta,
            "plain": plain,
            "r": None,
            "lambda_r": ratio if self.squared else None,
        }
        self._record.append(self._last)

    def state_dict(self) -> dict[str, Any]:
        """The record."""
        return self._record.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` kept."""
        self._record.load_state_dict(state)
        self._last = self.rows[-1] if self.rows else None  # a record always holds its last row


def top_shares(vectors: Tensor, values: Tensor, gradient: Tensor, loss: float) -> list[float]:
    """Share of a squared loss in each top eigenvector: Pi_i L / L = (x_i.g)^2 / (2 lambda_i L).

    For L = |r|^2/(2m) and the Gauss-Newton matrix J'J/m, J x_i is sqrt(m lambda_i) times the kernel
    eigenvector p_i, hence p_i.r = sqrt(m / lambda_i) x_i.g.

    Args:
        vectors: (P, k) unit eigenvectors.
        values: (k,) their eigenvalues.
        gradient: (P,) of the loss.
        loss: its value.
    """
    parts = (vectors.double().T @ gradient.double()).square()
    positive = values.double().clamp_min(1e-300)
    return (parts / (2 * positive * max(loss, 1e-300))).tolist()


def kernel_drift(now: Tensor, start: Tensor) -> tuple[float, float]:
    """(1 - cos(Theta_t, Theta_0), |Theta_t - Theta_0| / |Theta_0|) of two kernels, float64."""
    a, b = now.double(), start.double()
    size = float(b.norm())
    cosine = float((a * b).sum()) / max(float(a.norm()) * size, 1e-300)
    return 1 - cosine, float((a - b).norm()) / max(size, 1e-300)
