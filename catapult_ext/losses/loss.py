"""Losses as the curvature operators see them: value, normaliser and output Hessian H_L = S S'.

The library never divides by N or O silently: every loss says its normaliser.  For the squared
losses ``L = |f - y|^2 / (2 m)`` the Gauss-Newton matrix is ``J'J / m``, and ``m`` is
:meth:`Loss.normaliser`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext.losses import tiled
from catapult_ext.losses.factors import (
    AutogradHessian,
    DiagonalFactor,
    OutputFactor,
    OutputHessian,
    RankOneFactor,
    SoftmaxFactor,
)
from catapult_ext.losses.rows import ClassRows

NAMED = ("half_mse", "half_mse_mean", "mse", "cross_entropy", "bce")
ACCEPTED = (
    "a name (" + ", ".join(NAMED) + "), torch.nn.MSELoss, torch.nn.CrossEntropyLoss, "
    "torch.nn.BCEWithLogitsLoss, torch.nn.NLLLoss or torch.nn.KLDivLoss"
)
_ADDS_UP = "or pass reduction='mean' or 'sum' for another one that adds up over samples"


class Loss(ABC):
    """One loss: ``loss(f, y)`` is its value; :func:`resolve` lists the accepted forms.

    ``convex`` losses offer :meth:`factor`; the others an :meth:`output_hessian`, which need not be
    positive semi-definite. ``squared`` marks a multiple of sum |f - y|^2: gradient descent on it is
    lazy below 2 / lambda_0 and catapults above.

    Examples:
        >>> loss = cx.losses.resolve("half_mse")
        >>> float(loss(torch.ones(4, 1), torch.zeros(4, 1)))
        0.5
    """

    name: str
    convex: bool = True
    squared = False

    @property
    @abstractmethod
    def averages(self) -> bool:
        """Whether the value is a sum over samples divided by :meth:`normaliser`, which adds up."""

    def __call__(self, f: Tensor, y: Tensor) -> Tensor:
        """Loss value, a scalar tensor; f (N, d1, ..., dk) as the model returns it.

        On a GPU the values of the targets are not looked at, which would wait for it.
        """
        if f.device.type == "cpu":
            return self.value(f, self.targets(f, y))
        token = _unlooked.set(True)
        try:
            return self.value(f, self.targets(f, y))
        finally:
            _unlooked.reset(token)

    @abstractmethod
    def targets(self, f: Tensor, y: Tensor) -> Tensor:
        """Check ``y`` against outputs ``f`` (N, d1, ..., dk); return it in the outputs' layout."""

    @abstractmethod
    def value(self, f: Tensor, y: Tensor) -> Tensor:
        """Loss value for checked targets."""

    @abstractmethod
    def normaliser(self, f: Tensor, y: Tensor) -> float:
        """m, what the sum over samples (and outputs) of the plain loss is divided by."""

    def output_hessian(self, f: Tensor, y: Tensor) -> OutputHessian:
        """H_L at outputs ``f``: :meth:`factor` where the loss is convex."""
        return self.factor(f, y)

    def factor(self, f: Tensor, y: Tensor) -> OutputFactor:
        """S with S S' = H_L at outputs ``f`` and targets ``y``, for vectors (N, d1 * ... * dk)."""
        raise ValueError(
            f"catapult_ext.losses: a Gauss-Newton factor exists for {ACCEPTED}, got {self.name}"
        )

    def slopes(self, f: Tensor, slope: Tensor, y: Tensor) -> OutputFactor:
        """S with S S' = sum of s_n s_n', where s_n is the part of ``slope`` that belongs to term n.

        ``slope`` has the shape of ``f``.
        """
        return RankOneFactor(slope.reshape(f.shape[0], -1))


def _float_targets(name: str, f: Tensor, y: Tensor) -> Tensor:
    if not isinstance(y, Tensor):
        v.fail(f"losses.{name}", "targets must be a torch.Tensor", type(y).__name__, TypeError)
    if f.dim() == 2 and f.shape[1] == 1 and y.shape == f.shape[:1]:
        y = y.unsqueeze(1)
    # torch would broadcast (N,) against (N, 1) to (N, N) with a warning: refuse instead
    v.require(
        y.shape == f.shape,
        f"losses.{name}",
        f"targets must have the shape of the outputs {tuple(f.shape)} (one-hot for classes, or "
        "loss='cross_entropy' for labels), or forward= must return outputs of theirs",
        tuple(y.shape),
    )
    if y.dtype in (torch.float16, torch.bfloat16):
        y = y.to(f.dtype)  # a half-precision model is held in float32
    if y.dtype != f.dtype:
        v.fail(f"losses.{name}", f"targets must have dtype {f.dtype}", y.dtype, TypeError)
    _same_device(name, f, y)
    _finite(name, y)
    return y


