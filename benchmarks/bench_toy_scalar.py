"""toy_scalar against the same map in batched torch, on lanes that all catapult."""

import pytest
import torch
from harness import Case

from catapult_ext import ops, reference


def lanes(count, dtype):
    v = torch.linspace(2.05, 3.4, count, dtype=torch.float64)
    u = torch.full_like(v, 1e-6)
    h = ((v + (v * v - 4 * u).sqrt()) / 2).sqrt()
    return h.to(dtype), (u.sqrt() / h).to(dtype)


def composed(h, k, steps):
    """The (u, v) map as anyone writes it in torch, the peak included."""
    u, v = (h * k).square(), h.square() + k.square()
    peak = u.clone()
    for _ in range(steps):
        u, v = (1 - v + u).square() * u, v - u * (4 - v)
        torch.maximum(peak, u, out=peak)
    return v, peak


@pytest.mark.parametrize("early_exit", [False, True], ids=["every_step", "early_exit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_toy_scalar(measure, quick, dtype, early_exit):
    count, steps = (1 << 12, 100) if quick else (1 << 20, 500)
    h, k = lanes(count, dtype)

    def check():
        got = ops.toy_scalar(h[:999], k[:999], 60, early_exit=early_exit)
        exact = reference.toy_scalar(h[:999].double(), k[:999].double(), 60)
        assert (got.h - exact[0]).abs().max() < (1e-3 if dtype == torch.float32 else 1e-11)

    measure(
        Case(
            ours=lambda: ops.toy_scalar(h, k, steps, early_exit=early_exit),
            baselines={"torch (u, v) map": lambda: composed(h, k, steps)},
            check=check,
            flops=0.0 if early_exit else 10.0 * count * steps,
            bytes=count * (5 * h.element_size() + 16),  # h, k in and out, the peak, two steps
            unit=("lane-steps", count * steps),
        )
    )
