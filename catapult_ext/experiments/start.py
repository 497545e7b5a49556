"""Where training runs start: a network on its data, with its curvature and its divergence cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext import losses
from catapult_ext._module_copy import own_copy
from catapult_ext.data import Dataset
from catapult_ext.experiments.curvature import TopSpace, top_curvature, top_space
from catapult_ext.models import with_batch_stats
from catapult_ext.probes import divergence_cut, hidden_width
from catapult_ext.training import Recipe

EVALUATED_AT_ONCE = 1024  # samples of one forward pass that needs no gradient


@dataclass(frozen=True)
class Start:
    """A network at its initial parameters on its data, with the curvature there.

    Attributes:
        model: trained in place; ``state`` brings it back.
        state: parameters and buffers at the start.
        loss: the loss trained (without the L2 penalty).
        data: training and test set.
        top: top eigenvalue of the loss's Gauss-Newton matrix on the probe samples, and the top
            kernel eigenspace where the recipe asks for it.
        loss0: initial training loss.
        cut: loss above which a run is given up.
        options: options of the operators.
    """

    model: nn.Module
    state: dict[str, Tensor]
    loss: losses.Loss
    data: Dataset
    top: TopSpace
    loss0: float
    cut: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def lambda0(self) -> float:
        """Top eigenvalue of the loss's Gauss-Newton matrix."""
        return self.top.lambda0

    def eta(self, c: float, recipe: Recipe) -> float:
        """The learning rate c / (lambda_0 + alpha), alpha the recipe's L2."""
        return c / (self.lambda0 + recipe.l2)


@torch.no_grad()
def start(
    model: nn.Module,
    data: Dataset,
    loss: Any,
    recipe: Recipe,
    *,
    cut: float | None = None,
    tol: float | None = None,
    where: str = "experiments.start",
    options: dict[str, Any] | None = None,
) -> Start:
    """Measure the curvature at the start; the model is copied.

    Args:
        model: with (N, O) outputs.
        data: training and test set.
        loss: see :func:`catapult_ext.losses.resolve`.
        recipe: how the runs will train.
        cut: loss above which a run is given up; default ``probes.divergence_cut``.
        tol: relative error of lambda_0; default a tenth of the recipe's, at most 1e-4.
        where: the public function named in errors.
        options: options of the operators.

    Raises:
        ValueError: a loss without Gauss-Newton matrix, or a model that does not fit the data.
    """
    resolved = losses.resolve(loss)
    v.require(resolved.convex, where, "loss must have a Gauss-Newton matrix", resolved.name)
    model = own_copy(model).to(data.x_train.device)
    x, y = probe_set(data, recipe)
    still, tol = held_still(model, recipe, x), tol or min(recipe.tol / 10, 1e-4)
    if recipe.top:
        top = top_space(still, resolved, x, y, recipe.top, tol, **(options or {}))
    else:
        top = TopSpace(*top_curvature(still, resolved, x, y, None, tol, **(options or {})))
    v.require(top.lambda0 > 0, where, "lambda_0 must be > 0 (a constant model?)", top.lambda0)
    state = {name: v.detach().clone() for name, v in model.state_dict().items()}
    # The loss that training sees first, with the batch statistics it uses.
    seen = model if recipe.batch_stats is None else with_batch_stats(model, "coupled")
    loss0 = resolved(outputs_of(seen, data.x_train, at_once(recipe)), data.y_train).item()
    cut = cut or divergence_cut(loss0, hidden_width(model), top.lambda0, resolved.squared)
    return Start(model, state, resolved, data, top, loss0, cut, options or {})


def probe_set(data: Dataset, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Training samples on which the curvature is measured."""
    count = recipe.probe_samples
    return data.x_train[:count], data.y_train[:count]


def held_still(model: nn.Module, recipe: Recipe, x: Tensor) -> nn.Module:
    """The model as the recipe's curvature sees it: itself, or a copy for probes on ``x``."""
    return model if recipe.batch_stats is None else with_batch_stats(model, recipe.batch_stats, x)


def at_once(recipe: Recipe) -> int | None:
    """Samples of one forward pass of an evaluation; None for all, on a model taken as it is."""
    return None if recipe.batch_stats is None else EVALUATED_AT_ONCE


@torch.no_grad()
def outputs_of(model: nn.Module, x: Tensor, count: int | None = EVALUATED_AT_ONCE) -> Tensor:
    """Outputs without gradients, ``count`` samples at a time where no sample sees another."""
    coupled = model.training or any(type(m).__name__ == "CoupledBatchNorm" for m in model.modules())
    if count is None or len(x) <= count or coupled:
        return model(x.clone())
    return torch.cat([model(part.clone()) for part in x.split(count)])