def _same_device(name: str, f: Tensor, y: Tensor) -> None:
    v.require(y.device == f.device, f"losses.{name}", f"targets must be on {f.device}", y.device)


# Inside a call of a loss on a device other than the CPU.
_unlooked: ContextVar[bool] = ContextVar("_unlooked", default=False)


def _finite(name: str, y: Tensor) -> None:
    if _unlooked.get():
        return
    v.require(
        y.layout == torch.strided,
        f"losses.{name}",
        "targets must be dense (y.to_dense())",
        y.layout,
    )
    v.finite(bool(torch.isfinite(y).all()), f"losses.{name}", "targets")


@dataclass(frozen=True, eq=False)
class SquaredLoss(Loss):
    """|f - y|^2 times ``weight`` / divisor, divisor N ("samples"), N*O ("entries") or 1 ("none").

    half_mse: weight 1/2, samples.  half_mse_mean: 1/2, entries.  MSELoss: 1, entries or none.

    Examples:
        >>> loss = cx.losses.SquaredLoss("half_mse", 0.5, "samples")
        >>> float(loss(torch.ones(4, 1), torch.zeros(4, 1)))
        0.5
    """

    squared = True
    name: str
    weight: float
    per: str

    @property
    def averages(self) -> bool:
        """Whether the loss is divided by the number of samples or entries."""
        return self.per != "none"

    def targets(self, f: Tensor, y: Tensor) -> Tensor:
        """Targets in the shape, dtype and device of the outputs; a ValueError otherwise."""
        return _float_targets(self.name, f, y)

    def _divisor(self, f: Tensor) -> int:
        samples = f.shape[0] if f.dim() else 1
        return {"samples": samples, "entries": f.numel(), "none": 1}[self.per]

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        """The scalar weight |f - y|^2 / divisor."""
        return (f - y).square().sum() * (self.weight / self._divisor(f))

    def normaliser(self, f: Tensor, y: Tensor) -> float:
        """The m of L = |f - y|^2 / (2 m)."""
        return self._divisor(f) / (2.0 * self.weight)

    def factor(self, f: Tensor, y: Tensor) -> OutputFactor:
        """S = m^(-1/2) I, with m of :meth:`normaliser`."""
        return DiagonalFactor(f.new_full((1, 1), self.normaliser(f, y) ** -0.5))


