"""NTK, GGN and Hessian of data that comes in batches, on one process or shared out over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from catapult_ext._batches import inputs_in
from catapult_ext.linops.base import Dual, LinearOperator
from catapult_ext.linops.engines.choose import Options
from catapult_ext.linops.engines.loss_curvature import is_known
from catapult_ext.linops.ggn import GGN, DualGGN
from catapult_ext.linops.hessian import Hessian
from catapult_ext.linops.ntk import NTK
from catapult_ext.linops.streamed.base import Streamed
from catapult_ext.losses import OutputFactor, checked_reduction, resolve

if TYPE_CHECKING:
    from typing_extensions import Unpack


class StreamedNTK(Streamed):
    """Theta = J J' of all samples, (N*O, N*O), rows in the order of batches, rank after rank.

    Args:
        model: any module; DDP and FSDP2 wrappers are removed. A copy is kept: later training
            changes nothing here.
        data: inputs: one batch held in memory (tensor, tuple, mapping), or an iterable of them
            that can be read again; of this rank where ``group`` is given.
        group: None, ``"world"`` or a torch.distributed group; every rank makes the same calls.
        **options: see :class:`~catapult_ext.linops.engines.choose.Options`.

    Raises:
        TypeError: data that can be read only once.
        ValueError: ranks whose models, dtypes or outputs differ.
        RuntimeError: data that changed between passes; a rank that failed (named) or was lost.

    Cost:
        Two passes over the data per block of columns, N*O*K values; one all-reduce of P*K values
        and one all-gather of N*O*K.

    Examples:
        >>> net, batches = nn.Linear(3, 2), [torch.randn(4, 3) for _ in range(3)]
        >>> cx.StreamedNTK(net, batches).shape  # 12 samples, 2 outputs
        (24, 24)
    """

    name = "StreamedNTK"

    def __init__(
        self, model: nn.Module, data: Any, *, group: Any = None, **options: Unpack[Options]
    ) -> None:
        super().__init__(model, data, None, group, options)
        n = sum(self.counts)
        self.shape = (n, n)

    def _operator(self, batch: Any) -> NTK:
        return NTK(self._model, inputs_in(batch), **self._options)

    def _measure(self, operator: NTK) -> float:
        return 1.0

    @property
    def lower_bound(self) -> float:
        """0: the matrix is positive semi-definite."""
        return 0.0

    def _matmat(self, vectors: Tensor) -> Tensor:
        mine, k = self._mine(vectors), vectors.shape[1]
        total = vectors.new_zeros(self.n_params, k)
        for operator, _, rows in self._each():
            total += operator.linearization.vjp(mine[rows])
        total = self.group.sum(total)
        out = torch.empty_like(mine)
        for operator, _, rows in self._each():
            out[rows] = operator.linearization.jvp(total)
        return self._stacked(out)


class StreamedGGN(Streamed):
    """J' H_L J of the loss over all samples, (P, P).

    Args:
        model: as for :class:`StreamedNTK`.
        loss: see :func:`catapult_ext.losses.resolve`; a callable also needs ``reduction``.
        data: ``(x, y)``, or an iterable of such pairs that can be read again.
        reduction: ``"mean"`` or ``"sum"``: how a callable reduces the losses of its samples.
        group: as for :class:`StreamedNTK`.
        **options: see :class:`~catapult_ext.linops.engines.choose.Options`.

    Raises:
        ValueError: bad options, or a callable without ``reduction``.

    Cost:
        One pass per block of columns, memory of one batch, one all-reduce of P*K values. If
        every rank holds its data in memory and N*O < P, ``dual()`` works in sample space.

    Examples:
        >>> net = nn.Linear(3, 2)
        >>> batches = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(3)]
        >>> G = cx.StreamedGGN(net, "mse", batches)  # a DataLoader works as well
        >>> G.shape
        (8, 8)
    """

    name = "StreamedGGN"

    def __init__(
        self,
        model: nn.Module,
        loss: object,
        data: Any,
        *,
        reduction: str | None = None,
        group: Any = None,
        **options: Unpack[Options],
    ) -> None:
        self._reduction = checked_reduction(reduction, self.name)
        super().__init__(model, data, resolve(loss), group, options)
        self.shape = (self.n_params, self.n_params)
        held = [one and self.batches.held for one in self.group.everyone(self._has_factor())]
        self._small = all(held) and sum(self.counts) < self.n_params

    def _has_factor(self) -> bool:
        return all(isinstance(op.factor, OutputFactor) for op in self._operators)

    def _operator(self, batch: Any) -> GGN:
        return GGN(self._model, self._loss, batch, **self._options)

    def _measure(self, operator: GGN) -> float:
        if not self._averages:
            return 1.0
        if self._reduction is not None:
            return float(operator.n_samples)
        outputs = operator.linearization.snapshot.as_returned(operator.linearization.outputs)
        return operator.loss.normaliser(outputs, operator.targets)

    def _matmat(self, vectors: Tensor) -> Tensor:
        out = vectors.new_zeros(vectors.shape)
        for operator, weight, _ in self._each():
            out.add_(operator @ vectors, alpha=weight)
        return self.group.sum(out)

    @property
    def lower_bound(self) -> float | None:
        """0 of this package's own losses; None of a callable."""
        return 0.0 if self._loss is not None and is_known(self._loss) else None

    def dual(self) -> Dual | None:
        """S' Theta S, (N*O, N*O), where the data are in memory and that is the smaller space."""
        if not self._small:
            return None
        small = _StreamedDual(self)
        return Dual(small, small.lift, small.restrict)


