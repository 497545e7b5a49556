"""Builds and loads ``_C_emulated``: the CUDA sources compiled by g++ and run on the CPU.

Test-only: it needs the source tree (``csrc``), a C++ compiler and pybind11. Objects and modules are
kept in the user's cache folder under the hash of everything that went into them, so one changed
file costs one compilation.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

MODULE = "_C_emulated"
_KEEP_SECONDS = 14 * 24 * 3600


def sources() -> Path | None:
    """The folder ``csrc``: ``CATAPULT_CSRC``, or the one beside the package in a checkout."""
    candidates = [Path(__file__).resolve().parents[2] / "csrc"]
    if "CATAPULT_CSRC" in os.environ:
        candidates.insert(0, Path(os.environ["CATAPULT_CSRC"]))
    return next((c.resolve() for c in candidates if (c / "emulation").is_dir()), None)


def why_unavailable() -> str:
    """Why the emulated back end cannot run here; empty when it can."""
    if not sys.platform.startswith("linux"):
        return "the emulation needs Linux"
    if sources() is None:
        return "the CUDA sources are not here: run the tests from a checkout"
    if _compiler() is None:
        return "no C++ compiler (CXX, g++, clang++) for the emulation"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11, needed to build the emulation, is not installed"
    return ""


@functools.cache
def emulated_module() -> ModuleType:
    """Build (or find in the cache) and import the emulated module.

    ``CATAPULT_EMU_SANITIZE`` = ``address`` (with undefined-behaviour checks) or ``thread``
    instruments it; the process must then have been started by ``tools/with_sanitizer``.

    Raises:
        RuntimeError: it is unavailable here, or does not compile; the compiler's words are in it.
    """
    reason = why_unavailable()
    if reason:
        raise RuntimeError(f"catapult_ext.testing.emulated: {reason}")
    path = build(os.environ.get("CATAPULT_EMU_SANITIZE", ""))
    loader = importlib.machinery.ExtensionFileLoader(MODULE, str(path))
    spec = importlib.util.spec_from_loader(MODULE, loader)
    assert spec is not None
    # The CPU entries are left out of this module. Bound lazily, they are never missed.
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_LAZY)
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    finally:
        sys.setdlopenflags(flags)
    return module


def launches() -> list[dict[str, str]]:
    """The kernel launches since the last call: op, device, stream, grid, block, ..."""
    function = _library().catapult_emulation_launches
    function.restype = ctypes.c_char_p
    lines = function().decode().splitlines()
    return [
        {"op": line.split(" ")[0], **dict(word.split("=") for word in line.split(" ")[1:])}
        for line in lines
    ]


def sites() -> list[str]:
    """``kind file:line`` of each barrier and bounds check passed since the last call.

    Recorded only for launches with ``CATAPULT_EMU_TRACE=1`` in the environment.
    """
    function = _library().catapult_emulation_sites
    function.restype = ctypes.c_char_p
    return function().decode().splitlines()


def current_device(make: int = -1) -> int:
    """The emulated runtime's current device; ``make`` >= 0 changes it first."""
    return _library().catapult_emulation_device(make)


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(emulated_module().__file__)


