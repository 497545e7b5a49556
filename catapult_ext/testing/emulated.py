"""Loads ``_C_emulated``: the CUDA sources compiled by g++ and run on the CPU.

Test-only: it needs the source tree (``csrc``) and a C++ compiler.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from catapult_ext.testing.emulated_build import MODULE, build, compiler


def sources() -> Path | None:
    """The folder ``csrc``: ``CATAPULT_CSRC``, or the one next to the package in a checkout."""
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
    if compiler() is None:
        return "no C++ compiler (CXX, g++, clang++) for the emulation"
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
    csrc = sources()
    assert csrc is not None
    path = build(csrc, os.environ.get("CATAPULT_EMU_SANITIZE", ""))
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
