"""The training loop, as an iterator that shows every step before it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext.losses import Loss
from catapult_ext.training.batches import Batches, whole

Gradients = Sequence[Tensor | None]


@dataclass(frozen=True, eq=False)
class Step:
    """A step that is about to be made: the model is still where the loss was taken.

    Attributes:
        number: steps made so far.
        value: loss of the batch at the present parameters, a scalar without graph.
        cut: loss above which the run has diverged.
        batch: ``(x, y)``.
        outputs: outputs of the model on the batch, (N, O), without graph.
        residual: derivative of the loss with respect to the outputs, (N, O).
    """

    number: int
    value: Tensor
    batch: tuple[Any, Any]
    outputs: Tensor
    residual: Tensor
    cut: float = math.inf

    @cached_property
    def loss(self) -> float:
        """``value`` as a number; on a GPU its first use waits for the device."""
        return self.value.item()

    @property
    def diverged(self) -> bool:
        """The loss is not finite or above the cut; this step is the last one shown."""
        return has_diverged(self.loss, self.cut)


def has_diverged(loss: float, cut: float) -> bool:
    """Not finite, or above the cut.

    Examples:
        >>> from catapult_ext.training import has_diverged
        >>> has_diverged(float("nan"), cut=1e6)
        True
    """
    return not (math.isfinite(loss) and loss <= cut)


class Descent:
    """Heavy ball with an L2 penalty: v <- momentum v + g + l2 theta, theta <- theta - rate v.

    Args:
        weights: parameters, changed in place; those without a gradient stay.
        rate: learning rate; the attribute may be changed between steps.
        momentum: in [0, 1).
        l2: weight of the penalty l2/2 |theta|^2.

    Examples:
        >>> from catapult_ext.training import Descent
        >>> weights = [torch.ones(2)]
        >>> Descent(weights, rate=0.1)([torch.ones(2)])
        >>> weights[0]
        tensor([0.9000, 0.9000])
    """

    def __init__(
        self, weights: Sequence[Tensor], rate: float, momentum: float = 0.0, l2: float = 0.0
    ) -> None:
        self.weights, self.rate = list(weights), rate
        self.momentum, self.l2 = momentum, l2
        self.velocity = [torch.zeros_like(p) for p in self.weights] if momentum else None

    @torch.no_grad()
    def __call__(self, gradients: Gradients) -> None:
        """Make one step."""
        pairs = [(i, g) for i, g in enumerate(gradients) if g is not None]
        used, change = [self.weights[i] for i, _ in pairs], [g for _, g in pairs]
        if self.l2:
            change = list(torch._foreach_add(change, used, alpha=self.l2))
        if self.velocity is not None:
            velocity = [self.velocity[i] for i, _ in pairs]
            torch._foreach_mul_(velocity, self.momentum)
            torch._foreach_add_(velocity, change)
            change = velocity
        torch._foreach_add_(used, change, alpha=-self.rate)


class TorchSteps:
    """Steps of a torch optimizer, where :class:`Descent` makes its own.

    Args:
        weights: parameters that the optimizer moves.
        optimizer: over these; not one whose step needs a closure.

    Examples:
        >>> from catapult_ext.training import TorchSteps
        >>> weights = [torch.ones(2)]
        >>> TorchSteps(weights, torch.optim.SGD(weights, lr=0.5))([torch.ones(2)])
        >>> weights[0]
        tensor([0.5000, 0.5000])
    """

    def __init__(self, weights: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        self.weights, self.optimizer = list(weights), optimizer

    @property
    def rate(self) -> float:
        """Learning rate of the first group; assigning a value sets the rate of all groups."""
        return self.optimizer.param_groups[0]["lr"]

    @rate.setter
    def rate(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value

    def __call__(self, gradients: Gradients) -> None:
        """Make one step; the gradients are gone afterwards."""
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()


def moved(model: nn.Module) -> list[Tensor]:
    """The parameters that training moves.

    Examples:
        >>> from catapult_ext.training import moved
        >>> len(moved(nn.Linear(3, 1)))
        2
    """
    return [p for p in model.parameters() if p.requires_grad]


def steps(
    model: Callable[[Any], Tensor],
    weights: Sequence[Tensor],
    batches: Batches,
    loss: Loss,
    count: int,
    move: Callable[[Gradients], object],
    *,
    cut: float = math.inf,
    ahead: bool = False,
) -> Iterator[Step]:
    """Show a step, make it, and so on: ``count`` steps, ``count + 1`` losses.

    Between two steps the caller may read the model, change the rate of ``move``, or stop. The
    gradient is taken before a step is shown, so that no graph is in memory while the caller reads.

    Args:
        model: maps inputs to outputs (N, O).
        weights: what ``move`` changes.
        batches: one is taken for every loss.
        loss: function of outputs and targets.
        count: number of steps.
        move: called with the gradients, in the order of ``weights``; None for those that the loss
            does not depend on.
        cut: loss above which the run has diverged. The step that shows it is not made.
        ahead: read nothing from the device: the caller looks at the losses when it likes, stops at
            a step that has diverged, and forgets those made after it.

    Cost:
        A forward and a backward pass per step.
    """
    for number in range(count + 1):
        x, y = next(batches)
        with torch.enable_grad():
            # a model may write its inputs in place
            outputs = model(x.clone() if isinstance(x, Tensor) else x)
            value = loss(outputs, y)
            (residual,) = torch.autograd.grad(value, outputs)
            shown = Step(number, value.detach(), (x, y), outputs.detach(), residual, cut)
            if last := number == count or (not ahead and shown.diverged):
                gradients: Gradients = ()
            else:
                gradients = torch.autograd.grad(outputs, weights, residual, allow_unused=True)
        del outputs, value  # and with them the graph
        yield shown
        if last:
            return
        move(gradients)


def full_batch(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    loss: Loss,
    count: int,
    rate: float,
    momentum: float = 0.0,
) -> Iterator[Step]:
    """:func:`steps` of gradient descent or heavy ball on the whole of ``data``, ``(x, y)``.

    Examples:
        >>> from catapult_ext.training import full_batch
        >>> data = torch.randn(8, 3), torch.randn(8, 1)
        >>> loss = cx.losses.resolve("mse")
        >>> values = [float(step.value) for step in full_batch(nn.Linear(3, 1), data, loss, 5, 0.1)]
        >>> len(values), values[-1] < values[0]
        (6, True)
    """
    weights = moved(model)
    return steps(model, weights, whole(*data), loss, count, Descent(weights, rate, momentum))
