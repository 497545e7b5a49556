"""Operations composed of simpler ones, where torch's own lack a derivative or have a wrong one.

torch's fused layer norm holds mean and deviation fixed in its third derivative (torch 2.13), which
a Hessian needs where the forward pass differentiates by its inputs.  Hard sigmoid, the distance
matrices and embedding bags have no second derivative.  The fused operations are faster, so that a
model is run so only where a pass has shown that it matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Composed(TorchFunctionMode):
    """Runs the operations of this module in place of torch's own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _COMPOSED.get(func, func)(*args, **(kwargs or {}))


class Composition:
    """Whether a model runs so; one object for all parts of its samples."""

    def __init__(self) -> None:
        self.on = False


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """``torch.nn.functional.layer_norm``."""
    dims = tuple(range(-len(normalized_shape), 0))
    centred = x - x.mean(dims, keepdim=True)
    out = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    """``torch.nn.functional.hardsigmoid``."""
    return (x / 6 + 0.5).clamp(0, 1)


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "") -> Tensor:
    """``torch.cdist``; the distance of equal points has the gradient zero, as there."""
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


def pdist(x: Tensor, p: float = 2.0) -> Tensor:
    """``torch.nn.functional.pdist``."""
    i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
    return torch.linalg.vector_norm(x[i] - x[j], p, -1)


def embedding_bag(
    ids: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """``torch.nn.functional.embedding_bag``; with ``max_norm`` or frequencies torch's own."""
    if max_norm is not None or scale_grad_by_freq:
        return F.embedding_bag(
            ids,
            weight,
            offsets,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            per_sample_weights,
            include_last_offset,
            padding_idx,
        )
    given, kept = (torch.ones(ids.shape, dtype=torch.bool, device=ids.device),) * 2
    if ids.dim() == 1 and offsets is not None:
        places, given = _bags(offsets[:-1] if include_last_offset else offsets, len(ids))
        ids = ids[places]
        if per_sample_weights is not None:
            per_sample_weights = per_sample_weights[places]
    kept = given if padding_idx is None else given & (ids != padding_idx % len(weight))
    rows = F.embedding(ids, weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    inside, counts = kept.unsqueeze(-1), kept.sum(1).unsqueeze(-1)
    if mode == "max":
        largest = rows.masked_fill(~inside, float("-inf"))
        # an empty bag is zero
        return largest.masked_fill(counts.unsqueeze(-1) == 0, 0).amax(1)
    total = rows.masked_fill(~inside, 0).sum(1)
    return total if mode == "sum" else total / counts.clamp_min(1)


def _bags(offsets: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Positions (bags, longest) of the ids of each bag of n ids, and which of them are there."""
    ends = torch.cat([offsets[1:], offsets.new_tensor([n])])
    steps = torch.arange(max(1, int((ends - offsets).max())), device=offsets.device)
    places = offsets.unsqueeze(1) + steps
    return places.clamp_max(max(0, n - 1)), places < ends.unsqueeze(1)


_COMPOSED: dict[Any, Any] = {
    F.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    F.hardsigmoid: hardsigmoid,
    torch.cdist: cdist,
    F.pdist: pdist,
    torch.pdist: pdist,
    F.embedding_bag: embedding_bag,
}
