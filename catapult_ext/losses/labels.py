"""How labels are compared with outputs: position by position, or those of the next position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext.losses.loss import CrossEntropy, Loss

_AGREES = 1e-4  # relative, between the model's own loss and that of its outputs


def read_as(f: Tensor, value: float, samples: slice, loss: Loss, y: Any, where: str) -> Any:
    """Labels ``y``, or those of the next position, by the loss ``value`` returned with ``f``.

    Args:
        f: outputs as the model returns them, of some samples.
        value: the model's own loss of these.
        samples: which.
        loss: others than cross-entropy leave the labels as they are.
        y: the labels of all samples.
        where: the public function named in errors.

    Raises:
        ValueError: neither reading gives the loss that the model returns.
    """
    if not isinstance(loss, CrossEntropy):
        return y
    ignored = loss.module.ignore_index
    plain = CrossEntropy(nn.CrossEntropyLoss(ignore_index=ignored))
    readings = [y]
    if isinstance(y, Tensor) and y.dim() > 1 and not y.is_floating_point():
        readings.append(shifted(y, ignored))
    found = [plain(f, y[samples]).item() for y in readings]
    best = min(range(len(found)), key=lambda i: abs(found[i] - value))
    shown = " and ".join(f"{a:.6g}" for a in found)
    v.require(
        abs(found[best] - value) <= _AGREES * abs(value),
        where,
        "cross-entropy with the labels inside the batch must be the loss that the model returns, "
        f"{value:.6g}, position by position or for the next one: give data=(batch, labels) for "
        "labels position by position, or forward= and labels that fit its outputs",
        shown,
    )
    return readings[best]


def shifted(labels: Tensor, ignored: int) -> Tensor:
    """Labels of the next position, as causal language models compare them; the last is ignored."""
    return torch.nn.functional.pad(labels[..., 1:], (0, 1), value=ignored)
