"""The loss of R models, each with its own normaliser, as one loss of all their rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from catapult_ext.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Loss,
    OutputFactor,
    SquaredLoss,
)


def adds_up(loss: Loss, y: object, output_shape: tuple[int, ...]) -> bool:
    """Whether losses of several models are one loss of all their rows, but for the normaliser.

    So it is where terms belong to rows, and where settings of the loss fit any number of rows.
    """
    rows = isinstance(y, Tensor) and y.dim() > 0 and len(output_shape) > 0
    if not rows or y.shape[0] != output_shape[0]:  # type: ignore[attr-defined]
        return False
    if isinstance(loss, BinaryCrossEntropy):
        weight, positive = loss.module.weight, loss.module.pos_weight
        return weight is None and (positive is None or positive.dim() <= 1)
    return type(loss) in (SquaredLoss, CrossEntropy)


class StackedLoss:
    """Losses at the outputs of R models: slopes and second derivatives by the outputs.

    Rows of all models make one batch, whose normaliser m is removed: those of model r are divided
    by its own m_r.

    Args:
        loss: one that :func:`adds_up`.
        outputs: (R, N, d1, ..., dk).
        targets: of all models, or one for each.
    """

    def __init__(self, loss: Loss, outputs: Tensor, targets: Tensor | Sequence[Tensor]) -> None:
        self.loss, self._outputs, self._targets = loss, outputs, targets
        if isinstance(targets, Tensor):
            each = [targets] * len(outputs)
            own = [loss.normaliser(outputs[0], targets)] * len(outputs)
        else:
            each = list(targets)
            own = [loss.normaliser(f, y) for f, y in zip(outputs, each, strict=True)]
        self._flat, joined = outputs.flatten(0, 1), torch.cat(each)
        self._joined = loss.targets(self._flat, joined)
        divisors = torch.tensor(own, dtype=torch.float64, device="cpu")
        whole = loss.normaliser(self._flat, joined)
        self._scale = (whole / divisors).to(outputs)
        self._root = (whole / divisors).sqrt().to(outputs)
        self._factor = loss.output_hessian(self._flat, self._joined)

    def select(self, index: Tensor) -> StackedLoss:
        """The losses of some of the models."""
        targets = self._targets
        if not isinstance(targets, Tensor):
            targets = [targets[r] for r in index.tolist()]
        return StackedLoss(self.loss, self._outputs[index.to(self._outputs.device)], targets)

    @property
    def has_factor(self) -> bool:
        """Whether S with S S' = H_L is known."""
        return isinstance(self._factor, OutputFactor)

    def hessian(self, u: Tensor) -> Tensor:
        """H_L u for u (R, N*O, K)."""
        return self._factor.hessian(self._rows(u)).view(u.shape).mul_(self._scale[:, None, None])

    def apply(self, u: Tensor) -> Tensor:
        """S u for u (R, N*O, K)."""
        assert isinstance(self._factor, OutputFactor)
        return self._factor.apply(self._rows(u)).view(u.shape).mul_(self._root[:, None, None])

    def apply_t(self, u: Tensor) -> Tensor:
        """S' u for u (R, N*O, K)."""
        assert isinstance(self._factor, OutputFactor)
        return self._factor.apply_t(self._rows(u)).view(u.shape).mul_(self._root[:, None, None])

    def slopes(self, graph: Tensor | None = None) -> Tensor:
        """Each loss's derivative by its model's outputs, (R, N*O).

        Args:
            graph: the outputs with a graph, of which the slopes are then functions; None: numbers.
        """
        f = self._flat.detach().requires_grad_() if graph is None else graph
        with torch.inference_mode(False), torch.enable_grad():
            value = self.loss.value(f.reshape(self._flat.shape), self._joined)
            (slope,) = torch.autograd.grad(value, f, create_graph=graph is not None)
            return slope.reshape(len(self._outputs), -1) * self._scale[:, None]

    def _rows(self, u: Tensor) -> Tensor:
        return u.reshape(len(self._flat), -1, u.shape[2])
