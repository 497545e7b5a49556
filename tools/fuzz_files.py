#!/usr/bin/env python3
"""Coverage-guided fuzzing of everything that reads files: IDX, CIFAR, npz, run folders.

    pip install atheris && tools/fuzz_files.py all --seconds 150        # each of the four targets

Damaged input must give DataFileError or RunFolderError, naming the file, and intact input the right
values: each target checks what it read against the bytes. Any other exception, a hang of --hang
seconds or more than 2 GB is a finding; its input is kept in the folder of --out. With --plain,
mutated files are drawn at random instead, without coverage, atheris and the limit on memory.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

try:
    import atheris
except ImportError:
    atheris = None

SCRATCH = Path(
    tempfile.mkdtemp(prefix="fuzz", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
)
CONFIG = {"rates": [0.5, 1.0], "seed": 0}


def _load_package(plainly):
    """Import the readers, instrumented. Torch comes first: to instrument it would take minutes."""
    import torch  # noqa: F401

    if plainly:
        return
    parts = ["catapult_ext.data.files", "catapult_ext.data.standard", "catapult_ext._store"]
    with atheris.instrument_imports(include=[*parts, "zipfile", "numpy.lib._format_impl"]):
        import catapult_ext  # noqa: F401


def fuzz_idx(data: bytes) -> None:
    """Read an IDX file, plain or compressed."""
    from catapult_ext.data.files import DataFileError, read_idx

    dims, zipped = (data[0] % 3) + 1 if data else 1, bool(data and data[0] & 128)
    path = SCRATCH / ("a.gz" if zipped else "a")
    path.write_bytes(data[1:])
    try:
        found = read_idx(path, dims)
    except DataFileError as error:
        assert str(path) in str(error)
        return
    head = bytes((0, 0, 8, dims)) + np.array(found.shape, ">u4").tobytes()
    held = gzip.decompress(data[1:]) if zipped else data[1:]
    assert head + found.tobytes() == held, "silently wrong"


def fuzz_cifar(data: bytes) -> None:
    """Read a binary CIFAR-10 or CIFAR-100 file."""
    from catapult_ext.data.files import DataFileError, read_cifar

    classes = 10 if data and data[0] & 1 else 100
    records = None if data and data[0] & 2 else len(data) % 4
    path = SCRATCH / "cifar.bin"
    body = data[1:] * (1 + 3072 // max(1, len(data) - 1) if data and data[0] & 4 else 1)
    path.write_bytes(body)
    try:
        x, y = read_cifar(path, classes, records)
    except DataFileError as error:
        assert str(path) in str(error)
        return
    rows = np.frombuffer(body, np.uint8).reshape(len(x), -1)
    head = 1 if classes == 10 else 2
    assert (rows[:, head:] == x.reshape(len(x), -1)).all()
    assert (rows[:, head - 1] == y).all()
    assert y.max() < classes


def fuzz_npz(data: bytes) -> None:
    """Read a data set from an npz archive."""
    import torch

    from catapult_ext.data import npz
    from catapult_ext.data.files import DataFileError

    path = SCRATCH / "a.npz"
    if data and data[0] & 1:  # arrays inside an intact archive: past the checksums
        with zipfile.ZipFile(path, "w") as archive:
            for name, piece in zip(
                ("x_train", "y_train", "x_test"), data[1:].split(b"@@"), strict=False
            ):
                archive.writestr(f"{name}.npy", piece)
    else:
        path.write_bytes(data[1:])
    try:
        found = npz(path)
    except DataFileError as error:
        assert str(path) in str(error)
        return
    assert torch.isfinite(found.x_train).all()
    assert len(found.x_train) == len(found.y_train) > 0


def fuzz_store(data: bytes) -> None:
    """Open a run folder with a damaged part and a damaged configuration."""
    from catapult_ext._store import RunFolder, RunFolderError

    folder = SCRATCH / "run"
    with RunFolder(folder, CONFIG, fresh=True) as run:
        run.save_part("one", {"loss": 1.5})
        part, config = run.part_path("one"), folder / "config.json"
        intact = part.read_bytes()
        part.write_bytes(data[1:] if data and data[0] & 1 else intact)
        try:
            record = run.load_part("one")
        except RunFolderError as error:
            assert str(part) in str(error)
        else:
            held = json.loads(part.read_text())
            assert record == held["record"]
            assert held["run"] == run.hash
        run.save_part("one", {"loss": 2.5})
        assert run.load_part("one") == {"loss": 2.5}
        held = config.read_bytes()
        config.write_bytes(data[1:])
    try:
        with RunFolder(folder, CONFIG) as run:
            assert run.load_part("one") == {"loss": 2.5}
    except RunFolderError as error:
        assert str(folder) in str(error)
    config.write_bytes(held)


TARGETS = {"idx": fuzz_idx, "cifar": fuzz_cifar, "npz": fuzz_npz, "store": fuzz_store}


def seeds(target: str) -> list[bytes]:
    """Intact inputs to start from."""
    rng = np.random.RandomState(0)
    if target == "idx":
        body = bytes((0, 0, 8, 3)) + np.array((2, 3, 3), ">u4").tobytes() + rng.bytes(18)
        line = bytes((0, 0, 8, 1)) + np.array((5,), ">u4").tobytes() + rng.bytes(5)
        return [b"\x02" + body, b"\x82" + gzip.compress(body), b"\x00" + line]
    if target == "cifar":
        return [b"\x03" + rng.bytes(3073), b"\x02" + rng.bytes(3074), b"\x07" + rng.bytes(7)]
    if target == "npz":
        found = []
        for y in (np.arange(4), rng.randn(4, 2), rng.randn(4)):
            for save in (np.savez, np.savez_compressed):
                file = io.BytesIO()
                save(file, x_train=rng.randn(4, 2).astype("f4"), y_train=y)
                found.append(b"\x00" + file.getvalue())
            pieces = []
            for array in (rng.randn(4, 2).astype("f4"), y):
                file = io.BytesIO()
                np.save(file, array)
                pieces.append(file.getvalue())
            found.append(b"\x01" + b"@@".join(pieces))
        return found
    from catapult_ext._store import RunFolder

    with RunFolder(SCRATCH / "seed", CONFIG) as run:
        run.save_part("one", {"loss": 1.5})
    part = (SCRATCH / "seed" / "parts" / "one.json").read_bytes()
    return [b"\x01" + part, b"\x00" + (SCRATCH / "seed" / "config.json").read_bytes()]


def plain(target: str, seconds: float, hang: int, kept: Path) -> None:
    """Read mutations of the seeds, drawn at random, at least one of them."""

    def hangs(*_):
        raise TimeoutError(f"{target}: one file takes more than {hang} s of processor time")

    signal.signal(signal.SIGPROF, hangs)
    rng = random.Random(0)
    start = time.monotonic()
    runs = 0
    known = seeds(target)
    while runs == 0 or time.monotonic() - start < seconds:
        data = bytearray(rng.choice(known))
        for _ in range(rng.randint(0, 6)):
            place = rng.randrange(len(data) + 1)
            kind = rng.randrange(4)
            if kind == 0 and data:
                data[place % len(data)] = rng.randrange(256)
            elif kind == 1:
                del data[place : place + rng.randint(1, 40)]
            elif kind == 2:
                data[place:place] = rng.randbytes(rng.randint(1, 8))
            elif data:
                other = rng.choice(known)
                data[place:] = other[rng.randrange(len(other)) :]
        signal.setitimer(signal.ITIMER_PROF, hang)  # a busy machine is no hang
        try:
            TARGETS[target](bytes(data))
        except BaseException:
            (kept / "plain").write_bytes(bytes(data))
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)  # a finding must not leave it on
        runs += 1
    print(f"{target}: {runs} mutated files, no finding")


def main() -> int:
    """Fuzz one target in this process, or each in one of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--hang", type=int, default=10, help="seconds, plain: of the processor")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--plain", action="store_true", help="without atheris")
    options = parser.parse_args()
    if options.target == "all":
        flags = ["--seconds", str(options.seconds), "--out", str(options.out)]
        flags += ["--hang", str(options.hang)]
        flags += ["--plain"] if options.plain else []
        done = [subprocess.run([sys.executable, __file__, t, *flags], check=False) for t in TARGETS]
        return max(abs(d.returncode) for d in done)
    if atheris is None and not options.plain:
        parser.error("atheris is not installed: install it, or choose --plain")
    _load_package(options.plain)
    corpus, kept = SCRATCH / "corpus", options.out / options.target
    corpus.mkdir()
    kept.mkdir(parents=True, exist_ok=True)
    if options.plain:
        plain(options.target, options.seconds, options.hang, kept)
        return 0
    for i, seed in enumerate(seeds(options.target)):
        (corpus / str(i)).write_bytes(seed)
    limits = [
        f"-max_total_time={options.seconds:.0f}",
        f"-timeout={options.hang}",
        "-rss_limit_mb=2048",
    ]
    limits += ["-max_len=6200", f"-artifact_prefix={kept}/", "-print_final_stats=1", "-seed=1"]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], TARGETS[options.target])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
