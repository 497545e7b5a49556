"""The eigenvalues that experiments follow: top of the loss's Gauss-Newton and Hessian matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import losses
from catapult_ext._free_memory import ran_out
from catapult_ext.eig import TopTracker, eigsh
from catapult_ext.experiments.stacked_chain import StackedChain
from catapult_ext.linops import GGN, NTK, Hessian

# Along a run the last eigenvector is the start, so a lighter check that no larger eigenvalue was
# missed is enough: it saves a third of the products. The start of the sweep is checked fully.
CONFIDENCE = 0.9


@dataclass(frozen=True)
class TopSpace:
    """Top eigenspace of the kernel at the start, on the training inputs.

    Attributes:
        lambda0: top eigenvalue of the GGN of the loss; eta_crit is 2 / lambda0.
        error: bound of lambda0's own error.
        vector: eigenvector belonging to lambda0, the start of later solves.
        ratios: NTK eigenvalues over the largest one, descending; empty where not solved.
        vectors: (N*O, k) orthonormal NTK eigenvectors, flat index n*O + o; None where not solved.
    """

    lambda0: float
    error: float
    vector: Tensor
    ratios: tuple[float, ...] = ()
    vectors: Tensor | None = None


@torch.no_grad()
def top_space(
    model: nn.Module, loss: losses.Loss, x: Tensor, y: Tensor, k: int, tol: float, **options: Any
) -> TopSpace:
    """Solve for the k top NTK eigenpairs and lambda0 at the model's present parameters."""
    kernel = NTK(model, x, **options)
    found = eigsh(kernel, k=min(k, kernel.shape[0]), tol=tol)
    ratios = tuple((found.eigenvalues / found.eigenvalues[0]).tolist())
    if isinstance(loss, losses.SquaredLoss):
        m = loss.normaliser(model(x.clone()), y)
        value, error = float(found.eigenvalues[0]) / m, float(found.errors[0]) / m
        return TopSpace(value, error, found.eigenvectors[:, :1], ratios, found.eigenvectors)
    top = top_curvature(model, loss, x, y, None, tol, **options)
    return TopSpace(*top, ratios, found.eigenvectors)


@torch.no_grad()
def top_curvature(
    model: nn.Module,
    loss: losses.Loss,
    x: Tensor,
    y: Tensor,
    v0: Tensor | None,
    tol: float,
    **options: Any,
) -> tuple[float, float, Tensor]:
    """Lambda at the model's present parameters: (value, its error bound, eigenvector (n, 1)).

    For squared losses the NTK is solved, which has the GGN's non-zero spectrum times the loss's
    normaliser; otherwise the GGN. ``v0`` is the eigenvector of an earlier call on the same run, and
    ``options`` are those of the operators.
    """
    if isinstance(loss, losses.SquaredLoss):
        found = eigsh(NTK(model, x, **options), tol=tol, v0=v0, confidence=CONFIDENCE)
        m = loss.normaliser(model(x.clone()), y)
    else:
        ggn = GGN(model, loss, (x, y), **options)
        found = eigsh(ggn, tol=tol, v0=v0, confidence=CONFIDENCE)
        m = 1.0
    return float(found.eigenvalues[0]) / m, float(found.errors[0]) / m, found.eigenvectors


Measured = tuple[float | None, float | None, str | None]  # value, error, or why there is none


class Followed:
    """Lambda of R replicas along their training, as :func:`top_curvature` has it of one.

    The first measurement, those that are asked for, every tenth and those of replicas that jumped
    are checked solves; the others follow the eigenvectors, for about a third of the products
    (:class:`~catapult_ext.TopTracker`).  A replica that cannot be measured ends no other.

    Args:
        model: of the architecture; takes the parameters of a replica where they are asked alone.
        loss: with a Gauss-Newton matrix.
        tol: relative error asked for.
        **options: options of the operators.
    """

    def __init__(self, model: nn.Module, loss: losses.Loss, tol: float, **options: Any) -> None:
        self.model, self.loss = model, loss
        self.tol, self.options = tol, options
        self._start()

    def _start(self) -> None:
        # one guard more than for a change of one step: between probes lie many
        self._top = TopTracker(1, tol=self.tol, guards=2, confidence=CONFIDENCE)

    def keep(self, replicas: Sequence[int]) -> None:
        """Follow these replicas alone from now on."""
        if self._top.warm:
            self._top.keep(replicas)

    @torch.no_grad()
    def update(self, chain: StackedChain, x: Tensor, y: Tensor, check: bool) -> list[Measured]:
        """Lambda of each replica of ``chain`` on probe inputs ``x`` with targets ``y``."""
        try:
            return self._together(chain, x, y, check)
        except Exception as error:
            if ran_out(error):
                raise
        # What fails for all at once is asked one by one: that tells which replica it is.
        self._start()
        return [self._alone(chain, replica, x, y) for replica in range(len(chain))]

    def _together(self, chain: StackedChain, x: Tensor, y: Tensor, check: bool) -> list[Measured]:
        """All replicas through the batched operator."""
        stack: Any = (chain.parameters, {}, self.model)
        operator: Any
        m = 1.0
        if isinstance(self.loss, losses.SquaredLoss):
            operator = NTK(stack, x, **self.options)
            m = self.loss.normaliser(x.new_empty(len(x), chain.layers[-1].units), y)
        else:
            operator = GGN(stack, self.loss, (x, y), **self.options)
        found = self._top.update(operator, check=check)
        values, errors = (found.eigenvalues[:, 0] / m).tolist(), (found.errors[:, 0] / m).tolist()
        lost = "NotFinite: products with the operator are not finite"
        return [
            (value, error, None) if math.isfinite(value) else (None, None, lost)
            for value, error in zip(values, errors, strict=True)
        ]

    def _alone(self, chain: StackedChain, replica: int, x: Tensor, y: Tensor) -> Measured:
        chain.load(self.model, replica)
        try:
            found = top_curvature(self.model, self.loss, x, y, None, self.tol, **self.options)
        except Exception as failure:  # the start was measured: here training left what can be
            return None, None, f"{type(failure).__name__}: {failure}"
        return found[0], found[1], None


@torch.no_grad()
def top_sharpness(
    model: nn.Module, loss: losses.Loss, x: Tensor, y: Tensor, v0: Tensor | None, tol: float
) -> tuple[float, Tensor]:
    """Sharpness, the top Hessian eigenvalue, and its eigenvector (P, 1); ``v0`` as above."""
    found = eigsh(Hessian(model, loss, (x, y)), k=1, tol=tol, v0=v0)
    return float(found.eigenvalues[0]), found.eigenvectors
