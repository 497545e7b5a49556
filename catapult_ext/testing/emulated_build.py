"""Compiles the emulated module.

Objects and modules are kept in the user's cache folder under the hash of everything that went into
them, so one changed file costs one compilation.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

MODULE = "_C_emulated"
_KEEP_SECONDS = 14 * 24 * 3600


def build(csrc: Path, sanitize: str = "") -> Path:
    """Compile the module from ``csrc`` for one sanitizer setting and return its path."""
    units = [Unit(csrc, files, sanitize, _flags(csrc, files)) for files in _units(csrc)]
    return link(units, MODULE, sanitize)


def _units(csrc: Path) -> list[list[Path]]:
    """Everything but the CPU paths: nothing calls those here, and they take longest to compile.

    The bindings are one unit, as each costs seconds of pybind11.
    """
    ops = [*csrc.glob("ops/*/*.cu"), *csrc.glob("ops/*/*.cpp"), csrc / "ops" / "no_cuda.cpp"]
    rest = [*csrc.glob("core/*.cpp"), *csrc.glob("toy/*.cpp"), *csrc.glob("emulation/*.cpp")]
    singles = [p for p in [*ops, *rest] if not p.stem.endswith(("_cpu", "_simd"))]
    singles.sort(key=lambda p: (p.suffix != ".cu", str(p)))
    return [sorted(csrc.glob("bindings/*.cpp")), *([p] for p in singles)]


def _flags(csrc: Path, files: list[Path]) -> list[str]:
    if files[0].parent.name == "bindings":
        include = [sysconfig.get_paths()["include"], _pybind11()]
        return [
            f"-DCATAPULT_MODULE_NAME={MODULE}",
            '-DCATAPULT_VERSION="emulated"',
            '-DCATAPULT_CUDA_ARCHITECTURES="emulated"',
            "-O0",
            "-w",
            *(f"-isystem{path}" for path in include),
        ]
    if files[0].name == "no_cuda.cpp":
        names = {p.parent.name.upper() for p in csrc.glob("ops/*/*_cuda.cu")}
        return [f"-DCATAPULT_CUDA_{name}=1" for name in sorted(names)]
    return []


def _pybind11() -> str:
    """The package's headers, or the copy that every torch carries."""
    try:
        import pybind11
    except ImportError:
        import torch

        return str(Path(torch.__file__).parent / "include")
    return pybind11.get_include()


class Unit:
    """Source files compiled as one, and the flags they are compiled with."""

    def __init__(
        self, csrc: Path, files: Sequence[Path], sanitize: str, flags: Sequence[str] = ()
    ) -> None:
        self.files = list(files)
        self.flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", f"-I{csrc}"]
        self.flags += ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-parameter"]
        self.flags += ["-fno-math-errno", "-DCATAPULT_EMULATED=1", "-DCATAPULT_WITH_CUDA=1"]
        folder = self.files[0].parent.name
        if folder == "emulation":  # its bookkeeping is not to be checked, it tells the sanitizers
            word = {"address": "ASAN", "thread": "TSAN"}.get(sanitize)
            self.flags += ["-O2"] + ([f"-DCATAPULT_EMU_{word}=1"] if word else [])
        elif folder != "bindings":
            self.flags += sanitizer_flags(sanitize) + (["-g"] if sanitize else [])
        self.flags += flags
        # Places are told from the root of the checkout, so that all checkouts share the cache.
        root = f"{csrc.parent}/"
        self.flags.append(f"-ffile-prefix-map={root}=")
        parts = sorted({p for file in self.files for p in closure(file, csrc)})
        contents = [p.read_bytes() for p in parts]
        names = [word.replace(root, "") for word in [*map(str, parts), *self.flags]]
        self.key = _hash(contents, names, _compiler_version(), sys.version)

    def path(self) -> Path:
        """Where the object lies in the cache."""
        return cache() / "objects" / f"{self.files[0].stem}-{self.key}.o"

    def compile(self) -> None:
        """Compile unless the cache has it."""
        target = self.path()
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            partial = target.with_suffix(f".{os.getpid()}")
            together = [word for file in self.files for word in ("-include", str(file))]
            unit = [*together, "-x", "c++", "-c", "/dev/null", "-o", str(partial)]
            run([compiler(), *self.flags, *unit])
            partial.rename(target)
        os.utime(target)


def link(units: Sequence[Unit], name: str, sanitize: str, flags: Sequence[str] = ()) -> Path:
    """Compile the units in parallel and link them: a module, or what ``flags`` say."""
    target = cache() / _hash([u.key for u in units], name, sanitize, list(flags)) / f"{name}.so"
    with _lock(cache()):
        if not target.exists():
            _prune(cache())
            target.parent.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                list(pool.map(Unit.compile, units))
            partial = target.with_suffix(f".{os.getpid()}")
            kind = list(flags) or ["-shared", "-Wl,-z,lazy"]
            objects = [str(unit.path()) for unit in units]
            run([compiler(), *kind, *sanitizer_flags(sanitize), *objects, "-o", str(partial)])
            partial.rename(target)
        os.utime(target)
    return target


def closure(source: Path, csrc: Path) -> list[Path]:
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


def sanitizer_flags(sanitize: str) -> list[str]:
    """Compiler flags of one sanitizer setting."""
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


@functools.cache
def compiler() -> str | None:
    """The C++ compiler: CXX, g++ or clang++, whichever is found first."""
    named = os.environ.get("CXX", "").split()
    for name in [*named[:1], "g++", "clang++"]:
        found = shutil.which(name)
        if found:
            return found
    return None


@functools.cache
def _compiler_version() -> str:
    found = compiler()
    assert found is not None
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    done = subprocess.run([found, "--version"], capture_output=True, text=True, env=environment)
    return done.stdout


def run(command: list[str | None]) -> None:
    """Run a compiler command; RuntimeError with its words where it fails."""
    words = [word for word in command if word is not None]
    # The compiler need not run under the sanitizer that this process may have been started with.
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(
            "catapult_ext.testing.emulated: the emulated module does not compile:\n"
            f"{' '.join(words)}\n{done.stderr[-6000:]}"
        )


def cache() -> Path:
    """The folder of objects and modules, in the user's cache."""
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
