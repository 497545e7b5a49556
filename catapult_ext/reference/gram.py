"""Reference of gram: the sum over layers, one Hadamard product of two full Gram matrices each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gram(
    a: Sequence[Tensor],
    g: Sequence[Tensor],
    *,
    scale: Sequence[float],
    bias: Sequence[float],
    a2: Sequence[Tensor] | None = None,
    g2: Sequence[Tensor] | None = None,
    outputs: str = "all",
) -> Tensor:
    """Kernel of :func:`catapult_ext.ops.gram`, summed over layers by einsum."""
    if a[0].dim() == 3:  # networks one after the other

        def of(side: Sequence[Tensor] | None, r: int) -> list[Tensor] | None:
            return None if side is None else [t[r] for t in side]

        each = [
            gram(
                [t[r] for t in a],
                [t[r] for t in g],
                scale=scale,
                bias=bias,
                a2=of(a2, r),
                g2=of(g2, r),
                outputs=outputs,
            )
            for r in range(a[0].shape[0])
        ]
        return torch.stack(each)
    a2 = a if a2 is None else a2
    g2 = g if g2 is None else g2
    total = torch.zeros((), dtype=a[0].dtype, device=a[0].device)
    for x, y, u, v, s, b in zip(a, a2, g, g2, scale, bias, strict=True):
        inputs = s * (x @ y.mT) + b
        if outputs == "trace":
            total = total + inputs * torch.einsum("nop,mop->nm", u, v)
        elif outputs == "diagonal":
            total = total + inputs.diagonal()[:, None] * (u * v).sum(-1)
        else:
            total = total + inputs[:, None, :, None] * torch.einsum("nop,mqp->nomq", u, v)
    if outputs == "trace":
        return total
    if outputs == "diagonal":
        return total.reshape(-1)
    return total.flatten(2, 3).flatten(0, 1)
