"""Cross entropy of many classes, a tile of rows at a time, with two derivatives.

Torch's own keeps the logarithms of all probabilities for its backward pass, and double backward
makes several more tensors of the size of the logits.  Here a pass keeps the logits alone: slope and
second derivative are made of them, tile by tile, into their results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from catapult_ext.losses.factors import TILE, SoftmaxFactor

LARGE = 1 << 22  # entries of logits from which tiles are taken

# rows (n, C) and targets of some rows to the sum of their losses
Sum = Callable[[Tensor, Tensor], Tensor]


@dataclass(eq=False)
class _Terms:
    """Inputs to the losses of all rows, besides their logits."""

    targets: Tensor
    total: Sum
    mass: Tensor
    divisor: float
    factor: SoftmaxFactor | None = None  # of the second derivative, once it was asked for


def takes(rows: Tensor, mass: Tensor) -> bool:
    """Whether tiles serve: logits (R, C) that are large, of target masses (R,) without sign.

    Transforms and forward mode take torch's own formulas.
    """
    return bool(
        rows.numel() >= LARGE
        and rows.dtype in (torch.float32, torch.float64)
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
        and not torch.is_autocast_enabled(rows.device.type)
        and (mass >= 0).all()
    )


def cross_entropy(
    rows: Tensor, targets: Tensor, total: Sum, mass: Tensor, divisor: float
) -> Tensor:
    """The sum of the losses of all rows over ``divisor``, differentiable twice by ``rows``.

    Args:
        rows: logits (R, C).
        targets: (R,) labels or (R, C) probabilities.
        total: the sum of the losses of some rows.
        mass: (R,), the sum of the weighted targets of each row, at least 0.
        divisor: divisor of the sum.
    """
    value: Tensor = _Value.apply(rows, _Terms(targets, total, mass, divisor))
    return value


def _tiles(rows: Tensor) -> list[slice]:
    step = max(1, TILE // rows.shape[1])
    return [slice(at, at + step) for at in range(0, len(rows), step)]


class _Value(torch.autograd.Function):
    exact = True  # its derivatives are those of the formula: nothing to prove

    @staticmethod
    def forward(ctx: Any, rows: Tensor, terms: _Terms) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.terms = terms
        parts = [terms.total(rows[s], terms.targets[s]) for s in _tiles(rows)]
        return torch.stack(parts).sum() / terms.divisor

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _Slope.apply(ctx.saved_tensors[0], g, ctx.terms), None


class _Slope(torch.autograd.Function):
    exact = True

    @staticmethod
    def forward(ctx: Any, rows: Tensor, g: Tensor, terms: _Terms) -> Tensor:
        ctx.save_for_backward(rows, g)
        ctx.terms = terms
        out = torch.empty_like(rows)
        for s in _tiles(rows):
            with torch.enable_grad():
                tile = rows[s].detach().requires_grad_()
                (slope,) = torch.autograd.grad(terms.total(tile, terms.targets[s]), tile)
            torch.mul(slope, g / terms.divisor, out=out[s])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> Any:
        rows, g = ctx.saved_tensors
        terms: _Terms = ctx.terms
        curved = along = None
        if ctx.needs_input_grad[0]:
            if terms.factor is None:
                root = (terms.mass / terms.divisor).sqrt().unsqueeze(1)
                terms.factor = SoftmaxFactor(root, rows.detach())
            curved = terms.factor.hessian(u.unsqueeze(-1)).squeeze(-1).mul_(g)
        if ctx.needs_input_grad[1]:
            along = (_Slope.apply(rows, torch.ones_like(g), terms) * u).sum()
        return curved, along, None
