"""nvcc's PTX of every CUDA source, and the interpreter as a shared library; both are cached."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from catapult_ext.testing import emulated_build

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
INTERPRETER = Path(__file__).resolve().parent / "interpreter"
# What the library is built with, and line numbers, so that a fault has its line of the source.
FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-arch=sm_90", "-ptx", "-lineinfo"]


def cuda_sources(csrc: Path = CSRC) -> list[Path]:
    """Every CUDA source of the library."""
    return sorted((csrc / "ops").glob("*/*.cu"))


def ptx_of(path: Path, csrc: Path = CSRC) -> str:
    """The PTX of one source, from the cache where neither it nor a header has changed.

    Raises:
        RuntimeError: nvcc does not compile it; its words are in the text.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError("ptx_check: no nvcc here")
    digest = hashlib.sha256()
    for word in (str(path.relative_to(csrc)), *FLAGS, _version(nvcc)):
        digest.update(word.encode() + b"\0")
    for file in emulated_build.closure(path, csrc):
        digest.update(file.read_bytes())
    folder = emulated_build.cache() / "ptx"
    folder.mkdir(exist_ok=True)
    target = folder / f"{path.stem}-{digest.hexdigest()[:24]}.ptx"
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}")
        command = [nvcc, *FLAGS, f"-I{csrc}", "-o", str(partial), str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"ptx_check: {path.name} does not compile:\n{done.stderr}")
        partial.rename(target)
    return target.read_text()


def all_ptx(csrc: Path = CSRC, ops: Sequence[str] | None = None) -> dict[str, str]:
    """File name -> PTX, of every source in the folder ``csrc``, or of some operations only."""
    files = [path for path in cuda_sources(csrc) if not ops or path.parent.name in ops]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        texts = list(pool.map(lambda path: ptx_of(path, csrc), files))
    return {f"{path.stem}.ptx": text for path, text in zip(files, texts, strict=True)}


def _version(nvcc: str) -> str:
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout


def interpreter_library() -> Path:
    """The interpreter, compiled unless the cache has it."""
    flags = ["-O3", "-ffp-contract=off", "-fvisibility=default", "-march=native"]
    files = sorted(INTERPRETER.glob("*.cpp"))
    units = [emulated_build.Unit(CSRC, [file], "", flags) for file in files]
    return emulated_build.link(units, "ptx_interpreter", "", ["-shared"])
