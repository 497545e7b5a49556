"""A kernel to disk, killed half-way and resumed, within little anonymous memory: Linux only.

measure_kernel_file.py FOLDER [N]: the kernel (10 N, 10 N), float32, of an MLP 784-512x3-10, within
``memory_budget="1 GiB"``.  Prints JSON: the largest anonymous memory (RssAnon) of both runs beyond
nothing, so Python and torch included, seconds, and an error against products with the kernel.
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

import catapult_ext as cx

MIB = 1 << 20


def anonymous():
    text = Path("/proc/self/status").read_text()
    return next(int(row.split()[1]) * 1024 for row in text.splitlines() if "RssAnon" in row)


def operator(samples):
    torch.manual_seed(0)
    model = cx.models.fully_connected(784, 10, width=512, depth=3, parameterisation="standard")
    return cx.NTK(model.requires_grad_(), torch.randn(samples, 784), memory_budget="1 GiB")


def watch(peak):
    while True:
        peak.value = max(peak.value, anonymous())
        time.sleep(2e-3)


def write(folder, samples, peak, stop, tiles):
    """One run; dies half-way where ``stop`` says so."""
    threading.Thread(target=watch, args=(peak,), daemon=True).start()

    def progress(done, total):
        tiles[0], tiles[1] = done, total
        if stop and 2 * done >= total:
            os.kill(os.getpid(), signal.SIGKILL)

    operator(samples).dense(file=Path(folder) / "kernel.npy", progress=progress)


def main(folder, samples="2000"):
    samples = int(samples)
    context = multiprocessing.get_context("spawn")
    runs = []
    for stop in (True, False):
        peak, tiles = context.Value("q", 0), context.Array("q", 2)
        begun = time.perf_counter()
        process = context.Process(target=write, args=(folder, samples, peak, stop, tiles))
        process.start()
        process.join()
        seconds = round(time.perf_counter() - begun, 1)
        runs.append({"code": process.exitcode, "anonymous": peak.value, "seconds": seconds})
        runs[-1]["tiles"] = list(tiles)
    kernel = operator(samples)
    begun = time.perf_counter()
    mapped = kernel.dense(file=Path(folder) / "kernel.npy")
    opened = time.perf_counter() - begun
    v = torch.randn(mapped.shape[1], 2, generator=torch.Generator().manual_seed(1))
    exact = kernel @ v
    error = float((mapped @ v - exact).norm() / exact.norm())
    corner = slice(0, 4096)
    even = torch.equal(mapped[corner, -4096:], mapped[-4096:, corner].T)
    got = {"shape": list(mapped.shape), "runs": runs, "reopened": round(opened, 2)}
    print(json.dumps(got | {"error": error, "symmetric": even}))


if __name__ == "__main__":
    main(*sys.argv[1:])
