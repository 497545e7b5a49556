"""The empirical Fisher matrix: the second moment of the gradients of single samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from catapult_ext._autocast import no_autocast
from catapult_ext.linops.engines.base import Linearization
from catapult_ext.linops.engines.choose import Options
from catapult_ext.linops.engines.loss_curvature import check_layout, checked_loss, is_known
from catapult_ext.linops.ggn import GGN
from catapult_ext.linops.model.pass_context import frozen_context
from catapult_ext.losses import Loss, checked_reduction

if TYPE_CHECKING:
    from typing_extensions import Unpack

_OF_OUTPUTS = "(leave penalties out: their gradient belongs to no sample)"


class EmpiricalFisher(GGN):
    """Empirical Fisher matrix sum_n g_n g_n' / m, (P, P), g_n the gradient of sample n's own loss.

    The loss is sum_n l_n / m with m its :meth:`~catapult_ext.losses.Loss.normaliser` (N for
    ``half_mse`` and plain cross-entropy), and g_n = dl_n/dtheta.  A token or pixel of a
    cross-entropy counts as a sample here.  Positive semi-definite, of rank at most N; it is neither
    the Fisher matrix nor the Gauss-Newton matrix (Kunstner et al. 2019, "Limitations of the
    Empirical Fisher Approximation").

    Args:
        model: module whose outputs the loss takes, as for :class:`~catapult_ext.linops.ggn.GGN`.
        loss: a loss of :func:`catapult_ext.losses.resolve`; a callable also needs ``reduction``.
        data: as for :class:`~catapult_ext.linops.ggn.GGN`.
        reduction: ``"mean"`` or ``"sum"``: how a callable reduces the losses of its samples.
        **options: options of :class:`~catapult_ext.linops.ggn.GGN`.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> data = torch.randn(8, 3), torch.randint(2, (8,))
        >>> F = cx.EmpiricalFisher(net, nn.CrossEntropyLoss(), data)
        >>> F.shape, bool(F.trace() > 0)
        ((26, 26), True)
    """

    name = "EmpiricalFisher"
    _reduction: str | None = None

    @no_autocast()
    def __init__(
        self,
        model: nn.Module,
        loss: object,
        data: object,
        *,
        reduction: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._reduction = checked_reduction(reduction, self.name)
        super().__init__(model, loss, data, **options)

    def _set_up(self, linearization: Linearization, loss: Loss, y: Tensor) -> None:
        self._use(linearization)
        self.loss, self.targets = loss, y
        snapshot = linearization.snapshot
        check_layout(snapshot, loss, y)
        outputs = snapshot.as_returned(linearization.outputs)
        targets = loss.targets(outputs, y)
        if is_known(loss) or self._reduction is None:
            m = loss.normaliser(outputs, targets)
        else:
            m = float(outputs.shape[0]) if self._reduction == "mean" else 1.0
        with frozen_context():
            f = linearization.outputs.clone().requires_grad_()
            value = checked_loss(snapshot, loss, y, f, of_outputs=_OF_OUTPUTS)
            (slope,) = torch.autograd.grad(value, f)
        self.factor = loss.slopes(outputs, snapshot.as_returned(slope) * m**0.5, targets)
        self.shape = (linearization.n_params, linearization.n_params)
