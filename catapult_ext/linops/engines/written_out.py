"""When the kernel of a chain, written out, is cheaper to solve than its products are to repeat."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_PRODUCTS = 12  # of a solve for a top eigenvalue, its check included
_STEP = 2e7  # flops in the time that a step takes besides its product
_ROWS = 1024  # beyond, a factorisation costs more than products in every case that was measured


def worth_writing_out(
    samples: int,
    outputs: int,
    sizes: Sequence[Sequence[int]],
    product_flops: float,
    device: torch.device,
) -> bool:
    """Whether to solve with the kernel (N*O, N*O) itself, on the CPU.

    Args:
        samples: N.
        outputs: O.
        sizes: (p, d) of each layer's weight.
        product_flops: of one product.
        device: device of the chain.
    """
    n = samples * outputs
    if device.type != "cpu" or n > _ROWS:
        return False
    kernel = sum(float(n) * n * p + float(samples) * samples * d for p, d in sizes)
    return kernel + n**3 / 3 <= _PRODUCTS * (product_flops + _STEP)
