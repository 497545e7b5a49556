"""Result of a simulation of the toy model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from catapult_ext.figures.drawn import Drawn
from catapult_ext.figures.runs import trajectory_figure
from catapult_ext.probes.phases import PHASES, Verdict, classify, first_above


@dataclass(frozen=True, repr=False)
class Trajectory(Drawn, saved=True):
    """R runs of the two-layer network.

    Attributes:
        eta: (R,) learning rates, or (R, steps) of a schedule.
        width: W.
        form: "direct", "reduced" or "scalar", the one that ran.
        loss: (R, steps // record_every + 1), 1/(2N) sum (f - y)^2, the start included; without the
            L2 term, and over all samples also where mini-batches are trained on.
        weight_norm: same shape, sqrt(|U|^2 + |v|^2).
        diverged_at: (R,) int64, -1 for none. From that step on, the records hold the values of the
            last step before it (see ``ops.toy_gd`` for the rule).
        converged_at: (R,) int64, the step after which ``toy.Stop`` ended the replica; -1 for none.
            From that step on, the records hold its values.
        curvature: (R, M) top eigenvalue lambda of the kernel of the gradients over N, for the
            linear network X (U'U + |v|^2) X' / (N W). It is that of the Gauss-Newton matrix of the
            loss: eta_crit = 2 / lambda_0.
        recorded_steps: steps of the columns of ``loss``, ``weight_norm`` and ``test_loss``.
        curvature_steps: (M,) steps of the columns of ``curvature``.
        momentum: (R,) heavy-ball beta.
        l2: (R,) weight of (|U|^2 + |v|^2) / 2 in the loss that is trained.
        test_loss: as ``loss``, on the test data; (R, 0) without any. A diverged run keeps the value
            recorded last.
        observed: what ``observe`` asked for, name -> (R, M) or (R, M, k).

    Examples:
        >>> x, y = torch.ones(1, 1), torch.zeros(1)
        >>> runs = cx.toy.simulate(c=[1.0, 3.0], width=4096, x=x, y=y, steps=50)
        >>> runs.loss.shape
        torch.Size([2, 51])
    """

    eta: Tensor
    width: float
    form: str
    loss: Tensor
    weight_norm: Tensor
    diverged_at: Tensor
    converged_at: Tensor
    curvature: Tensor
    recorded_steps: Tensor
    curvature_steps: Tensor
    momentum: Tensor
    l2: Tensor
    test_loss: Tensor
    observed: dict[str, Tensor]

    def _line(self) -> str:
        kinds = ", ".join(f"{self.phases.count(p)} {p}" for p in PHASES if p in self.phases)
        steps = int(self.recorded_steps[-1]) if len(self.recorded_steps) else 0
        width = f"{self.width:g}"
        return f"{len(self.eta)} runs of {steps} steps, width {width} ({self.form}): {kinds}"

    def _table(self) -> list[dict[str, Any]]:
        eta = self.eta if self.eta.dim() == 1 else self.eta.amax(1)
        columns = {
            "c": self.c.tolist(),
            "eta": eta.tolist(),
            "phase": self.phases,
            "peak loss": self.peak_loss.tolist(),
            "loss at the end": self.loss[:, -1].tolist(),
            "eta*lambda at the end": self.eta_lambda[:, -1].tolist(),
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _figure(self) -> Any:
        """Loss and eta * lambda against the step, of at most eight runs."""
        c, phases = self.c.tolist(), self.phases
        loss, curvature = self.loss.tolist(), self.eta_lambda.tolist()
        names = ("c", "phase", "loss", "eta_lambda")
        rows = zip(c, phases, loss, curvature, strict=True)
        runs = [dict(zip(names, row, strict=True)) for row in rows]
        steps = self.recorded_steps.tolist(), self.curvature_steps.tolist()
        return trajectory_figure(runs, *steps)

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

    @property
    def peak_loss(self) -> Tensor:
        """(R,) largest recorded loss; of all steps where ``record_every`` is 1."""
        return self.loss.amax(1)

    @property
    def peak_step(self) -> Tensor:
        """(R,) int64, the step at which it is recorded first."""
        return self.recorded_steps[self.loss.argmax(1)]

    @property
    def outcomes(self) -> list[str]:
        """Reason why each replica ended: ``diverged``, ``converged`` or ``steps``."""
        ends = zip(self.diverged_at.tolist(), self.converged_at.tolist(), strict=True)
        return ["diverged" if d >= 0 else "converged" if c >= 0 else "steps" for d, c in ends]

    @cached_property
    def phases(self) -> list[str]:
        """``lazy`` below c = ``critical``, ``catapult`` from there, or ``divergent``."""
        above = (self.c >= self.critical).tolist()
        gone = (self.diverged_at >= 0).tolist()
        return [
            "divergent" if g else "catapult" if a else "lazy"
            for g, a in zip(gone, above, strict=True)
        ]

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Phase, flags and evidence for every rate, built one by one, so meant for few rates.

        c and eta * lambda are in units of ``critical`` / 2, so that 2 is the threshold. With
        "projected_loss" observed, the evidence holds the growth of the residual's projection on the
        top eigenvector of the start.
        """
        unit = (self.critical / 2).clamp(min=torch.finfo(self.eta.dtype).tiny)
        eta = self.c / self.lambda0 / unit
        end = self.eta_lambda[:, -1] / unit / eta
        return [
            self._in_steps(
                classify(
                    float(eta[i]),
                    float(self.lambda0[i]),
                    self.loss[i].tolist(),
                    growth=self._growth(i),
                    lambda_end=float(end[i]),
                    diverged_at=int(self.diverged_at[i]),
                    c=float(self.c[i] / unit[i]),
                ),
                i,
            )
            for i in range(len(eta))
        ]

    def _growth(self, i: int) -> list[float] | None:
        if "projected_loss" not in self.observed:
            return None
        along = self.observed["projected_loss"][i, :, 0].sqrt()
        return (along / along[0]).tolist()

    def _in_steps(self, verdict: Verdict, i: int) -> Verdict:
        """Evidence that ``classify`` counts in records, counted in steps."""
        e = verdict.evidence
        rose = first_above(self.loss[i].tolist(), float(self.loss[i, 0]))
        if rose is not None:
            e = replace(e, loss_rose_at=int(self.recorded_steps[rose]))
        if e.projection_grew_at is not None:
            grew = int(self.curvature_steps[e.projection_grew_at])
            e = replace(e, projection_grew_at=grew)
        return replace(verdict, evidence=e)
