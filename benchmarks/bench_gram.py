"""gram from given factors against the plain-torch composition of the same factors."""

import pytest
import torch
from harness import Case

from catapult_ext import ops, reference

# (input width, hidden width, hidden layers, N, O); the targets are those of the first issue.
SHAPES = {
    "w512-n512-o1": (784, 512, 3, 512, 1),
    "w512-n128-o10": (784, 512, 3, 128, 10),
    "w1024-n512-o1": (784, 1024, 3, 512, 1),
    "w64-n64-o1": (32, 64, 2, 64, 1),
}
ASKED = {"w512-n512-o1": 1.5, "w512-n128-o10": 1.5}


def factors(shape, dtype):
    d, width, depth, samples, outputs = shape
    generator = torch.Generator().manual_seed(0)
    widths = [d] + [width] * depth
    outs = [width] * depth + [outputs]
    a = [torch.randn(samples, w, generator=generator, dtype=dtype) for w in widths]
    g = [torch.randn(samples, outputs, w, generator=generator, dtype=dtype) for w in outs]
    return a, g, [1.0 / w for w in widths], [1.0] * len(widths)


def composed(a, g, scale, bias):
    """One GEMM per Gram matrix, in-place where torch has it."""
    samples, outputs = g[0].shape[:2]
    total = None
    for x, u, s, b in zip(a, g, scale, bias, strict=True):
        inputs = torch.addmm(torch.full((), b, dtype=x.dtype), x, x.T, alpha=s)
        flat = u.reshape(samples * outputs, -1)
        product = flat @ flat.T
        view = product.view(samples, outputs, samples, outputs)
        view.mul_(inputs[:, None, :, None])
        total = product if total is None else total.add_(product)
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", SHAPES)
def test_gram(measure, name, dtype):
    a, g, scale, bias = factors(SHAPES[name], dtype)
    samples, outputs = g[0].shape[:2]

    def check():
        exact = reference.gram(a, g, scale=scale, bias=bias).double()
        got = ops.gram(a, g, scale=scale, bias=bias)
        assert (got - exact).abs().max() <= 1e-4 * exact.abs().max()

    size = samples * outputs
    pairs = sum(samples**2 * x.shape[1] + size**2 * u.shape[2] for x, u in zip(a, g, strict=True))
    measure(
        Case(
            ours=lambda: ops.gram(a, g, scale=scale, bias=bias),
            baselines={"torch composition": lambda: composed(a, g, scale, bias)},
            check=check,
            flops=float(pairs),  # half of 2 N^2 d per Gram: the symmetric part
            bytes=float(a[0].element_size() * (size**2 + sum(t.numel() for t in a + g))),
            target={"torch composition": ASKED[name]} if name in ASKED else {},
        )
    )
