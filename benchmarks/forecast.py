"""Plans in seconds against the clock: `python -m benchmarks.forecast [--json FILE]`.

Ratios of the forecast to the processor seconds of a product with one column, and of ``dense()``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import catapult_ext as cx
from benchmarks.harness import machine
from catapult_ext.testing.attention import GPT

TIMES = 5


def seconds(call: Callable[[], Any], times: int = TIMES) -> float:
    """Median of processor seconds."""
    out = []
    for _ in range(times):
        began = time.process_time()
        call()
        out.append(time.process_time() - began)
    return statistics.median(out)


def operators() -> dict[str, Any]:
    """Small and large ones of every engine."""
    mlp = cx.models.fully_connected(784, 10, width=512, depth=3)
    x, y = (part[:512] for part in cx.data.digits(size=28).train)
    small = cx.models.fully_connected(64, 10, width=32, depth=2)
    digits = cx.data.digits(train=128).train
    resnet = cx.models.resnet(20, 10).eval()
    images, labels = cx.data.synthetic_images(512, 0, shape=(3, 16, 16)).train
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 12 * 12, 10),
    )
    tokens = torch.randint(0, 7, (256, 5)), torch.arange(256) % 3
    few = images[:64], labels[:64]
    return {
        "NTK, MLP, N = 512": cx.NTK(mlp, x),
        "GGN, MLP, N = 512": cx.GGN(mlp, "half_mse", (x, y)),
        "Hessian, MLP, N = 512": cx.Hessian(mlp, "half_mse", (x, y)),
        "GGN, MLP, autograd": cx.GGN(mlp, "half_mse", (x, y), engine="autograd"),
        "NTK, ResNet-20, N = 64": cx.NTK(resnet, few[0]),
        "GGN, ResNet-20, N = 64": cx.GGN(resnet, "half_mse", few),
        "Hessian, ResNet-20, N = 64": cx.Hessian(resnet, "half_mse", few),
        "GGN, ResNet-20, N = 512": cx.GGN(resnet, "half_mse", (images, labels)),
        "GGN, ResNet-20, in chunks": cx.GGN(
            resnet, "half_mse", (images, labels), samples_at_once=128
        ),
        "NTK, conv net, N = 256": cx.NTK(conv, images[:256]),
        "GGN, small MLP": cx.GGN(small, "half_mse", digits),
        "GGN, small transformer": cx.GGN(GPT(), "cross_entropy", tokens),
    }


def main() -> None:
    """Print a line an operator; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    given, found = parser.parse_args(), {}
    for name, operator in operators().items():
        plan, vector = operator.plan, torch.randn(operator.shape[1])
        real = seconds(lambda a=operator, v=vector: a @ v)
        row = {"product": {"seconds": real, "ratio": plan.product_seconds / real}}
        if plan.side <= 6000:
            real = seconds(operator.dense, 1)
            row["dense"] = {"seconds": real, "ratio": plan.dense_seconds / real}
        found[name] = row
        shown = (f"{k} {v['seconds']:.4f} s, forecast x {v['ratio']:.2f}" for k, v in row.items())
        print(f"{name:28s} {'; '.join(shown)}", flush=True)
    if given.json is not None:
        command = "OMP_NUM_THREADS=1 python -m benchmarks.forecast --json FILE"
        page = {"command": command, "machine": machine(), "benchmarks": found}
        given.json.write_text(json.dumps(page, indent=1) + "\n")


if __name__ == "__main__":
    main()
