"""The kernel of a whole data set in a file: `python -m benchmarks.whole_kernel FOLDER`.

The NTK of an MLP 784-512x3-1 on Fashion-MNIST is written by a process that is killed half-way and
by a second one that resumes.  Printed are the flops that symmetry leaves, the rates of the
machine's matrix product and disk, seconds beside flops / (0.65 sgemm) + bytes / disk, anonymous
memory beyond the images; then top eigenpairs, a regression of one class against the rest, and the
same by a Cholesky factor in float64 on 5,000 samples.  FOLDER needs 4 N^2 bytes of disk.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WIDTH, DEPTH, PIXELS = 512, 3, 784
SHARE = 0.65  # of the matrix product's rate that the time allowed supposes
DISK_BYTES = 1 << 31


def operator(samples: int, threads: int) -> tuple[Any, Any, Any]:
    """The kernel, its model and its data."""
    import torch

    import catapult_ext as cx

    torch.set_num_threads(threads)
    data = cx.data.named("fashion-mnist", train=samples, test=10_000)
    model = cx.models.fully_connected(
        PIXELS, 1, width=WIDTH, depth=DEPTH, parameterisation="standard", seed=0
    )
    return cx.NTK(model.requires_grad_(), data.x_train.flatten(1)), model, data


def flops(samples: int) -> float:
    """Of the Grams of one triangle: a multiply-add for each input and each derivative."""
    inputs = PIXELS + DEPTH * WIDTH
    derivatives = DEPTH * WIDTH + 1
    return float(samples) ** 2 * (inputs + derivatives)


def sgemm(threads: int) -> float:
    """Flops a second of a float32 product, the best of five."""
    import torch

    torch.set_num_threads(threads)
    a = torch.randn(4096, 4096)
    best = min(seconds(lambda: a @ a) for _ in range(5))
    return 2.0 * 4096**3 / best


def disk(folder: Path) -> tuple[float, float]:
    """Bytes a second written (and synced) and read back from the disk."""
    block, path = os.urandom(1 << 24), folder / "rate.tmp"
    count = DISK_BYTES // len(block)

    def write() -> None:
        with open(path, "wb", buffering=0) as file:
            for _ in range(count):
                file.write(block)
            os.fsync(file.fileno())

    def read() -> None:
        with open(path, "rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while file.read(1 << 24):
                pass

    rates = DISK_BYTES / seconds(write), DISK_BYTES / seconds(read)
    path.unlink()
    return rates


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def anonymous() -> int:
    """Bytes of this process that no file backs; Linux only."""
    text = Path("/proc/self/status").read_text()
    return next(int(row.split()[1]) * 1024 for row in text.splitlines() if "RssAnon" in row)


def watch(peak: Any) -> None:
    """Keep the largest anonymous memory."""
    while True:
        peak.value = max(peak.value, anonymous())
        time.sleep(0.02)


def write(file: str, samples: int, threads: int, stop: bool, facts: Any, peak: Any) -> None:
    """One run of the writer; dies half-way where ``stop`` says so."""
    kernel, _, _ = operator(samples, threads)
    facts[2] = anonymous()
    threading.Thread(target=watch, args=(peak,), daemon=True).start()
    begun = time.perf_counter()

    def progress(done: int, tiles: int) -> None:
        facts[0] = time.perf_counter() - begun
        facts[1] = done / tiles
        if stop and 2 * done >= tiles:
            os.kill(os.getpid(), signal.SIGKILL)

    kernel.dense(file=file, progress=progress)
    facts[0] = time.perf_counter() - begun


def written(file: Path, samples: int, threads: int) -> dict[str, Any]:
    """Two runs, the first one killed."""
    context = multiprocessing.get_context("spawn")
    runs = []
    for stop in (True, False):
        facts, peak = context.Array("d", 3), context.Value("q", 0)
        process = context.Process(
            target=write, args=(str(file), samples, threads, stop, facts, peak)
        )
        process.start()
        process.join()
        runs.append(
            {
                "code": process.exitcode,
                "seconds": facts[0],
                "share": facts[1],
                "anonymous_before": facts[2],
                "anonymous_peak": peak.value,
            }
        )
    return {"runs": runs, "seconds": sum(run["seconds"] for run in runs)}


def eigenpairs(stored: Any) -> dict[str, Any]:
    """The 20 largest, with and without the check that none is missed."""
    import catapult_ext as cx

    out = {}
    for name, confidence in (("no index check", None), ("index check", 0.99)):
        before, begun = stored.passes, time.perf_counter()
        found = cx.eigsh(stored, k=20, confidence=confidence)
        error = (found.errors.double() / found.eigenvalues.double()).max().item()
        out[name] = {
            "passes": stored.passes - before,
            "seconds": time.perf_counter() - begun,
            "largest_relative_error": error,
            "top": found.eigenvalues[0].item(),
        }
    return out


def regression(stored: Any, model: Any, data: Any, top: float, shift: float) -> dict[str, Any]:
    """One class against the rest from the file; accuracy on the test images."""
    import catapult_ext as cx

    y = 2 * data.y_train[:, :1] - 1
    before, begun = stored.passes, time.perf_counter()
    found = cx.solve(stored, y, shift=shift * top, tol=1e-4, preconditioner=400)
    took = time.perf_counter() - begun
    return {
        "shift": shift * top,
        "passes": stored.passes - before,
        "steps": found.steps,
        "seconds": took,
        "residual": (found.residuals[0] / y.double().norm()).item(),
        "error_bound_relative": (found.errors[0] / found.x.double().norm()).item(),
        "test_accuracy": accuracy(model, data, found.x),
    }


def accuracy(model: Any, data: Any, alpha: Any) -> float:
    """Share of test images whose sign is right, from products with the cross kernel."""
    import catapult_ext as cx

    x = data.x_train.flatten(1)[: len(alpha)]
    cross = cx.NTK(model, data.x_test.flatten(1), x2=x)
    predicted = cross @ alpha
    return ((predicted > 0) == (data.y_test[:, :1] > 0.5)).double().mean().item()


def small_reference(model: Any, data: Any, stored: Any, shift: float) -> dict[str, Any]:
    """The same regression on the first 5,000 samples, factorised in float64."""
    import torch

    import catapult_ext as cx

    n = min(5000, stored.shape[0])
    matrix = torch.empty(n, n, dtype=torch.float64)
    for at, panel in stored.rows():
        stop = min(at + len(panel), n)
        if at >= n:
            break
        matrix[at:stop, :stop] = panel[: stop - at, :stop]
    matrix = torch.tril(matrix) + torch.tril(matrix, -1).T
    top = cx.eigsh(matrix, k=1, tol=1e-4).eigenvalues.item()
    y = 2 * data.y_train[:n, :1] - 1
    begun = time.perf_counter()
    factor = cx.cholesky(matrix, shift=shift * top, lower=0.0)
    exact = factor.solve(y)
    took = time.perf_counter() - begun
    left_out = cx.leave_one_out(factor, y)
    signs = (left_out.predictions > 0) == (y > 0)
    return {
        "samples": n,
        "seconds": took,
        "test_accuracy": accuracy(model, data, exact.x.float()),
        "leave_one_out_accuracy": signs.double().mean().item(),
    }


def measured(folder: Path, samples: int, threads: int, shift: float) -> dict[str, Any]:
    """All of it, as numbers."""
    import torch

    import catapult_ext as cx

    file = folder / "kernel.npy"
    for old in (file, folder / "kernel.npy.json"):  # of an earlier measurement
        old.unlink(missing_ok=True)
    rates = [sgemm(threads)]
    write_rate, read_rate = disk(folder)
    wrote = written(file, samples, threads)
    rates.append(sgemm(threads))
    rate, work, size = max(rates), flops(samples), 4.0 * samples**2
    allowed = work / (SHARE * rate) + size / write_rate
    images = 4 * PIXELS * samples
    held = max(run["anonymous_peak"] for run in wrote["runs"]) - images
    _, model, data = operator(samples, threads)
    stored = cx.StoredKernel(file)
    pairs = eigenpairs(stored)
    top = pairs["no index check"]["top"]
    return {
        "samples": samples,
        "threads": threads,
        "torch": torch.__version__,
        "flops": work,
        "bytes": size,
        "sgemm_flops_per_second": rates,
        "disk_write_bytes_per_second": write_rate,
        "disk_read_bytes_per_second": read_rate,
        "written": wrote,
        "allowed_seconds": allowed,
        "times_allowed": wrote["seconds"] / allowed,
        "share_of_sgemm": work / wrote["seconds"] / rate,
        "anonymous_beyond_data": held,
        "eigenpairs": pairs,
        "regression": regression(stored, model, data, top, shift),
        "float64_cholesky": small_reference(model, data, stored, shift),
    }


def main() -> None:
    """Measure, print, and keep the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_kernel", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shift", type=float, default=1e-4, help="over the top eigenvalue")
    parser.add_argument("--json", type=Path, help="keep the numbers there")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    found = measured(options.folder, options.samples, options.threads, options.shift)
    print(json.dumps(found, indent=1))
    gflops = [round(rate / 1e9, 1) for rate in found["sgemm_flops_per_second"]]
    print(
        f"\nwritten in {found['written']['seconds']:.1f} s (killed once), "
        f"{found['times_allowed']:.2f} of the {found['allowed_seconds']:.1f} s that "
        f"{found['flops']:.3g} flops at 0.65 of sgemm {gflops} Gflop/s and "
        f"{found['bytes']:.3g} bytes at {found['disk_write_bytes_per_second']:.3g} B/s allow; "
        f"{found['share_of_sgemm']:.2f} of sgemm, "
        f"{found['anonymous_beyond_data'] / 2**30:.2f} GiB of anonymous memory beyond "
        "the images, Python and torch included"
    )
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
