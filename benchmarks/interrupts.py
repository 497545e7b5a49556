"""How long Ctrl-C waits: `python -m benchmarks.interrupts [--json FILE]`.

A timer sends a signal every 20 ms of processor time during each call.  Python runs its handler
between two pieces of native work, so that the largest gap between two handlers is the longest piece
(in processor seconds, which a busy machine does not blur; one thread).
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import catapult_ext as cx
from benchmarks.harness import machine
from catapult_ext import ops

PERIOD = 0.02


def longest(call: Callable[[], Any]) -> tuple[float, float]:
    """Processor seconds of the call, and of its longest piece."""
    seen = []
    before = signal.signal(signal.SIGPROF, lambda *_: seen.append(time.process_time()))
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, PERIOD, PERIOD)
    try:
        call()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    ended = time.process_time()
    marks = [began, *seen, ended]
    return ended - began, max(b - a for a, b in itertools.pairwise(marks))


def calls() -> dict[str, Callable[[], Any]]:
    """Calls of a second or more, of every kind."""
    mlp = cx.models.fully_connected(784, 10, width=512, depth=3)
    digits = cx.data.digits(size=28).train
    resnet = cx.models.resnet(20, 10).eval()
    images = cx.data.synthetic_images(64, 0, shape=(3, 16, 16)).train
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(1500, 1500, generator=g)
    rows = torch.randn(4000, 3000, generator=g), torch.randn(4000, 1, 4, generator=g)
    toy = {"x": torch.randn(20, 5, generator=g), "y": torch.randn(20, generator=g)}
    rare = {"steps": 200_000, "record_every": 200_000, "curvature_every": 200_000}
    many = {"steps": 5_000_000, "record_every": 5_000_000, "curvature_every": 5_000_000}
    return {
        "eigsh of the MLP's GGN": lambda: cx.eigsh(cx.GGN(mlp, "half_mse", digits), 5),
        "eigsh of the ResNet's Hessian": lambda: cx.eigsh(
            cx.Hessian(resnet, "half_mse", images), 2, tol=1e-2
        ),
        "eigsh of a matrix, n = 1500": lambda: cx.eigsh(matrix + matrix.T, 3),
        "spectral_density": lambda: cx.spectral_density(cx.GGN(mlp, "half_mse", digits), 16, 4),
        "hutchinson_trace": lambda: cx.hutchinson_trace(cx.GGN(mlp, "half_mse", digits), 64),
        "NTK.dense of the MLP": lambda: cx.NTK(mlp, digits[0]).dense(),
        "NTK.dense of the ResNet": lambda: cx.NTK(resnet, images[0]).dense(),
        "Hessian.dense": lambda: cx.Hessian(
            cx.models.fully_connected(64, 10, width=48, depth=2),
            "half_mse",
            cx.data.digits().train,
        ).dense(),
        "learning_rate_window": lambda: cx.learning_rate_window(mlp, "half_mse", digits),
        "ops.gram, N = 4000": lambda: ops.gram([rows[0]], [rows[1]], scale=[1.0], bias=[0.0]),
        "toy.simulate, ReLU": lambda: cx.toy.simulate(
            activation="relu", c=[0.3, 0.5], width=256, **toy, **rare
        ),
        "toy.simulate, reduced": lambda: cx.toy.simulate(c=[0.3, 0.5], width=10**6, **toy, **many),
        "toy.phase_diagram": lambda: cx.toy.phase_diagram(resolution=2000),
        "toy.lyapunov_edge": lambda: cx.toy.lyapunov_edge(0.9, 0.2, tolerance=0.0005),
    }


def main() -> None:
    """Print a line a call; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = {}
    for name, call in calls().items():
        seconds, piece = longest(call)
        found[name] = {"seconds": round(seconds, 3), "longest_piece": round(piece, 3)}
        print(f"{name:34s} {seconds:8.2f} s, longest piece {piece:.3f} s", flush=True)
    if given.json is not None:
        command = "OMP_NUM_THREADS=1 python -m benchmarks.interrupts --json FILE"
        page = {"command": command, "machine": machine(), "benchmarks": found}
        given.json.write_text(json.dumps(page, indent=1) + "\n")


if __name__ == "__main__":
    main()
