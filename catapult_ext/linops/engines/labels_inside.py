"""Labels that come inside a batch, read as the model reads them: by position, or the next one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from catapult_ext._batches import Batch
from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.losses import Loss
from catapult_ext.losses.labels import read_as


def labels_as_trained(snapshot: FixedModel, loss: Loss, batch: Batch, outputs: Tensor) -> Any:
    """The labels of ``batch`` as a cross-entropy compares them with ``outputs`` (N, O).

    A causal language model compares the output at one position with the label of the next.  Where
    a model gets its labels inside the batch and returns its loss, that loss tells which.

    Raises:
        ValueError: neither reading gives the loss that the model returns.
    """
    own = snapshot.returned_loss
    if not batch.inside or own is None:
        return batch.y
    value, samples = own
    return read_as(
        snapshot.as_returned(outputs[samples]), value, samples, loss, batch.y, snapshot.where
    )