# --- build -------------------------------------------------------------------------------------
def build(sanitize: str = "", csrc: Path | None = None) -> Path:
    """Compile the module for one sanitizer setting and return its path."""
    csrc = csrc or sources()
    assert csrc is not None
    folder = _cache()
    objects = [_Object(csrc, path, sanitize) for path in _translation_units(csrc)]
    key = _hash([o.key for o in objects], sanitize)
    target = folder / key / f"{MODULE}.so"
    with _lock(folder):
        if not target.exists():
            _prune(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                list(pool.map(lambda o: o.compile(folder), objects))
            partial = target.with_suffix(f".{os.getpid()}")
            _run(
                [_compiler(), "-shared", "-Wl,-z,lazy", *_sanitizer_flags(sanitize)]
                + [str(o.path(folder)) for o in objects]
                + ["-o", str(partial)]
            )
            partial.rename(target)
        os.utime(target)
    return target


def _translation_units(csrc: Path) -> list[Path]:
    """Everything but the CPU paths: nothing calls those here, and they take longest to compile."""
    ops = [
        p
        for p in [*csrc.glob("ops/*/*.cpp"), *csrc.glob("ops/*/*.cu")]
        if not p.stem.endswith(("_cpu", "_simd"))
    ]
    rest = [p for part in ("bindings", "core", "emulation") for p in csrc.glob(f"{part}/*.cpp")]
    found = sorted([*rest, *ops, csrc / "ops" / "no_cuda.cpp"])
    return sorted(found, key=lambda p: p.suffix != ".cu")  # the slowest first


class _Object:
    """One source file and the flags it is compiled with."""

    def __init__(self, csrc: Path, source: Path, sanitize: str) -> None:
        self.source = source
        self.flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", f"-I{csrc}"]
        self.flags += ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-parameter"]
        self.flags += ["-fno-math-errno", "-DCATAPULT_EMULATED=1", "-DCATAPULT_WITH_CUDA=1"]
        emulation = source.parent.name == "emulation"
        if source.parent.name == "bindings":
            self.flags += [f"-DCATAPULT_MODULE_NAME={MODULE}", '-DCATAPULT_VERSION="emulated"']
            self.flags += ['-DCATAPULT_CUDA_ARCHITECTURES="emulated"', "-O0", "-w"]
            self.flags += [f"-isystem{path}" for path in _python_includes()]
        if source.name == "no_cuda.cpp":
            names = [p.parent.name.upper() for p in csrc.glob("ops/*/*_cuda.cu")]
            self.flags += [f"-DCATAPULT_CUDA_{name}=1" for name in sorted(set(names))]
        if emulation:  # its own bookkeeping is not to be checked, but it tells the sanitizers
            word = {"address": "ASAN", "thread": "TSAN"}.get(sanitize)
            self.flags += ["-O2"] + ([f"-DCATAPULT_EMU_{word}=1"] if word else [])
        elif source.parent.name != "bindings":
            self.flags += _sanitizer_flags(sanitize) + (["-g"] if sanitize else [])
        closure = _closure(source, csrc)
        contents = [p.read_bytes() for p in closure] + [str(p.relative_to(csrc)) for p in closure]
        self.key = _hash(contents, self.flags, _compiler_version(), sys.version)

    def path(self, folder: Path) -> Path:
        return folder / "objects" / f"{self.source.stem}-{self.key}.o"

    def compile(self, folder: Path) -> None:
        target = self.path(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            partial = target.with_suffix(f".{os.getpid()}")
            language = ["-x", "c++"]
            _run([_compiler(), *self.flags, *language, "-c", str(self.source), "-o", str(partial)])
            partial.rename(target)
        os.utime(target)


def _closure(source: Path, csrc: Path) -> list[Path]:
    """The file and every file of ours that it includes, directly or not."""
    seen: dict[Path, None] = {}
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen[path] = None
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
            found = next((p for p in (csrc / name, path.parent / name) if p.exists()), None)
            if found is not None:
                waiting.append(found)
    return sorted(seen)


def _sanitizer_flags(sanitize: str) -> list[str]:
    if sanitize == "address":
        # Stopping at the first undefined behaviour makes it as visible as a bad address.
        return ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize=vptr"]
    if sanitize == "thread":
        return ["-fsanitize=thread"]
    if sanitize:
        raise RuntimeError(
            "catapult_ext.testing.emulated: CATAPULT_EMU_SANITIZE must be address or thread, "
            f"got {sanitize!r}"
        )
    return []


def _python_includes() -> list[str]:
    import pybind11

    return [sysconfig.get_paths()["include"], pybind11.get_include()]


@functools.cache
def _compiler() -> str | None:
    named = os.environ.get("CXX", "").split()
    for name in [*named[:1], "g++", "clang++"]:
        found = shutil.which(name)
        if found:
            return found
    return None


@functools.cache
def _compiler_version() -> str:
    compiler = _compiler()
    assert compiler is not None
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout


def _run(command: list[str | None]) -> None:
    words = [word for word in command if word is not None]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(
            "catapult_ext.testing.emulated: the emulated module does not compile:\n"
            f"{' '.join(words)}\n{done.stderr[-6000:]}"
        )


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "catapult_ext" / "emulated"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _prune(folder: Path) -> None:
    """Forget what nobody used for two weeks."""
    limit = time.time() - _KEEP_SECONDS
    for path in [*folder.glob("objects/*"), *folder.glob("*/*.so")]:
        if path.stat().st_mtime < limit:
            path.unlink(missing_ok=True)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _hash(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for piece in part if isinstance(part, list) else [part]:
            digest.update(piece if isinstance(piece, bytes) else str(piece).encode())
            digest.update(b"\0")
    return digest.hexdigest()[:24]
