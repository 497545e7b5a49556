"""The one place that imports the native module; also redirects ops to the emulated one in tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Any

import torch  # first, so that the native module shares torch's OpenMP runtime


def _why_missing(package: Path, error: ImportError) -> str:
    """One sentence on why the native module in ``package`` does not load, and the way out."""
    start = "catapult_ext._C, the native module, "
    built = sorted(path.name for path in package.glob("_C*") if path.suffix in (".so", ".pyd"))
    fitting = [name for name in built if name in {f"_C{suffix}" for suffix in EXTENSION_SUFFIXES}]
    checkout = package.parent if (package.parent / "csrc").is_dir() else None
    again = "build it with `pip install -e .` there" if checkout else "reinstall catapult_ext"
    if fitting:
        return f"{start}is there but does not load: {again} ({fitting[0]}: {error})"
    if built:
        return (
            f"{start}was built for another Python ({', '.join(built)}), this one loads "
            f"*{EXTENSION_SUFFIXES[0]}: {again}"
        )
    if checkout:
        return (
            f"{start}is not built in the checkout {checkout}, which Python found before any "
            f"installed catapult_ext: {again}, or start Python in another folder "
            "to use an installed one"
        )
    return f"{start}is missing from {package}: {again} ({error})"


try:
    from catapult_ext import _C
except ImportError as error:
    raise ImportError(_why_missing(Path(__file__).parent, error)) from error

_module: ModuleType = _C
_emulating = False
_pretending: Callable[..., Any] | None = None


def build_info() -> dict[str, Any]:
    """Version, compiler, instruction sets (usable and active) and CUDA facts of the binary.

    Examples:
        >>> info = cx.build_info()
        >>> info["active_isa"] in info["usable_isas"]
        True
    """
    info = dict(_C.build_info())
    info["torch"] = torch.__version__
    info["threads"] = torch.get_num_threads()
    return info


def emulating() -> bool:
    """Tests only: whether CPU tensors go through CUDA code."""
    return _emulating


def call(op: str, device: torch.device, *args: object) -> Any:
    """Run ``_C.<op>`` on ``device``: the current stream, torch's number of threads."""
    if _emulating:
        where, stream = 0, 0
    elif device.type == "cuda":
        if _pretending is not None:
            return _pretending(op, *args)
        where = device.index if device.index is not None else torch.cuda.current_device()
        stream = torch.cuda.current_stream(device).cuda_stream
    else:
        where, stream = -1, 0
    return getattr(_module, op)(*args, where, stream, torch.get_num_threads())


@contextmanager
def emulated(module: ModuleType) -> Iterator[None]:
    """Tests only: run ops on CPU tensors through the CUDA code of the emulated ``module``."""
    global _module, _emulating
    _module, _emulating = module, True
    try:
        yield
    finally:
        _module, _emulating = _C, False


@contextmanager
def pretended(run: Callable[..., Any]) -> Iterator[None]:
    """Tests only: ops on tensors that say ``cuda`` go to ``run(op, *arguments)``."""
    global _pretending
    before, _pretending = _pretending, run
    try:
        yield
    finally:
        _pretending = before


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Run CPU ops with instruction set ``name`` (one of ``build_info()['usable_isas']``)."""
    before = _C.build_info()["active_isa"]
    _C.force_isa(name)
    try:
        yield
    finally:
        _C.force_isa(before)
