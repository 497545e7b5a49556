"""Sums of operators over batches of data, on one process or shared out over ranks.

Exact for ragged batches and shards: every batch counts for its part of the loss's normaliser.
Parameter-space products read the data once and keep nothing of it; products in sample space read
it twice and keep N*O*K values.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext._processes import Group
from catapult_ext.linops.base import LinearOperator
from catapult_ext.linops.engines.choose import Options, checked_options
from catapult_ext.linops.model.inputs import unpack
from catapult_ext.linops.streamed.batches import Batches, crc
from catapult_ext.linops.streamed.unwrap import plain_copy
from catapult_ext.losses import Loss


class Streamed(LinearOperator):
    """Sums over batches and ranks.  Subclasses build the operator of one batch.

    Attributes:
        n_samples, n_outputs, n_params: N over all batches and ranks, O, P.
        passes: readings of the data so far.
        group: the ranks, with the bytes sent so far (``group.bytes``).
    """

    _averages: bool
    _operators: list[Any]

    def __init__(
        self, model: nn.Module, data: Any, loss: Loss | None, group: Any, options: Options
    ) -> None:
        self.group = Group(group, self.name)
        self.passes = 0
        options = checked_options(options, self.name)
        facts = self.group.built(lambda: self._read(model, data, loss, options))
        shared = ("outputs", "dtype", "parameters", "values", "loss")
        self.group.agree([{n: one[n] for n in shared} for one in facts])
        self.counts = [one["samples"] for one in facts]
        self.n_samples = sum(self.counts)
        v.require(self.n_samples > 0, self.name, "data must hold samples", 0)
        self.n_outputs = next(one["outputs"] for one in facts if one["outputs"] is not None)
        total = sum(one["normaliser"] for one in facts)
        if loss is None or not self._averages:
            total = 1.0
        v.require(total > 0, self.name, "the loss must weigh some sample", total)
        self._weights = [part / total for part in self._parts]
        # A batch in memory stays frozen; others are frozen anew for every product.
        if not self.batches.held:
            self._operators = []

    def _read(
        self, model: nn.Module, data: Any, loss: Loss | None, options: Options
    ) -> dict[str, Any]:
        """The first pass over this rank's data: counts, normalisers, and what must agree."""
        if not isinstance(model, nn.Module):
            v.fail(self.name, "model must be a torch.nn.Module", type(model).__name__, TypeError)
        self._model, self._loss = plain_copy(model, loss)
        self._options: Options = options
        self.batches = Batches(data, self.name)
        self._operators = []
        self._parts: list[float] = []
        self._averages = loss is not None and self._averaging(loss)
        names = [(n, tuple(p.shape)) for n, p in self._model.named_parameters() if p.requires_grad]
        own = [p for p in self._model.parameters() if p.requires_grad]
        v.require(bool(own), self.name, "the model must have trainable parameters", "none")
        outputs, samples = None, 0
        self.dtype, self.device = own[0].dtype, own[0].device
        self.n_params = sum(p.numel() for p in own)
        for batch in self._pass():
            if self._empty(batch):
                self._parts.append(0.0)
                continue
            operator = self._operator(batch)
            if self.batches.held:
                self._operators.append(operator)
            self._options = {**options, "check": False}  # one comparison is enough
            rows, columns, part = self._measure(operator, batch)
            v.require(
                outputs in (None, columns),
                self.name,
                f"every batch must give {outputs} outputs",
                columns,
            )
            outputs, samples = columns, samples + rows
            self._parts.append(part)
            self.dtype, self.n_params = operator.dtype, operator.n_params
        return {
            "outputs": outputs,
            "samples": samples,
            "normaliser": sum(self._parts),
            "dtype": str(self.dtype),
            "parameters": zlib.crc32(repr(names).encode()),
            "values": _checksum(own),
            "loss": None if loss is None else loss.name,
        }

    def _averaging(self, loss: Loss) -> bool:
        return loss.averages

    def _pass(self) -> Iterator[Any]:
        self.passes += 1
        return iter(self.batches)

    def _empty(self, batch: Any) -> bool:
        x = batch if self._loss is None else unpack(batch, self.name)[0]
        first = next(iter(x.values())) if isinstance(x, dict) else x
        first = first[0] if isinstance(first, (tuple, list)) else first
        return isinstance(first, Tensor) and first.dim() > 0 and len(first) == 0

    @abstractmethod
    def _operator(self, batch: Any) -> Any:
        """The operator of one batch."""

    @abstractmethod
    def _measure(self, operator: Any, batch: Any) -> tuple[int, int, float]:
        """Samples, outputs, and the batch's part of the normaliser (1 where nothing averages)."""

    def _each(self) -> Iterator[tuple[Any, float, slice]]:
        """Operator, weight and rows (of this rank) of every batch that has samples: one pass."""
        at = 0
        if self.batches.held:
            for operator in self._operators:
                rows = operator.n_samples * self.n_outputs
                yield operator, self._weights[0], slice(0, rows)
            self.passes += 1
            return
        for batch, weight in zip(self._pass(), self._weights, strict=True):
            if self._empty(batch):
                continue
            operator = self._operator(batch)
            rows = operator.n_samples * self.n_outputs
            yield operator, weight, slice(at, at + rows)
            at += rows

    def _mine(self, rows: Tensor) -> Tensor:
        """This rank's part of vectors in sample space."""
        before = sum(self.counts[: self.group.rank]) * self.n_outputs
        return rows[before : before + self.counts[self.group.rank] * self.n_outputs]

    def _stacked(self, mine: Tensor) -> Tensor:
        return self.group.rows(mine, [n * self.n_outputs for n in self.counts])


def _checksum(parameters: list[nn.Parameter]) -> int:
    mark = 0
    for p in parameters:
        mark = crc(p, mark)
    return mark
