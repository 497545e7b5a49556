"""Paths of heavy ball with a random curvature, and the plane (momentum, noise) of its edges."""

import time

import numpy as np
import torch
from harness import Case

from catapult_ext import ops, reference, toy
from catapult_ext.reference.toy_lyapunov import draws


def composed(mean, deviation, beta, z):
    """The same paths as anyone writes them in torch, rescaled at every eighth step."""
    x = torch.ones(len(mean), z.shape[1], dtype=torch.float64)
    y, growth = x.clone(), torch.zeros_like(x)
    still = (1 + beta - mean)[:, None]
    for t, drawn in enumerate(z):
        x, y = (still - deviation[:, None] * drawn) * x - beta[:, None] * y, x
        if t % 8 == 7:
            size = torch.maximum(x.abs(), y.abs())
            growth += size.log()
            x, y = x / size, y / size
    return growth + torch.hypot(x, y).log()


def test_toy_lyapunov(measure, quick):
    """Paths of one row of the plane; the draws are given to torch for nothing."""
    cases, paths, steps = (16, 8, 64) if quick else (128, 64, 1000)
    beta = torch.full((cases,), 0.9, dtype=torch.float64)
    deviation = torch.linspace(0.1, 3.0, cases, dtype=torch.float64)
    z = draws("normal", steps, paths)

    def check():
        got = ops.toy_lyapunov(2 * deviation, deviation, beta, 50, paths=8)
        exact = reference.toy_lyapunov(2 * deviation, deviation, beta, 50, paths=8)
        torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-10)

    measure(
        Case(
            ours=lambda: ops.toy_lyapunov(deviation, deviation, beta, steps, paths=paths),
            baselines={"batched torch": lambda: composed(deviation, deviation, beta, z)},
            check=check,
            flops=5.0 * cases * paths * steps,
            bytes=8.0 * (3 + paths) * cases,
            unit=("path-steps", cases * paths * steps),
        )
    )


def test_noise_plane(benchmark, quick):
    """128 x 128 points with bars of 2 %, once: the processor's time counts, on any machine."""
    size = 6 if quick else 128
    wall, used = time.perf_counter(), time.process_time()
    plane = toy.noise_plane(resolution=size, tolerance=0.02)
    wall, used = time.perf_counter() - wall, time.process_time() - used
    bars, ratio = plane.error / plane.lyapunov, plane.lyapunov / plane.mean_square
    assert bars.max() <= 0.02
    assert (plane.lyapunov + plane.error >= plane.mean_square).all()
    benchmark.extra_info.update(
        {
            "seconds": {"ours": wall},
            "processor_seconds": used,
            "points": size * size,
            "threads": torch.get_num_threads(),
            "largest_relative_bar": float(bars.max()),
            "median_relative_bar": float(np.median(bars)),
            "lyapunov_over_mean_square": [float(ratio.min()), float(ratio.max())],
            "speedup": {},
            "target": {},
        }
    )
    benchmark.pedantic(lambda: None, rounds=1, iterations=1)
