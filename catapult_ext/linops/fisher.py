"""The empirical Fisher matrix: the second moment of the gradients of single samples."""

from __future__ import annotations

import torch
from torch import Tensor

from catapult_ext.linops.engines.base import Linearization
from catapult_ext.linops.engines.loss_curvature import check_layout
from catapult_ext.linops.ggn import GGN
from catapult_ext.losses import Loss


class EmpiricalFisher(GGN):
    """sum_n g_n g_n' / m, (P, P), g_n the gradient of sample n's own loss.

    The loss is sum_n l_n / m with m its :meth:`~catapult_ext.losses.Loss.normaliser` (N for
    ``half_mse`` and plain cross-entropy), and g_n = dl_n/dtheta.  A token or pixel of a
    cross-entropy counts as a sample here.  Positive semi-definite, of rank at most N; it is neither
    the Fisher matrix nor the Gauss-Newton matrix (Kunstner et al. 2019, "Limitations of the
    Empirical Fisher Approximation").

    Args:
        model: module whose outputs the loss takes, as for :class:`~catapult_ext.linops.ggn.GGN`.
        loss: a loss of :func:`catapult_ext.losses.resolve`, but not a callable.
        data: as for :class:`~catapult_ext.linops.ggn.GGN`.
        **options: those of :class:`~catapult_ext.linops.ggn.GGN`.
    """

    name = "EmpiricalFisher"

    def _set_up(self, linearization: Linearization, loss: Loss, y: Tensor) -> None:
        self._use(linearization)
        self.loss, self.targets = loss, y
        snapshot = linearization.snapshot
        check_layout(snapshot, loss, y)
        outputs = snapshot.as_returned(linearization.outputs)
        targets = loss.targets(outputs, y)
        m = loss.normaliser(outputs, targets)
        with torch.inference_mode(False), torch.enable_grad():
            f = outputs.clone().requires_grad_()
            (slope,) = torch.autograd.grad(loss.value(f, targets), f)
        self.factor = loss.slopes(outputs, slope * m**0.5, targets)
        self.shape = (linearization.n_params, linearization.n_params)
