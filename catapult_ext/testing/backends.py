"""The back ends an op can run on, as values of one pytest parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _native


@dataclass(frozen=True)
class Backend:
    """One way to run the native ops: an instruction set, the emulated CUDA code, or a GPU."""

    name: str
    device: str = "cpu"
    unavailable: str = ""  # why it cannot run here; empty when it can

    @contextmanager
    def active(self) -> Iterator[None]:
        """Context in which ops run on this back end (inputs must be on ``device``)."""
        if self.name.startswith("cpu-"):
            with _native.forced_isa(self.name.removeprefix("cpu-")):
                yield
        elif self.name == "cuda_emulated":
            from catapult_ext.testing.emulated import emulated_module

            with _native.emulated(emulated_module()):
                yield
        else:
            yield

    def run(self, op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``op`` here: tensors go to the device and results come back to the CPU.

        Mutated arguments on a CPU back end are mutated in place; on a GPU their copies are, so pass
        tensors already on ``device`` when the mutation matters.
        """
        with self.active():
            return _to(op(*_to(args, self.device), **_to(kwargs, self.device)), "cpu")


def _to(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_to(v, device) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_to(v, device) for v in value)
    if isinstance(value, dict):
        return {k: _to(v, device) for k, v in value.items()}
    return value


def backends() -> list[Backend]:
    """Every back end, with the reason where one cannot run on this machine."""
    info = _native.build_info()
    usable = info["usable_isas"]
    found = [
        Backend(f"cpu-{isa}", unavailable="" if isa in usable else f"this processor has no {isa}")
        for isa in ("baseline", "avx2", "avx512")
    ]
    found.append(Backend("cuda_emulated", unavailable=_why_no_emulation()))
    reason = ""
    if not info["cuda"]:
        reason = "catapult_ext was built without CUDA"
    elif not torch.cuda.is_available():
        reason = "no CUDA device"
    found.append(Backend("cuda", device="cuda", unavailable=reason))
    return found


def _why_no_emulation() -> str:
    try:
        from catapult_ext.testing import emulated
    except ImportError:
        return "the emulation is not part of this installation"
    return emulated.why_unavailable()
