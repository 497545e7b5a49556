"""precision="mixed" against full: `python -m benchmarks.mixed_precision [NET ...] [--json FILE]`.

First the rates that bound it: products of matrices and convolutions in float32, in bfloat16 by
torch and in 16-bit integers.  Then one product and one solve (GGN, cross entropy, tol 1e-3) of the
networks of ``benchmarks.real_networks`` in full and in mixed precision.  All are processor times of
one process; the two of a ratio take turns; ``again`` is the ratio of even rounds to odd ones.
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
import torch.nn.functional as F
from torch import nn

import catapult_ext as cx
from benchmarks.harness import machine
from benchmarks.real_networks import problem
from catapult_ext.ops.int16_product import int16_product

SIZES = [(512, 512, 512), (512, 784, 512), (2080, 192, 768), (768, 2080, 192), (1024, 1024, 1024)]
Call = Callable[[], Any]


def in_turns(calls: dict[str, Call], repeats: int) -> dict[str, Any]:
    """Median milliseconds of each call, ratios of the first to the others, and ``again``."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.process_time()
            call()
            spent[name].append(1e3 * (time.process_time() - began))
    (first, base), *others = spent.items()
    out: dict[str, Any] = {
        f"{name} ms": round(statistics.median(t), 3) for name, t in spent.items()
    }
    for name, t in others:
        ratios = [a / b for a, b in zip(base, t, strict=True)]
        out[f"{first} / {name}"] = round(statistics.median(ratios), 3)
    out["again"] = round(statistics.median(base[::2]) / statistics.median(base[1::2]), 3)
    return out


def rates(repeats: int) -> dict[str, Any]:
    """Products of matrices and convolutions by number format."""
    found = {}
    for m, k, n in SIZES:
        a, b = torch.randn(m, k), torch.randn(k, n)
        low_a, low_b = a.bfloat16(), b.bfloat16()
        calls: dict[str, Call] = {
            "float32": lambda a=a, b=b: a @ b,
            "bfloat16": lambda a=low_a, b=low_b: a @ b,
            "int16": lambda a=a, b=b: int16_product(a, b),
        }
        found[f"({m}, {k}) @ ({k}, {n})"] = in_turns(calls, repeats)
    for channels, side in ((16, 32), (64, 8)):
        x = torch.randn(128, channels, side, side).contiguous(memory_format=torch.channels_last)
        w = torch.randn(channels, channels, 3, 3)
        low_x, low_w = x.bfloat16(), w.bfloat16()
        calls = {
            "float32": lambda x=x, w=w: F.conv2d(x, w, padding=1),
            "bfloat16": lambda x=low_x, w=low_w: F.conv2d(x, w, padding=1),
        }
        found[f"convolution 3 x 3, 128 x {channels} x {side} x {side}"] = in_turns(calls, repeats)
    return found


def network(net: str, repeats: int) -> dict[str, Any]:
    """One product and one solve in both precisions."""
    model, x, y = problem(net)
    a = cx.GGN(model, nn.CrossEntropyLoss(), (x, y))
    dual = a.dual()
    operator = a if dual is None else dual.operator
    low = operator.coarse()
    v = torch.randn(operator.shape[0], 1)
    full, mixed = cx.eigsh(a), cx.eigsh(a, precision="mixed")
    miss = (full.eigenvalues - mixed.eigenvalues).abs() <= full.errors + mixed.errors
    assert bool(miss.all())
    products = {"full": lambda: operator @ v, "mixed": lambda: low @ v}
    solves = {"full": lambda: cx.eigsh(a), "mixed": lambda: cx.eigsh(a, precision="mixed")}
    return {
        "mixed": str(a.plan.mixed),
        "product": in_turns(products, repeats),
        "solve": {
            **in_turns(solves, repeats),
            "products": [full.matvecs, mixed.matvecs],
            "relative errors": [float(f.errors / f.eigenvalues) for f in (full, mixed)],
        },
    }


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nets", nargs="*", default=["mlp", "vit", "resnet"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    found: dict[str, Any] = {"rates": rates(given.repeats)}
    for net in given.nets:
        found[net] = network(net, given.repeats)
    print(json.dumps(found, indent=1))
    if given.json is not None:
        given.json.write_text(json.dumps({"machine": machine(), "benchmarks": found}, indent=1))


if __name__ == "__main__":
    main()