class _StreamedDual(LinearOperator):
    """The non-zero spectrum of a :class:`StreamedGGN` in sample space, S S' = H_L."""

    name = "StreamedDualGGN"

    def __init__(self, ggn: StreamedGGN) -> None:
        self._ggn = ggn
        n = sum(ggn.counts)
        self.shape, self.dtype, self.device = (n, n), ggn.dtype, ggn.device

    @property
    def rounding_unit(self) -> float:
        """``rounding_unit`` of the large operator."""
        return self._ggn.rounding_unit

    @property
    def lower_bound(self) -> float:
        """0."""
        return 0.0

    def _each(self) -> Iterator[tuple[DualGGN, float, slice]]:
        for operator, weight, rows in self._ggn._each():
            yield DualGGN(operator.linearization, operator.factor), weight**0.5, rows

    def lift(self, vectors: Tensor) -> Tensor:
        """J' S u: (N*O, K) to (P, K)."""
        mine = self._ggn._mine(vectors)
        out = vectors.new_zeros(self._ggn.n_params, vectors.shape[1])
        for dual, root, rows in self._each():
            out.add_(dual.lift(mine[rows]), alpha=root)
        return self._ggn.group.sum(out)

    def restrict(self, vectors: Tensor) -> Tensor:
        """S' J t: (P, K) to (N*O, K)."""
        mine = self._ggn.counts[self._ggn.group.rank]
        out = vectors.new_empty(mine, vectors.shape[1])
        for dual, root, rows in self._each():
            out[rows] = root * dual.restrict(vectors)
        return self._ggn._stacked(out)

    def _matmat(self, vectors: Tensor) -> Tensor:
        return self.restrict(self.lift(vectors))


class StreamedHessian(Streamed):
    """Hessian of the loss over all samples, (P, P).

    Args:
        model: as for :class:`StreamedNTK`.
        loss: as for :class:`~catapult_ext.Hessian`; a callable also needs ``reduction``.
        data: ``(x, y)``, or an iterable of such pairs that can be read again.
        reduction: ``"mean"`` or ``"sum"``: what a callable does over the samples it is given.
        group: as for :class:`StreamedNTK`.
        **options: see :class:`~catapult_ext.linops.engines.choose.Options`.

    Raises:
        ValueError: also for a callable without ``reduction``.

    Cost:
        One pass per block of columns, memory of one batch, one all-reduce of P*K values.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> batches = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(3)]
        >>> cx.StreamedHessian(net, "mse", batches).shape
        (21, 21)
    """

    name = "StreamedHessian"

    def __init__(
        self,
        model: nn.Module,
        loss: object,
        data: Any,
        *,
        reduction: str | None = None,
        group: Any = None,
        **options: Unpack[Options],
    ) -> None:
        self._reduction = checked_reduction(reduction, self.name)
        super().__init__(model, data, resolve(loss), group, options)
        self.shape = (self.n_params, self.n_params)

    def _operator(self, batch: Any) -> Hessian:
        return Hessian(self._model, self._loss, batch, **self._options)

    def _measure(self, operator: Hessian) -> float:
        if not self._averages:
            return 1.0
        if self._reduction is not None:
            return float(operator.n_samples)
        outputs = operator.snapshot.as_returned(operator.outputs)
        return operator.loss.normaliser(outputs, operator.targets)

    def _matmat(self, vectors: Tensor) -> Tensor:
        out = vectors.new_zeros(vectors.shape)
        for operator, weight, _ in self._each():
            out.add_(operator @ vectors, alpha=weight)
        return self.group.sum(out)
