"""Losses of log-probabilities, which models that end in LogSoftmax return."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext.losses.factors import DiagonalFactor, OutputFactor
from catapult_ext.losses.loss import CrossEntropy, Loss
from catapult_ext.losses.rows import ClassRows

_NORMALISED = 1e-2  # how far the probabilities of a row may be from a sum of one


@dataclass(frozen=True, eq=False)
class LogLikelihood(Loss):
    """torch.nn.NLLLoss or torch.nn.KLDivLoss of outputs f = log p.

    Both losses are linear in f, so their second derivative is zero and all curvature comes from
    LogSoftmax. The Gauss-Newton matrix therefore counts LogSoftmax as part of the loss.  With J the
    Jacobian of f, t_n the target mass of row n and m the normaliser, it is J' diag(t_n p / m) J,
    which equals that of cross-entropy at the logits z: df/dz = I - 1 p', and (I - p 1') diag(p)
    (I - 1 p') = diag(p) - p p'.  It is the Fisher matrix of the model's distribution (Martens 2020,
    "New Insights and Perspectives on the Natural Gradient Method", section 9).

    Examples:
        >>> loss = cx.losses.resolve(nn.NLLLoss())
        >>> type(loss).__name__
        'LogLikelihood'
    """

    module: nn.NLLLoss | nn.KLDivLoss
    name: str

    @property
    def averages(self) -> bool:
        """Whether the module's reduction is ``mean`` or ``batchmean``."""
        return self.module.reduction != "sum"

    def _cross(self) -> CrossEntropy:
        """The cross-entropy that has the same value where the outputs are normalised."""
        m = self.module
        assert isinstance(m, nn.NLLLoss)
        module = nn.CrossEntropyLoss(m.weight, ignore_index=m.ignore_index, reduction=m.reduction)
        return CrossEntropy(module, self.name)

    def targets(self, f: Tensor, y: Tensor) -> Tensor:
        """Labels int64 (NLLLoss); (log-)probabilities in the shape of the outputs (KLDivLoss)."""
        where = f"losses.{self.name}"
        if isinstance(self.module, nn.NLLLoss):
            labels = isinstance(y, Tensor) and not y.is_floating_point()
            v.require(
                labels, where, "targets must be labels of dtype int64", getattr(y, "dtype", y)
            )
            return self._cross().targets(f, y)
        if not isinstance(y, Tensor):
            v.fail(where, "targets must be a torch.Tensor", type(y).__name__, TypeError)
        v.require(y.shape == f.shape, where, f"targets must be {tuple(f.shape)}", tuple(y.shape))
        v.require(y.device == f.device, where, f"targets must be on {f.device}", y.device)
        v.finite(bool(torch.isfinite(y.exp() if self.module.log_target else y).all()), where, "y")
        return y.to(f.dtype)

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        """The loss as torch computes it, a scalar."""
        m = self.module
        if isinstance(m, nn.KLDivLoss):
            if m.reduction == "batchmean":  # torch divides by the first dimension
                return F.kl_div(f, y, reduction="sum", log_target=m.log_target) / f.shape[0]
            total = F.kl_div(f, y, reduction="sum", log_target=m.log_target)
            return total / f.numel() if m.reduction == "mean" else total
        _, rows, labels = self._cross()._rows(f, y)
        weight = None if m.weight is None else m.weight.to(f.dtype)
        return F.nll_loss(
            rows, labels, weight=weight, ignore_index=m.ignore_index, reduction=m.reduction
        )

    def _masses(self, f: Tensor, y: Tensor) -> tuple[ClassRows, Tensor, Tensor, float]:
        """The reading, log-probabilities in rows, target mass t_n of each row, the divisor m."""
        if isinstance(self.module, nn.NLLLoss):
            read, rows, labels = self._cross()._rows(f, y)
            return read, rows, *self._cross()._masses(rows, labels)
        read = ClassRows(tuple(f.shape), 1)
        divisor = {"batchmean": float(f.shape[0]), "mean": float(f.numel()), "sum": 1.0}
        mass = read.rows(y.exp() if self.module.log_target else y).sum(1)
        return read, read.rows(f), mass, divisor[self.module.reduction]

    def normaliser(self, f: Tensor, y: Tensor) -> float:
        """The m of the class docstring, what the sum over rows is divided by."""
        return self._masses(f, self.targets(f, y))[3]

    def factor(self, f: Tensor, y: Tensor) -> OutputFactor:
        """S = diag(sqrt(t_n p / m)).

        Raises:
            ValueError: outputs that are no log-probabilities, masses below 0.
        """
        where = f"losses.{self.name}"
        read, rows, mass, divisor = self._masses(f, self.targets(f, y))
        p = rows.detach().exp()
        sums = p.sum(1)
        v.require(
            bool(((sums - 1).abs() <= _NORMALISED).all()),
            where,
            "outputs must be log-probabilities, whose exponentials sum to one over the classes, on "
            "dimension 1 (end the model in LogSoftmax(dim=1), or pass CrossEntropyLoss for logits)",
            f"sums from {sums.min().item():.3g} to {sums.max().item():.3g}",
        )
        good = divisor > 0 and bool((mass >= 0).all())
        v.require(good, where, "target masses must be >= 0 for a factor", "< 0")
        return read.factor(DiagonalFactor(((mass / divisor).unsqueeze(1) * p).sqrt()))

    def slopes(self, f: Tensor, slope: Tensor, y: Tensor) -> OutputFactor:
        """As :meth:`Loss.slopes`; a term is a row: a sample, a token, a pixel."""
        if isinstance(self.module, nn.NLLLoss):
            return self._cross().slopes(f, slope, y)
        return super().slopes(f, slope, y)
