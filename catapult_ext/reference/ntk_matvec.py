"""Reference of ntk_matvec: back through the layers, then forward with the sources added."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor


def ntk_matvec(
    v: Tensor,
    *,
    weights: Sequence[Tensor],
    inputs: Sequence[Tensor],
    slopes: Sequence[Tensor],
    scale: Sequence[float],
    bias: Sequence[float],
    grams: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Product of :func:`catapult_ext.ops.ntk_matvec`; letters r n o k, p and d of a layer."""
    replicas, samples, outputs = v.shape[0], inputs[0].shape[1], weights[-1].shape[1]
    g = v.reshape(replicas, samples, outputs, v.shape[2])
    grads = [g]
    for layer in reversed(range(1, len(weights))):
        g = sqrt(scale[layer]) * torch.einsum("rnpk,rpd->rndk", g, weights[layer])
        g = g * slopes[layer - 1][..., None]
        grads.insert(0, g)
    x = None
    for layer, g in enumerate(grads):
        a, s = inputs[layer], scale[layer]
        gram = None if grams is None else grams[layer]
        if gram is None:
            source = s * torch.einsum("rnd,rmd,rmpk->rnpk", a, a, g)
        else:
            source = s * torch.einsum("rnm,rmpk->rnpk", gram, g)
        source = source + bias[layer] * g.sum(1, keepdim=True)
        if x is not None:
            masked = x * slopes[layer - 1][..., None]
            source = source + sqrt(s) * torch.einsum("rndk,rpd->rnpk", masked, weights[layer])
        x = source
    assert x is not None
    return x.reshape(v.shape)
