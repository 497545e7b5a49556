"""Top eigenpairs of batches of small explicit matrices, by what is fastest on their device."""

from __future__ import annotations

import torch
from torch import Tensor

from catapult_ext import ops
from catapult_ext.ops.routes import serves

_TOL = 1e-13  # of the residuals: values are right to rounding


def top_eigenvalues(matrices: Tensor, k: int = 1) -> Tensor:
    """The k largest eigenvalues (R, k), descending, of symmetric matrices (R, n, n), float64.

    By LAPACK on the CPU.  On a GPU torch solves the matrices of a batch one after the other, and
    ``ops.lanczos_dense`` takes all at once.
    """
    if _all_at_once(matrices):
        return ops.lanczos_dense(matrices, k, tol=_TOL).eigenvalues
    return torch.linalg.eigvalsh(matrices)[:, -k:].flip(1)


def top_eigenvectors(matrices: Tensor, k: int = 1) -> Tensor:
    """Unit eigenvectors (R, n, k) of the k largest eigenvalues; see :func:`top_eigenvalues`."""
    if _all_at_once(matrices):
        return ops.lanczos_dense(matrices, k, tol=_TOL).eigenvectors.mT
    return torch.linalg.eigh(matrices).eigenvectors[:, :, -k:].flip(2)


def _all_at_once(matrices: Tensor) -> bool:
    far = matrices.device.type != "cpu"
    return far and serves("lanczos_dense", matrices.device, matrices.shape[1])
