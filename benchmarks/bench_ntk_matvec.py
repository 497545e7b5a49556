"""ntk_matvec in forward passes of the same model, and against a torch-GEMM composition."""

from itertools import pairwise

import pytest
import torch
from harness import Case

from catapult_ext import ops

# (widths, N, K, R); the first is the shape of the first issue, which asks for 2.6 forward passes.
SHAPES = {
    "w1024-n512-k1": ((784, 1024, 1024, 1024, 10), 512, 1, 1),
    "w1024-n512-k8": ((784, 1024, 1024, 1024, 10), 512, 8, 1),
    "w512-n512-k1": ((784, 512, 512, 512, 10), 512, 1, 1),
    "w64-n64-k1-r16": ((32, 64, 64, 1), 64, 1, 16),
}
ASKED_FORWARDS = 2.6


def frozen_chain(widths, samples, replicas, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(replicas, samples, widths[0], generator=generator, dtype=dtype)
    frozen = {"weights": [], "inputs": [], "slopes": [], "grams": []}
    for d, p in pairwise(widths):
        w = torch.randn(replicas, p, d, generator=generator, dtype=dtype)
        frozen["weights"].append(w)
        frozen["inputs"].append(x)
        frozen["grams"].append(x @ x.mT)
        z = x @ w.mT * (2 / d) ** 0.5
        frozen["slopes"].append((z > 0).to(dtype))
        x = z.clamp(min=0)
    frozen["slopes"].pop()
    frozen["scale"] = [2.0 / d for d in widths[:-1]]
    frozen["bias"] = [0.0] * len(widths[1:])
    return frozen


def forward(frozen):
    x = frozen["inputs"][0]
    for layer, (w, s) in enumerate(zip(frozen["weights"], frozen["scale"], strict=True)):
        x = torch.bmm(x, w.mT).mul_(s**0.5)
        if layer + 1 < len(frozen["weights"]):
            x.relu_()
    return x


def composed(v, frozen):
    """The sample-space product with torch GEMMs: two per layer and direction, in place."""
    weights, slopes, grams = (frozen[k] for k in ("weights", "slopes", "grams"))
    replicas, _, vectors = v.shape
    samples = grams[0].shape[1]
    g = v.reshape(replicas, samples, -1, vectors).movedim(3, 1).flatten(0, 1)
    expand = [
        [t if vectors == 1 else t.repeat_interleave(vectors, 0) for t in part]
        for part in (weights, slopes, grams)
    ]
    weights, slopes, grams = expand
    grads = [g]
    for w, mask, s in list(zip(weights[1:], slopes, frozen["scale"][1:], strict=True))[::-1]:
        g = torch.bmm(g, w).mul_(mask).mul_(s**0.5)
        grads.insert(0, g)
    x = torch.bmm(grams[0], grads[0]).mul_(frozen["scale"][0])
    for layer in range(1, len(weights)):
        s = frozen["scale"][layer]
        x = torch.bmm(x.mul_(slopes[layer - 1]).mul_(s**0.5), weights[layer].mT)
        x.baddbmm_(grams[layer], grads[layer], alpha=s)
    return x.view(replicas, vectors, -1).mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", SHAPES)
def test_ntk_matvec(measure, name, dtype):
    widths, samples, vectors, replicas = SHAPES[name]
    frozen = frozen_chain(widths, samples, replicas, dtype)
    generator = torch.Generator().manual_seed(1)
    size = samples * widths[-1]
    v = torch.randn(replicas, size, vectors, generator=generator, dtype=dtype)

    def check():
        exact = composed(v, frozen).double()
        assert (ops.ntk_matvec(v, **frozen) - exact).abs().max() <= 1e-4 * exact.abs().max()

    pairs = [(p, d) for d, p in pairwise(widths)]
    per_vector = sum(4 * samples * p * d for p, d in pairs[1:])
    per_vector += sum(2 * samples**2 * p for p, _ in pairs)
    forwards = "forward pass"
    info = measure(
        Case(
            ours=lambda: ops.ntk_matvec(v, **frozen),
            baselines={
                forwards: lambda: forward(frozen),
                "torch composition": lambda: composed(v, frozen),
            },
            check=check,
            flops=float(replicas * vectors * per_vector),
            target={forwards: 1 / ASKED_FORWARDS} if name == "w1024-n512-k1" else {},
        )
    )
    info["forwards_per_vector"] = 1 / info["speedup"][forwards] / vectors
