"""Gaussian weights of the toy model, or their exact law at any width; their closed state."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from catapult_ext import _validate


class ReducedState(NamedTuple):
    """Reduced state w = U'v (B, D), S = U'U (B, D, D), q = v.v (B,), float64.

    Examples:
        >>> import numpy as np
        >>> w, S, q = cx.toy.draw_reduced(1e6, 2, np.random.default_rng(0), batch=4)
        >>> S.shape
        torch.Size([4, 2, 2])
    """

    w: Tensor
    S: Tensor
    q: Tensor


def draw_weights(width: int, inputs: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """U (W, D) and v (W,), every entry N(0, 1), float64.

    Examples:
        >>> import numpy as np
        >>> U, v = cx.toy.draw_weights(64, 3, np.random.default_rng(0))
        >>> U.shape, v.shape
        (torch.Size([64, 3]), torch.Size([64]))
    """
    U = rng.standard_normal((width, inputs))
    return torch.from_numpy(U), torch.from_numpy(rng.standard_normal(width))


def draw_reduced(
    width: float, inputs: int, rng: np.random.Generator, batch: int = 1
) -> ReducedState:
    """Draw (w, S, q) with the exact law of Gaussian (U, v), without drawing U.

    Bartlett's decomposition of a Wishart matrix, with one direction of the hidden space along v:
    q ~ chi2_W, g ~ N(0, I_D), w = sqrt(q) g, S = g g' + A A' with A lower triangular,
    A_ii^2 ~ chi2 with W - 1, W - 2, ... degrees of freedom and A_ij ~ N(0, 1).

    Args:
        width: W > inputs, up to 1e15; need not be an integer.
        inputs: D.
        rng: numpy generator.
        batch: B independent states.

    Raises:
        ValueError: width <= inputs (draw the weights themselves).

    Cost:
        O(B D^3), whatever the width.

    Examples:
        >>> import numpy as np
        >>> state = cx.toy.draw_reduced(1e6, 3, np.random.default_rng(0))
        >>> state.w.shape, state.S.shape, state.q.shape
        (torch.Size([1, 3]), torch.Size([1, 3, 3]), torch.Size([1]))
    """
    _validate.require(
        width > inputs, "toy.draw_reduced", f"width must exceed inputs = {inputs}", width
    )
    U, v = draw_rotated(width, inputs, rng, batch)
    q = v[:, 0].square()
    return ReducedState(v[:, :1] * U[:, 0], U.mT @ U, q)


def draw_rotated(
    width: float, inputs: int, rng: np.random.Generator, batch: int = 1
) -> tuple[Tensor, Tensor]:
    """Gaussian (U, v) turned in the hidden space until only D + 1 rows are left, without drawing U.

    v = (sqrt q, 0, ...), U = [g'; A'] in the notation of :func:`draw_reduced`, float64. With a
    linear activation the turned weights train like the others.

    Returns:
        U (B, D + 1, D) and v (B, D + 1).
    """
    q = rng.chisquare(width, size=batch)
    g = rng.standard_normal((batch, inputs))
    A = np.tril(rng.standard_normal((batch, inputs, inputs)), -1)
    freedom = width - 1 - np.arange(inputs)
    diagonal = np.arange(inputs)
    A[:, diagonal, diagonal] = np.sqrt(rng.chisquare(freedom, size=(batch, inputs)))
    U = np.concatenate([g[:, None], A.transpose(0, 2, 1)], axis=1)
    v = np.zeros((batch, inputs + 1))
    v[:, 0] = np.sqrt(q)
    return torch.from_numpy(U), torch.from_numpy(v)


def rotate_weights(U: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """U (W, D) and v (W,) turned in the hidden space into at most D + 1 rows, in float64."""
    U, v = U.double(), v.double()
    if len(U) <= U.shape[1] + 1:
        return U, v
    rows = torch.linalg.qr(torch.cat([v[:, None], U], 1), mode="r").R
    return rows[:, 1:].contiguous(), rows[:, 0].contiguous()


def reduce_weights(U: Tensor, v: Tensor) -> ReducedState:
    """The closed state (without B) of U (W, D), v (W,), formed in float64."""
    U, v = U.double(), v.double()
    return ReducedState(U.t() @ v, U.t() @ U, v @ v)
