"""Sums of operators over batches of data, on one process or shared out over ranks.

Exact for ragged batches and shards: every batch counts for its part of the loss's normaliser.
Parameter-space products read the data once and keep nothing of it; products in sample space read
it twice and keep N*O*K values.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Iterator
from math import prod
from typing import Any

from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext._batches import tensors_of
from catapult_ext._processes import Group
from catapult_ext.linops.base import LinearOperator
from catapult_ext.linops.engines.choose import Options, checked_options
from catapult_ext.linops.streamed.batches import Batches, crc
from catapult_ext.linops.streamed.unwrap import plain_copy
from catapult_ext.losses import Loss


class Streamed(LinearOperator):
    """Sums over batches and ranks.  Subclasses build the operator of one batch.

    Attributes:
        n_samples, n_outputs, n_params: N over all batches and ranks, O (of the first batch, where
            they differ in their tokens or pixels), P.
        counts: entries of the outputs on each rank.
        passes: readings of the data so far.
        group: the ranks, with the bytes sent so far (``group.bytes``).
    """

    _averages: bool
    _reduction: str | None = None  # of a callable loss
    _operators: list[Any]

    def __init__(
        self, model: nn.Module, data: Any, loss: Loss | None, group: Any, options: Options
    ) -> None:
        self.group = Group(group, self.name)
        self.passes = 0
        options = checked_options(options, self.name)
        needs = "graphs=True needs one batch, which is linearized once"
        v.require(not options.get("graphs"), self.name, needs, "batches that are read again")
        facts = self.group.built(lambda: self._read(model, data, loss, options))
        shared = ("last", "dtype", "parameters", "values", "loss")
        self.group.agree([{n: one[n] for n in shared} for one in facts])
        self.counts = [one["entries"] for one in facts]
        self.n_samples = sum(one["samples"] for one in facts)
        v.require(self.n_samples > 0, self.name, "data must hold samples", 0)
        shapes = [one["outputs"] for one in facts if one["outputs"] is not None]
        self.n_outputs = prod(shapes[0])
        total = sum(one["normaliser"] for one in facts)
        if loss is None or not self._averages:
            total = 1.0
        v.require(total > 0, self.name, "the loss must weigh some sample", total)
        self._weights = [part / total for part in self._parts]
        # A batch in memory stays frozen; others are frozen again for every product.
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
        outputs: tuple[int, ...] | None = None
        samples = entries = 0
        self._unit = 0.0
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
            shape = operator.output_shape[1:]
            outputs = shape if outputs is None else outputs
            wanted = f"every batch must give outputs (N, ..., {outputs[-1] if outputs else ''})"
            v.require(outputs[-1:] == shape[-1:], self.name, wanted, shape)
            samples += operator.n_samples
            entries += prod(operator.output_shape)
            self._parts.append(self._measure(operator))
            self.dtype, self.n_params = operator.dtype, operator.n_params
            self._unit = max(self._unit, operator.rounding_unit)
        return {
            "outputs": outputs,
            "last": None if outputs is None else outputs[-1:],
            "samples": samples,
            "entries": entries,
            "normaliser": sum(self._parts),
            "dtype": str(self.dtype),
            "parameters": zlib.crc32(repr(names).encode()),
            "values": _checksum(own),
            "loss": None if loss is None else loss.name,
        }

    def _averaging(self, loss: Loss) -> bool:
        return loss.averages if self._reduction is None else self._reduction == "mean"

    def _pass(self) -> Iterator[Any]:
        self.passes += 1
        return iter(self.batches)

    def _empty(self, batch: Any) -> bool:
        return any(t.dim() > 0 and len(t) == 0 for t in tensors_of(batch)[:1])

    @property
    def rounding_unit(self) -> float:
        """Eps of ``dtype``, or of what forward passes compute in where that is coarser."""
        return max(self._unit, super().rounding_unit)

    @abstractmethod
    def _operator(self, batch: Any) -> Any:
        """The operator of one batch."""

    @abstractmethod
    def _measure(self, operator: Any) -> float:
        """The batch's part of the normaliser (1 where nothing averages)."""

    def _each(self) -> Iterator[tuple[Any, float, slice]]:
        """Operator, weight and rows (of this rank) of every batch that has samples: one pass."""
        at = 0
        if self.batches.held:
            for operator in self._operators:
                rows = prod(operator.output_shape)
                yield operator, self._weights[0], slice(0, rows)
            self.passes += 1
            return
        for batch, weight in zip(self._pass(), self._weights, strict=True):
            if self._empty(batch):
                continue
            operator = self._operator(batch)
            rows = prod(operator.output_shape)
            yield operator, weight, slice(at, at + rows)
            at += rows

    def _mine(self, rows: Tensor) -> Tensor:
        """This rank's part of vectors in sample space."""
        before = sum(self.counts[: self.group.rank])
        return rows[before : before + self.counts[self.group.rank]]

    def _stacked(self, mine: Tensor) -> Tensor:
        return self.group.rows(mine, self.counts)


def _checksum(parameters: list[nn.Parameter]) -> int:
    mark = 0
    for p in parameters:
        mark = crc(p, mark)
    return mark
