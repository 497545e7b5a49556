"""The eigenvalues that experiments follow: top of the loss's Gauss-Newton and Hessian matrices."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import losses
from catapult_ext.eig import eigsh
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


@dataclass(frozen=True)
class Curvatures:
    """Lambda of R replicas; None with the reason where one could not be measured.

    Attributes:
        values: R eigenvalues.
        errors: R bounds of their errors.
        vectors: (R, n, 1) eigenvectors; those given where none was found.
        reasons: R texts, None where all went well.
    """

    values: list[float | None]
    errors: list[float | None]
    vectors: Tensor
    reasons: list[str | None]


@torch.no_grad()
def top_curvatures(
    model: nn.Module,
    chain: StackedChain,
    loss: losses.Loss,
    x: Tensor,
    y: Tensor,
    v0: Tensor,
    tol: float,
    **options: Any,
) -> Curvatures:
    """:func:`top_curvature` of each replica of ``chain``; one that fails ends no other.

    Args:
        model: takes the parameters of a replica.
        chain: R replicas.
        loss: with a Gauss-Newton matrix.
        x: probe inputs.
        y: their targets.
        v0: (R, n, 1) eigenvectors of an earlier call.
        tol: relative error asked for.
        **options: of the operators.
    """
    if len(chain) > 1:
        # What fails for all at once is asked one by one: that tells which replica it is.
        with contextlib.suppress(Exception):
            return _together(model, chain, loss, x, y, v0, tol, **options)
    found = Curvatures([], [], v0.clone(), [])
    for replica, start in enumerate(v0):
        chain.load(model, replica)
        value: float | None
        error: float | None
        try:
            value, error, vector = top_curvature(model, loss, x, y, start, tol, **options)
            found.vectors[replica], reason = vector, None
        except Exception as failure:  # the start was measured: here training left what can be
            value, error, reason = None, None, f"{type(failure).__name__}: {failure}"
        found.values.append(value)
        found.errors.append(error)
        found.reasons.append(reason)
    return found


def _together(
    model: nn.Module,
    chain: StackedChain,
    loss: losses.Loss,
    x: Tensor,
    y: Tensor,
    v0: Tensor,
    tol: float,
    **options: Any,
) -> Curvatures:
    """All replicas in one solve of the batched operator."""
    stack: Any = (chain.parameters, {}, model)
    operator: Any
    m = 1.0
    if isinstance(loss, losses.SquaredLoss):
        operator = NTK(stack, x, **options)
        m = loss.normaliser(x.new_empty(len(x), chain.layers[-1].units), y)
    else:
        operator = GGN(stack, loss, (x, y), **options)
    found = eigsh(operator, tol=tol, v0=v0, confidence=CONFIDENCE)
    vectors = torch.where(found.eigenvectors.isfinite(), found.eigenvectors, v0)
    values, errors = (found.eigenvalues[:, 0] / m).tolist(), (found.errors[:, 0] / m).tolist()
    known = [math.isfinite(value) for value in values]
    lost = "NotFinite: products with the operator are not finite"
    return Curvatures(
        [value if good else None for value, good in zip(values, known, strict=True)],
        [error if good else None for error, good in zip(errors, known, strict=True)],
        vectors,
        [None if good else lost for good in known],
    )


@torch.no_grad()
def top_sharpness(
    model: nn.Module, loss: losses.Loss, x: Tensor, y: Tensor, v0: Tensor | None, tol: float
) -> tuple[float, Tensor]:
    """Sharpness, the top Hessian eigenvalue, and its eigenvector (P, 1); ``v0`` as above."""
    found = eigsh(Hessian(model, loss, (x, y)), k=1, tol=tol, v0=v0)
    return float(found.eigenvalues[0]), found.eigenvectors
