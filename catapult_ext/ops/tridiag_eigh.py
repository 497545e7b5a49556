"""Batched eigenvalues of small symmetric tridiagonal matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from catapult_ext import _native, _validate
from catapult_ext.ops._registry import register


def tridiag_eigh(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues and end components of the eigenvectors of R symmetric tridiagonal matrices.

    The last component times the next off-diagonal is the residual of a Ritz pair; the squared first
    component is its Gauss quadrature weight (Golub and Meurant 2010, sections 3 and 6).

    Args:
        alpha: (R, m) diagonals, float32 or float64. Computed in float64 inside.
        beta: (R, m - 1) off-diagonals, same dtype and device.

    Returns:
        ``(eigenvalues, first, last)``, each (R, m): eigenvalues ascending, and the first and last
        components of their normalised eigenvectors (sign arbitrary, common to both). A matrix with
        non-finite entries gives NaN and leaves the others untouched.

    Raises:
        TypeError: not tensors of float32 or float64, or of different dtypes.
        ValueError: wrong shapes, m = 0, different devices, or an input that requires grad.

    Cost:
        O(R m^2) by implicit QL that carries two rows of the eigenvector matrix.

    Examples:
        >>> alpha, beta = torch.tensor([[2.0, 2.0]]), torch.tensor([[1.0]])
        >>> values, first, last = cx.ops.tridiag_eigh(alpha, beta)
        >>> [round(value, 4) for value in values[0].tolist()]
        [1.0, 3.0]
    """
    where = "tridiag_eigh"
    _validate.tensor(alpha, where, "alpha", ("R", "m"))
    _validate.require(alpha.shape[1] > 0, where, "alpha must have m >= 1", tuple(alpha.shape))
    _validate.tensor(beta, where, "beta", (alpha.shape[0], alpha.shape[1] - 1))
    _validate.same_kind(where, {"alpha": alpha, "beta": beta})
    _validate.no_grad_needed(where, {"alpha": alpha, "beta": beta})
    return torch.ops.catapult.tridiag_eigh(alpha, beta)


def _fake(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = alpha.shape
    return alpha.new_empty(shape), alpha.new_empty(shape), alpha.new_empty(shape)


def _impl(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    out = _fake(alpha, beta)
    _native.call("tridiag_eigh", alpha.device, alpha.contiguous(), beta.contiguous(), *out)
    return out


register("tridiag_eigh(Tensor alpha, Tensor beta) -> (Tensor, Tensor, Tensor)", _impl, _fake)