@dataclass(frozen=True, eq=False)
class CrossEntropy(Loss):
    """torch.nn.CrossEntropyLoss: labels or probabilities, smoothing, ignore_index, class weights.

    Outputs are (N, C), (N, C, d2, ..., dk) with labels (N, d2, ..., dk), or (N, ..., C) with labels
    (N, ...).  A row is one sample, token or pixel: H_L of row n is ``t_n (diag p - p p') / m``,
    with t_n its total (class-weighted) target mass and m = 1 (sum), the number of rows
    (probabilities) or the sum of the labels' class weights (labels, without ignored ones), as
    torch's.

    Examples:
        >>> loss = cx.losses.CrossEntropy(nn.CrossEntropyLoss())
        >>> round(float(loss(torch.zeros(4, 2), torch.zeros(4).long())), 4)  # log 2
        0.6931
    """

    module: nn.CrossEntropyLoss
    name: str = "CrossEntropyLoss"

    @property
    def averages(self) -> bool:
        """Whether the module's reduction is ``mean``."""
        return self.module.reduction == "mean"

    def _rows(self, f: Tensor, y: Tensor) -> tuple[ClassRows, Tensor, Tensor]:
        """The reading of checked targets, and the rows of the outputs and of the targets."""
        read = ClassRows.of(f, y, f"losses.{self.name}")
        flat = y.is_floating_point()
        return read, read.rows(f), read.rows(y) if flat else y.reshape(-1)

    def targets(self, f: Tensor, y: Tensor) -> Tensor:
        """Labels int64 within the classes, or probabilities as the outputs; else a ValueError.

        Which dimension holds the classes is told by the labels:
        see :meth:`catapult_ext.losses.rows.ClassRows.of`.
        """
        where = f"losses.{self.name}"
        if not isinstance(y, Tensor):
            v.fail(where, "targets must be a torch.Tensor", type(y).__name__, TypeError)
        _same_device(self.name, f, y)
        if not y.is_floating_point() and y.dtype != torch.int64:
            v.fail(where, "labels must have dtype int64", y.dtype, TypeError)
        classes = ClassRows.of(f, y, where).classes
        if self.module.weight is not None:
            v.require(
                self.module.weight.shape == (classes,),
                where,
                f"class weights must have shape ({classes},)",
                tuple(self.module.weight.shape),
            )
        if y.is_floating_point():
            return _float_targets(self.name, f, y)
        needed = tuple(f.shape[:1])
        v.require(
            f.dim() > 2 or tuple(y.shape) == needed,
            where,
            f"labels must have shape {needed} for outputs {tuple(f.shape)}",
            tuple(y.shape),
        )
        if _unlooked.get():
            return y
        kept = y[y != self.module.ignore_index]
        inside = bool(((kept >= 0) & (kept < classes)).all())
        v.require(inside, where, f"labels must be in [0, {classes})", "one outside")
        mean = self.module.reduction == "mean"
        v.require(not mean or kept.numel() > 0, where, "labels must not all be ignore_index", "all")
        return y

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        """The loss as torch computes it, a scalar; that of many logits in tiles of rows."""
        m = self.module
        weight = None if m.weight is None else m.weight.to(f.dtype)
        _, rows, targets = self._rows(f, y)

        def of(rows: Tensor, targets: Tensor, reduction: str = "sum") -> Tensor:
            return F.cross_entropy(
                rows,
                targets,
                weight=weight,
                ignore_index=m.ignore_index,
                reduction=reduction,
                label_smoothing=m.label_smoothing,
            )

        if rows.numel() >= tiled.LARGE:
            mass, divisor = self._masses(rows, targets)
            if tiled.takes(rows, mass):
                return tiled.cross_entropy(rows, targets, of, mass, divisor)
        return of(rows, targets, m.reduction)

    def _masses(self, f: Tensor, y: Tensor) -> tuple[Tensor, float]:
        """Target mass t_n of every row after class weights, and the divisor m."""
        weight = f.new_ones(f.shape[1]) if self.module.weight is None else self.module.weight.to(f)
        smooth, mean = self.module.label_smoothing, self.module.reduction == "mean"
        if y.is_floating_point():
            mass = (1 - smooth) * (y @ weight) + smooth * weight.sum() / f.shape[1]
            return mass, float(f.shape[0]) if mean else 1.0
        kept = y != self.module.ignore_index
        own = torch.where(kept, weight[torch.where(kept, y, 0)], 0)
        mass = (1 - smooth) * own + kept * (smooth * weight.sum() / f.shape[1])
        return mass, float(own.sum()) if mean else 1.0

    def normaliser(self, f: Tensor, y: Tensor) -> float:
        """The m of the class docstring."""
        _, rows, targets = self._rows(f, self.targets(f, y))
        return self._masses(rows, targets)[1]

    def factor(self, f: Tensor, y: Tensor) -> OutputFactor:
        """S of each row, scaled by sqrt(t_n / m); masses below 0 raise a ValueError."""
        read, rows, y = self._rows(f, self.targets(f, y))
        mass, divisor = self._masses(rows, y)
        nonnegative = divisor > 0 and bool((mass >= 0).all())
        v.require(
            nonnegative, f"losses.{self.name}", "target masses must be >= 0 for a factor", "< 0"
        )
        root = (mass / divisor).sqrt().unsqueeze(1)
        return read.factor(SoftmaxFactor(root, rows.detach()))

    def slopes(self, f: Tensor, slope: Tensor, y: Tensor) -> OutputFactor:
        """As :meth:`Loss.slopes`; a term is a row: a sample, a token, a pixel."""
        read = self._rows(f, y)[0]
        return read.factor(RankOneFactor(read.rows(slope)))


