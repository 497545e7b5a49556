"""What a simulation of the toy model returns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from catapult_ext.probes.phases import PHASES, Verdict, classify


@dataclass(frozen=True)
class Trajectory:
    """R runs of the two-layer network.

    Attributes:
        eta: (R,) learning rates, or (R, steps) of a schedule.
        width: W.
        form: "direct" or "reduced", the one that ran.
        loss: (R, steps // record_every + 1), 1/(2N) sum (f - y)^2, the start included; without the
            L2 term, and over all samples also where mini-batches are trained on.
        weight_norm: same shape, sqrt(|U|^2 + |v|^2).
        diverged_at: (R,) int64, -1 for none. From that step on, the records hold the values of the
            last step before it (see ``ops.toy_gd`` for the rule).
        curvature: (R, M) top eigenvalue lambda of the kernel of the gradients over N, for the
            linear network X (U'U + |v|^2) X' / (N W). It is that of the Gauss-Newton matrix of the
            loss: eta_crit = 2 / lambda_0.
        recorded_steps: steps of the columns of ``loss``, ``weight_norm`` and ``test_loss``.
        curvature_steps: (M,) steps of the columns of ``curvature``.
        momentum: (R,) heavy-ball beta.
        l2: (R,) weight of (|U|^2 + |v|^2) / 2 in the loss that is trained.
        test_loss: as ``loss``, on the test data; (R, 0) without any. A diverged run keeps the value
            recorded last.
    """

    eta: Tensor
    width: float
    form: str
    loss: Tensor
    weight_norm: Tensor
    diverged_at: Tensor
    curvature: Tensor
    recorded_steps: Tensor
    curvature_steps: Tensor
    momentum: Tensor
    l2: Tensor
    test_loss: Tensor

    @property
    def lambda0(self) -> Tensor:
        """(R,) curvature at the start."""
        return self.curvature[:, 0]

    @property
    def c(self) -> Tensor:
        """(R,) eta * lambda_0; of a schedule its largest eta."""
        return (self.eta if self.eta.dim() == 1 else self.eta.amax(1)) * self.lambda0

    @property
    def eta_lambda(self) -> Tensor:
        """(R, M) eta * lambda at the recorded curvature steps; after the last step its own eta."""
        if self.eta.dim() == 1:
            return self.eta[:, None] * self.curvature
        return self.eta[:, self.curvature_steps.clamp(max=self.eta.shape[1] - 1)] * self.curvature

    @property
    def critical(self) -> Tensor:
        """(R,) the c at which gradient descent turns unstable, 2 (1 + beta) - eta * l2."""
        eta = self.eta if self.eta.dim() == 1 else self.eta.amax(1)
        return 2 * (1 + self.momentum) - eta * self.l2

    @cached_property
    def phases(self) -> list[str]:
        """``lazy`` below c = ``critical``, ``catapult`` from there, or ``divergent``."""
        lazy, catapult, divergent = PHASES
        above = (self.c >= self.critical).tolist()
        gone = (self.diverged_at >= 0).tolist()
        return [
            divergent if g else catapult if a else lazy for g, a in zip(gone, above, strict=True)
        ]

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Phase, flags and evidence for every rate, built one by one, so meant for few rates.

        c and eta * lambda are in units of ``critical`` / 2, so that 2 is the threshold.
        """
        unit = (self.critical / 2).clamp(min=torch.finfo(self.eta.dtype).tiny)
        eta = self.c / self.lambda0 / unit
        end = self.eta_lambda[:, -1] / unit / eta
        rows = zip(eta, self.c / unit, self.lambda0, end, self.loss, self.diverged_at, strict=True)
        return [
            classify(
                float(rate),
                float(lambda0),
                loss.tolist(),
                lambda_end=float(last),
                diverged_at=int(at),
                c=float(c),
            )
            for rate, c, lambda0, last, loss, at in rows
        ]
