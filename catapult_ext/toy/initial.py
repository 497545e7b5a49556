"""Initial states of the toy model: Gaussian weights, or their exact law at any width."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from catapult_ext._validate import require


class ReducedState(NamedTuple):
    """w = U'v (B, D), S = U'U (B, D, D), q = v.v (B,), float64."""

    w: Tensor
    S: Tensor
    q: Tensor


def draw_weights(width: int, inputs: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """U (W, D) and v (W,), every entry N(0, 1), float64."""
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
    """
    require(width > inputs, "toy.draw_reduced", f"width must exceed inputs = {inputs}", width)
    q = rng.chisquare(width, size=batch)
    g = rng.standard_normal((batch, inputs))
    A = np.tril(rng.standard_normal((batch, inputs, inputs)), -1)
    freedom = width - 1 - np.arange(inputs)
    diagonal = np.arange(inputs)
    A[:, diagonal, diagonal] = np.sqrt(rng.chisquare(freedom, size=(batch, inputs)))
    S = g[:, :, None] * g[:, None, :] + A @ A.transpose(0, 2, 1)
    w = np.sqrt(q)[:, None] * g
    return ReducedState(torch.from_numpy(w), torch.from_numpy(S), torch.from_numpy(q))


def reduce_weights(U: Tensor, v: Tensor) -> ReducedState:
    """The closed state (without B) of U (W, D), v (W,), formed in float64."""
    U, v = U.double(), v.double()
    return ReducedState(U.t() @ v, U.t() @ U, v @ v)
