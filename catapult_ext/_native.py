"""The one place that imports the native module; also redirects ops to the emulated one in tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch  # first, so that the native module shares torch's OpenMP runtime

try:
    from catapult_ext import _C
except ImportError as error:
    raise ImportError(
        "catapult_ext._C, the native module, is missing or does not load. In a checkout, build it "
        f"with `pip install -e .`; otherwise reinstall catapult_ext. ({error})"
    ) from error

_module: ModuleType = _C
_emulating = False
_pretending: Callable[..., Any] | None = None


def build_info() -> dict[str, Any]:
    """Version, compiler, instruction sets (usable and active) and CUDA facts of the binary."""
    info = dict(_C.build_info())
    info["torch"] = torch.__version__
    info["threads"] = torch.get_num_threads()
    return info


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