@dataclass(frozen=True, eq=False)
class BinaryCrossEntropy(Loss):
    """torch.nn.BCEWithLogitsLoss with weight, pos_weight and reduction.

    Examples:
        >>> loss = cx.losses.BinaryCrossEntropy(nn.BCEWithLogitsLoss())
        >>> round(float(loss(torch.zeros(4, 1), torch.ones(4, 1))), 4)
        0.6931
    """

    module: nn.BCEWithLogitsLoss
    name: str = "BCEWithLogitsLoss"

    @property
    def averages(self) -> bool:
        """Whether the module's reduction is ``mean``."""
        return self.module.reduction == "mean"

    def targets(self, f: Tensor, y: Tensor) -> Tensor:
        """Targets in the shape of the outputs, within [0, 1]; a ValueError otherwise."""
        y = _float_targets(self.name, f, y)
        if y.device.type == "cpu":  # elsewhere a look would wait for the device
            outside = y[(y < 0) | (y > 1)]  # with these the loss has no lower bound
            if outside.numel():
                v.fail(f"losses.{self.name}", "targets must be in [0, 1]", outside[0].item())
        return y

    def _weights(self, f: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weight, pos = (
            None if w is None else w.to(f.dtype)
            for w in (self.module.weight, self.module.pos_weight)
        )
        if weight is not None and f.shape[1:] == (1,) and weight.shape == f.shape[:1] != (1,):
            weight = weight.unsqueeze(1)  # outputs (N,) are shown as (N, 1)
        return weight, pos

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        """The loss as torch computes it, a scalar."""
        weight, pos = self._weights(f)
        return F.binary_cross_entropy_with_logits(
            f, y, weight=weight, pos_weight=pos, reduction=self.module.reduction
        )

    def normaliser(self, f: Tensor, y: Tensor) -> float:
        """The number of outputs for reduction ``mean``, else 1."""
        return float(f.numel()) if self.module.reduction == "mean" else 1.0

    def factor(self, f: Tensor, y: Tensor) -> OutputFactor:
        """S = diag(sqrt(mass p (1 - p) / m)); weights below 0 raise a ValueError."""
        y = self.targets(f, y)
        weight, pos = self._weights(f)
        mass = torch.ones_like(f) if pos is None else 1 + (pos - 1) * y
        mass = mass if weight is None else mass * weight
        # 1 - p would be rounding where p is nearly 1
        curvature = mass * torch.sigmoid(f) * torch.sigmoid(-f) / self.normaliser(f, y)
        v.require(
            bool((mass >= 0).all()),
            f"losses.{self.name}",
            "weights must be >= 0 for a factor",
            "< 0",
        )
        return DiagonalFactor(curvature.sqrt().reshape(f.shape[0] if f.dim() else 1, -1))


@dataclass(frozen=True, eq=False)
class CallableLoss(Loss):
    """Any ``fn(outputs, targets) -> scalar``, with an unknown normaliser.

    Examples:
        >>> loss = cx.losses.CallableLoss(lambda f, y: (f - y).abs().sum(), "l1")
        >>> float(loss(torch.ones(4, 1), torch.zeros(4, 1)))
        4.0
    """

    fn: Callable[[Tensor, Tensor], Tensor]
    name: str
    convex: bool = False

    @property
    def averages(self) -> bool:
        """Unknown: raises ValueError."""
        raise ValueError(
            f"catapult_ext.losses: whether a loss averages is known for {ACCEPTED} ({_ADDS_UP}), "
            f"got {self.name}"
        )

    def targets(self, f: Tensor, y: Tensor) -> Tensor:
        """The targets as they are: only the function knows what it takes."""
        return y

    def normaliser(self, f: Tensor, y: Tensor) -> float:
        """Unknown: raises ValueError."""
        raise ValueError(
            f"catapult_ext.losses: a normaliser exists for {ACCEPTED} ({_ADDS_UP}), got {self.name}"
        )

    def output_hessian(self, f: Tensor, y: Tensor) -> OutputHessian:
        """H_L by automatic differentiation of the function; ``f`` as the model returns it."""
        return AutogradHessian(lambda outputs: self.value(outputs, y), f, self.name)

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        """The scalar value of the function; other results raise a ValueError."""
        try:
            out = self.fn(f, y)
        except AttributeError as error:  # written for the object that a model returns
            raise TypeError(
                f"catapult_ext.losses.{self.name}: a callable loss must take the outputs, a tensor "
                f"{tuple(f.shape)}, and the targets, never the object that the model returns (its "
                "own loss: loss=None in cx.Hessian and the tracker; the loss of its logits, as "
                f"'cross_entropy', in cx.GGN and the window, which need one), got {error}"
            ) from error
        scalar = isinstance(out, Tensor) and out.numel() == 1
        v.require(
            scalar,
            f"losses.{self.name}",
            "a callable loss must return a scalar tensor",
            tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__,
        )
        return out.reshape(())


half_mse = SquaredLoss("half_mse", 0.5, "samples")
half_mse_mean = SquaredLoss("half_mse_mean", 0.5, "entries")


def _itself(f: Tensor, y: object) -> Tensor:
    return f.sum()


# The outputs are the loss already: what loss=None stands for, where the model returns a loss.
OWN_LOSS = CallableLoss(_itself, "the model's own loss")
