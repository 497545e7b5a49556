"""The interpreter in this process: it takes the launches of the emulated module over."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor

from catapult_ext.testing.emulated import emulated_module

from . import sources


class Unknown(Exception):
    """The PTX holds what the interpreter does not know; the text names each with its line."""


@dataclass
class Instruction:
    """Counts of one instruction over all launches."""

    line: int
    source: str
    issued: int
    lanes: int
    requests: int
    units: int
    least: int
    text: str


@dataclass
class Function:
    """Counts of a kernel, or of a function that kernels call."""

    file: str
    name: str
    entry: bool
    launches: int
    blocks: int
    warps: int
    issued: int
    instructions: list[Instruction]


class Interpreter:
    """Holds the PTX of all sources and binds it to the kernels of the emulated module."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.library = ctypes.CDLL(str(sources.interpreter_library()))
        for name in ("ptx_load", "ptx_counts"):
            getattr(self.library, name).restype = ctypes.c_char_p
        self.library.ptx_issued.restype = ctypes.c_uint64
        wrong = ""
        for name, text in texts.items():
            wrong += self.library.ptx_load(name.encode(), text.encode()).decode()
        if wrong:
            raise Unknown(wrong)
        self.module = emulated_module()
        self._emulation = ctypes.CDLL(self.module.__file__)
        self.bound = self._bind()

    def _bind(self) -> list[str]:
        """Every kernel of the PTX by its mangled name; the emulated module names them alike."""
        listing = subprocess.run(
            ["nm", str(self.module.__file__)], capture_output=True, text=True, check=True
        ).stdout
        symbols = {}
        for line in listing.splitlines():
            words = line.split()
            if len(words) == 3:
                symbols[words[2]] = int(words[0], 16)
        known = ctypes.cast(self._emulation.catapult_emulation_launches, ctypes.c_void_p).value
        assert known is not None
        base = known - symbols["catapult_emulation_launches"]
        bound = []
        for name, offset in symbols.items():
            address = ctypes.c_void_p(base + offset)
            if self.library.ptx_bind(address, name.encode()):
                bound.append(name)
        return bound

    def take_over(self) -> None:
        """From now on the emulated module's launches run here."""
        launch = ctypes.cast(self.library.ptx_launch, ctypes.c_void_p)
        self._emulation.catapult_emulation_redirect(launch)

    def hand_back(self) -> None:
        """Launches run in the emulation again."""
        self._emulation.catapult_emulation_redirect(None)

    def entries(self) -> list[str]:
        """The mangled names of the kernels in the PTX."""
        return [f.name for f in self.counts() if f.entry]

    def issued(self, name: str) -> int:
        """Instructions that warps of this kernel issued so far."""
        return self.library.ptx_issued(name.encode())

    def counts(self) -> list[Function]:
        """Everything counted so far."""
        functions: list[Function] = []
        for line in self.library.ptx_counts().decode().splitlines():
            kind, *words = line.split("\t")
            if kind == "function":
                file, name, *numbers = words
                entry, *rest = map(int, numbers)
                functions.append(Function(file, name, bool(entry), *rest, []))
            else:
                _, number, source, *rest, text = line.split("\t", 8)
                counts = map(int, rest)
                functions[-1].instructions.append(
                    Instruction(int(number), source, *counts, " ".join(text.split()))
                )
        return functions

    def proxy(self) -> ModuleType:
        """The emulated module, told of every tensor that an operation may touch."""
        return _Watched(self)


class _Watched(ModuleType):
    """Forwards to the emulated module; kernels may touch the tensors of the call, nothing else."""

    def __init__(self, interpreter: Interpreter) -> None:
        super().__init__("watched")
        self._interpreter = interpreter
        self.__file__ = interpreter.module.__file__

    def __getattr__(self, name: str) -> Any:
        target = getattr(self._interpreter.module, name)
        return self._watch(target) if callable(target) else target

    def _watch(self, target: Callable[..., Any]) -> Callable[..., Any]:
        library = self._interpreter.library

        def call(*args: Any) -> Any:
            library.ptx_forget_memory()
            for tensor in _tensors(args):
                extent = sum(
                    (n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)
                )
                bytes_ = (extent + 1) * tensor.element_size() if tensor.numel() else 0
                library.ptx_memory(ctypes.c_uint64(tensor.data_ptr()), ctypes.c_uint64(bytes_))
            return target(*args)

        return call


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
