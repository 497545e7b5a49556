"""Gradient descent at the edge of stability, and Damian, Nichani and Lee's equation for it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import losses
from catapult_ext.eig import eigsh
from catapult_ext.experiments.reproduce.outcome import correlation
from catapult_ext.linops import Hessian
from catapult_ext.probes.record import Row, columns
from catapult_ext.training import steps, whole

TOL = 1e-4  # changes of the sharpness from step to step are small


class _Landscape:
    """Loss, gradient, sharpness and its gradient at any weights of a model, as flat vectors."""

    def __init__(self, model: nn.Module, loss: losses.Loss, data: tuple[Tensor, Tensor]) -> None:
        self.model, self.loss, self.data = model, loss, data
        self.weights: list[Tensor] = list(model.parameters())
        self.vector: Tensor | None = None

    def at(self) -> Tensor:
        """Where the model is."""
        return torch.nn.utils.parameters_to_vector(self.weights).detach()

    def go(self, place: Tensor) -> Tensor:
        """Move the model; returns the loss there, with its graph."""
        torch.nn.utils.vector_to_parameters(place, self.weights)
        x, y = self.data
        return self.loss(self.model(x), y)

    def sharpness(self, place: Tensor) -> tuple[float, Tensor]:
        """Top Hessian eigenvalue and its eigenvector."""
        self.go(place)
        hessian = Hessian(self.model, self.loss, self.data)
        found = eigsh(hessian, k=1, tol=TOL, v0=self.vector)
        self.vector = found.eigenvectors
        return float(found.eigenvalues[0]), found.eigenvectors[:, 0]

    def third(self, place: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of the loss, and of the curvature u' H u."""
        gradient = _join(torch.autograd.grad(self.go(place), self.weights, create_graph=True))
        curved = _join(torch.autograd.grad(gradient @ u, self.weights, create_graph=True))
        return gradient.detach(), _join(torch.autograd.grad(curved @ u, self.weights))


def _join(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.reshape(-1) for p in parts])


def follow(
    model: nn.Module,
    loss: losses.Loss,
    data: tuple[Tensor, Tensor],
    ratio: float,
    approach: int,
    window: int,
) -> dict[str, Any]:
    """Gradient descent with eta = 2 / (ratio S_0); every step of ``window`` once eta S reaches 2.

    The centre of the oscillation is (w_{t-1} + 2 w_t + w_{t+1}) / 4, where sharpness S, its
    eigenvector u, alpha = -grad L . grad S and beta = |grad S|^2 are taken, the gradients without
    their components along u; x is the displacement of w_t from it along u.

    Returns:
        ``step``, ``loss``, ``sharpness`` (eta S), ``predicted`` (eta^2 (alpha - beta x^2 / 2), the
        change of eta S in the step) as lists; ``slope`` and ``correlation`` of the measured with
        the predicted changes; ``highest`` and ``lowest_after`` of eta S, ``loss_peak`` over the
        loss at the crossing. All None where the edge is not reached.
    """
    land = _Landscape(model, loss, data)
    path = [land.at()]
    value, _ = land.sharpness(path[0])
    eta = 2 / (ratio * value)

    def move(gradients: Any) -> None:  # not in place: the last three points are needed
        path.append(path[-1] - eta * _join(gradients))
        del path[:-3]
        torch.nn.utils.vector_to_parameters(path[-1], land.weights)

    found: dict[str, Any] = {"eta": eta, "crossed_at": None, "slope": None, "correlation": None}
    found |= {"highest": None, "lowest_after": None, "loss_peak": None}
    rows: list[Row] = []
    height = value
    batches, count = whole(*data), approach + window + 1
    for step in steps(model, land.weights, batches, loss, count, move):
        middle, before, height = step.number - 1, height, step.loss  # of the last three points
        if found["crossed_at"] is None:
            if middle > 0 and middle % 5 == 0 and eta * land.sharpness(path[-1])[0] >= 2:
                found["crossed_at"] = middle
            elif middle >= approach:
                break
            continue
        if middle > found["crossed_at"] + window:
            break
        sharpness, change = _predict(land, path, eta)
        rows.append({"step": middle, "loss": before, "sharpness": sharpness, "predicted": change})
    curves = columns(rows, ["step", "loss", "sharpness", "predicted"])
    return found | curves | _summary(curves)


def _predict(land: _Landscape, path: list[Tensor], eta: float) -> tuple[float, float]:
    """Eta S at the centre of the last three points, and its predicted change."""
    centre = (path[0] + 2 * path[1] + path[2]) / 4
    value, u = land.sharpness(centre)
    gradient, rising = land.third(centre, u)
    gradient, rising = gradient - (gradient @ u) * u, rising - (rising @ u) * u
    alpha, beta = -(gradient @ rising).item(), (rising @ rising).item()
    x = (u @ (path[1] - centre)).item()
    return eta * value, eta**2 * (alpha - beta * x * x / 2)


def _summary(columns: dict[str, list[float]]) -> dict[str, Any]:
    sharpness, predicted = columns["sharpness"], columns["predicted"][:-1]
    if len(sharpness) < 3:
        return {}
    got = [b - a for a, b in itertools.pairwise(sharpness)]
    weight = sum(p * p for p in predicted)
    top = sharpness.index(max(sharpness))
    return {
        "slope": sum(p * g for p, g in zip(predicted, got, strict=True)) / weight,
        "correlation": correlation(predicted, got),
        "highest": max(sharpness),
        "lowest_after": min(sharpness[top:]),
        "loss_peak": max(columns["loss"]) / columns["loss"][0],
    }
