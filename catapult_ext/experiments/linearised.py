"""A sweep of the network linearised at its initial parameters: all rates in one product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from catapult_ext.experiments.start import Start
from catapult_ext.linops import NTK
from catapult_ext.losses import SquaredLoss
from catapult_ext.probes.record import Projection

DENSE_UP_TO = 6000  # rows; beyond, the kernel is applied without being formed
# Components of the linearised model do not mix, so small ones count too, down to the accuracy of
# the eigenvectors.
LINEAR_SHARE = 0.01


@torch.no_grad()
def linearised_sweep(
    problem: Start, etas: list[float], steps: int, only: int | None = None
) -> list[dict[str, Any]]:
    """Gradient descent of the linearised model at every rate, the rates being K columns.

    ``r <- r - (eta / m) Theta_0 r`` with the fixed kernel Theta_0 (N*O, N*O) and the residual
    r = f - y: exact for the linearised model, one product with K columns per step. A column above
    the cut leaves the product. Costs T products with an (N*O, N*O) matrix.

    Args:
        problem: start of the runs, with the kernel's top eigenvectors.
        etas: the K learning rates.
        steps: number of steps T.
        only: follow the first eigenvectors of the top space alone; None for all of them.

    Returns:
        One record per rate: ``loss``, ``projection``, ``growth``, ``diverged_at``.

    Raises:
        ValueError: for a loss that is not squared, whose residual is not linear in f.
    """
    loss, model, (x, y) = problem.loss, problem.model, problem.data.train
    if not isinstance(loss, SquaredLoss):
        raise ValueError(
            f"catapult_ext.experiments: linearised=True needs a squared loss, got {loss.name}"
        )
    model.load_state_dict(problem.state)
    outputs = model(x.clone())
    m = loss.normaliser(outputs, y)
    kernel = NTK(model, x)
    product = kernel.dense() if kernel.shape[0] <= DENSE_UP_TO else kernel
    residual = (outputs - y).reshape(-1, 1).repeat(1, len(etas))
    rates = torch.tensor(etas, dtype=torch.float64, device="cpu").to(residual) / m
    assert problem.top.vectors is not None
    projection = Projection(problem.top.vectors[:, :only], len(etas), LINEAR_SHARE)
    curves: list[list[float]] = [[] for _ in etas]
    diverged = [-1] * len(etas)
    alive = list(range(len(etas)))
    for step in range(steps + 1):
        values = _losses(residual, m)
        for i, column in enumerate(alive):
            curves[column].append(values[i])
            if not values[i] <= problem.cut:
                diverged[column] = step
        projection.follow(residual, alive)
        keep = [i for i, column in enumerate(alive) if diverged[column] < 0]
        if not keep:
            break
        if len(keep) < len(alive):
            alive = [alive[i] for i in keep]
            residual = residual[:, keep].contiguous()
        residual = residual - (product @ residual) * rates[alive]
    return [
        {
            "eta": eta,
            "loss": curves[i],
            "projection": projection.norm[i],
            "growth": projection.growth[i],
            "diverged_at": diverged[i],
        }
        for i, eta in enumerate(etas)
    ]


def _losses(residual: Tensor, m: float) -> list[float]:
    return (residual.double().square().sum(dim=0) / (2 * m)).tolist()
