"""Initial states of the replicas: weights, turned weights, or the closed state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from catapult_ext import _validate
from catapult_ext.toy.weights import draw_rotated, draw_weights, reduce_weights, rotate_weights

# Below this many entries U is drawn itself, so that every form starts from the same weights.
DRAW_LIMIT = 1 << 18
DIRECT_LIMIT = 1 << 32


@dataclass(frozen=True)
class InitialStates:
    """One initial state for all replicas (``count`` = 1) or one each."""

    count: int
    weights: Callable[[int], tuple[Tensor, Tensor]]  # (U, v) of one replica, drawn when asked for
    outside: Tensor | None = None  # (count,) norm of what the reduced form leaves out of U

    def rows(self, first: int, last: int, like: Tensor, *, reduced: bool = False) -> list[Tensor]:
        """Fresh contiguous (U, v), or (w, S, q), for the replicas first .. last - 1."""

        def state(i: int) -> Iterable[Tensor]:
            U, v = self.weights(i)
            return (t.to(like) for t in (reduce_weights(U, v) if reduced else (U, v)))

        if self.count == 1:
            shape = (last - first,)
            return [
                t.expand(shape + t.shape).clone(memory_format=torch.contiguous_format)
                for t in state(0)
            ]
        return [torch.stack(parts) for parts in zip(*map(state, range(first, last)), strict=True)]


def make_initial_states(
    where: str,
    form: str,
    width: float,
    basis: Tensor,
    seeds: list[int],
    weights: tuple[Tensor, Tensor] | None,
) -> InitialStates:
    """From given ``weights`` (B, W, D), (B, W), or drawn; in the span of the data if reduced.

    Args:
        where: for the messages.
        form: "direct" or "reduced".
        width: W.
        basis: (D, r) orthonormal basis of the span.
        seeds: one, or one per replica.
        weights: None to draw them.

    Raises:
        ValueError: a width beyond the memory of the direct form.
    """
    inputs, rank = basis.shape

    def source(i: int) -> tuple[Tensor, Tensor]:
        if weights is not None:
            return weights[0][i], weights[1][i]
        return draw_weights(int(width), inputs, np.random.default_rng(seeds[i]))

    count = len(seeds) if weights is None else len(weights[0])
    if form == "direct":
        _validate.require(
            width * inputs <= DIRECT_LIMIT,
            where,
            f"the direct form needs W * D <= {DIRECT_LIMIT}; width must be smaller",
            width,
        )
        return InitialStates(count, source)
    if weights is None and width * inputs > DRAW_LIMIT:
        states = [_drawn(width, inputs, rank, seed) for seed in seeds]
    else:
        states = [_projected(*source(i), basis) for i in range(count)]
    outside = torch.tensor([rest for _, _, rest in states], dtype=torch.float64, device="cpu")
    return InitialStates(count, lambda i: states[i][:2], outside)


def _projected(U: Tensor, v: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, float]:
    """Turned weights in the span of the data, and the norm of the rest of U."""
    inside = U.double() @ basis.to(U.device)
    rest = float(U.double().square().sum() - inside.square().sum())
    return *rotate_weights(inside, v), math.sqrt(max(rest, 0.0))


def _drawn(width: float, inputs: int, rank: int, seed: int) -> tuple[Tensor, Tensor, float]:
    """The same, drawn: a Gaussian U is Gaussian in the coordinates of the span and outside."""
    rng = np.random.default_rng(seed)
    if width > rank:
        U, v = (part[0] for part in draw_rotated(width, rank, rng))
    else:
        U, v = draw_weights(int(width), rank, rng)
    freedom = width * (inputs - rank)
    return U, v, math.sqrt(rng.chisquare(freedom)) if freedom > 0 else 0.0
