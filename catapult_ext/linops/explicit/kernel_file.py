"""A kernel in a ``.npy`` file: written tile by tile, resumable after a kill at any moment.

Beside ``kernel.npy`` stands ``kernel.npy.json``, replaced atomically after each tile: whose kernel
it is (hashes of model, data and layout), how it is cut into tiles and how many of them are on disk.
The tiles have a fixed order, so that their number says which ones.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catapult_ext._store import (
    RunFolderError,
    allocate,
    canonical,
    config_hash,
    later_format,
    lock,
    write_atomically,
)

FORMAT = "catapult_ext kernel 1"


class KernelFileError(RuntimeError):
    """A kernel file that cannot be used; the message says which, why, and what to do."""


def file_error(where: str, path: Path, text: str) -> KernelFileError:
    """The error of public function ``where`` about a file."""
    return KernelFileError(f"catapult_ext.{where}: {path} {text}")


def read_record(path: Path, where: str) -> dict[str, Any] | None:
    """Record in the sidecar of a kernel file; None if there is neither sidecar nor content.

    Raises:
        KernelFileError: no such sidecar, or a damaged one; names ``where``.
    """
    sidecar = path.with_name(path.name + ".json")
    try:
        document = json.loads(sidecar.read_text(encoding="utf-8"))
        later = later_format(document["format"], FORMAT)
        record = document["record"]
        intact = document["format"] == FORMAT and document["check"] == config_hash(record)
    except FileNotFoundError:
        if path.exists() and (not path.is_file() or path.stat().st_size):
            text = (
                f"exists and has no {sidecar.name}: it is no kernel that this package "
                "began, and is left untouched; choose another file="
            )
            raise file_error(where, path, text) from None
        return None
    except OSError as error:
        text = f"has a sidecar that cannot be read: {error.strerror}"
        raise file_error(where, path, text) from error
    except (ValueError, KeyError, TypeError, RecursionError):
        intact = later = False
    if later:
        text = (
            f"and its {sidecar.name} were written by a later version of catapult_ext; "
            "both are left untouched: upgrade, or choose another file="
        )
        raise file_error(where, path, text)
    if not intact:
        text = (
            f"has a damaged {sidecar.name}; both are left untouched: delete them to "
            "start again, or choose another file="
        )
        raise file_error(where, path, text)
    return record


class KernelFile:
    """One kernel on disk, held for writing; use as a context manager, which locks the file.

    Args:
        path: of the ``.npy`` file.
        shape: of the array.
        dtype: float32, float64, or bfloat16, which ``.npy`` calls unsigned integers of 16 bits.
        identity: JSON-like facts that another kernel would not share.
        probe: numbers that another model would not give either, equal up to rounding.
        cut: the tiles of a new file as JSON values; not called where the file has them.
        where: the public function named in errors.

    Attributes:
        cut: the tiles of this file.
        done: how many of them are on disk.
        checks: CRC-32 of the bytes of each of these; None for tiles of earlier versions.

    Raises:
        KernelFileError: the file or its sidecar holds another kernel, is damaged, truncated, was
            not written by this package (all left untouched), is in use by another process, or
            cannot be written.
    """

    def __init__(
        self,
        path: Path | str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        identity: dict[str, Any],
        probe: list[float],
        cut: Callable[[], dict[str, Any]],
        where: str = "NTK.dense",
    ) -> None:
        self._where = where
        self.path = Path(path).absolute()  # the process may change its folder while tiles are made
        self.sidecar = self.path.with_name(self.path.name + ".json")
        self.dtype, self._identity, self._probe = dtype, identity, probe
        self._shape, self._header = shape, array_header(shape, dtype)
        self.bytes = len(self._header) + int(np.prod(shape)) * dtype.itemsize
        self._file: Any = None
        self._map: mmap.mmap | None = None
        known = self._read()  # before the file is opened: what is not ours is not touched
        try:
            if known is not None and known["complete"]:
                self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115
            else:
                self._lock()
                known = self._read()
            self.cut = cut() if known is None else known["cut"]
            self.done = 0 if known is None else known["done"]
            self.complete = known is not None and known["complete"]
            held = [] if known is None else known.get("checks", [])
            self.checks: list[int | None] = [*held, *[None] * (self.done - len(held))]
            if self.done == 0 and not self.complete:
                self._begin()
            self._check_file()
        except OSError as error:
            self.close()
            raise self.error(f"cannot be written: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    def writable(self) -> Tensor:
        """The array, mapped: what is written to it goes to the file."""
        self._map = mmap.mmap(self._file.fileno(), self.bytes)
        return self._array(self._map)

    def finish(self, done: int, complete: bool, check: int | None = None) -> None:
        """The first ``done`` tiles are written: flush them to disk, then note it.

        Args:
            done: tiles.
            complete: that is all of them.
            check: CRC-32 of the last one.
        """
        assert self._map is not None
        try:
            self._map.flush()
        except OSError as error:
            raise self.error(f"cannot be written: {error.strerror or error}") from error
        if hasattr(self._map, "madvise"):  # what is on disk need not stay resident
            self._map.madvise(mmap.MADV_DONTNEED)
        self.done, self.complete = done, complete
        self.checks.append(check)
        self._note()

    def result(self) -> Tensor:
        """The array, mapped privately: changes of it stay in memory."""
        if hasattr(mmap, "MAP_PRIVATE"):
            flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)  # may exceed the memory
            mapped = mmap.mmap(self._file.fileno(), self.bytes, flags)
        else:
            mapped = mmap.mmap(self._file.fileno(), self.bytes, access=mmap.ACCESS_COPY)
        return self._array(mapped)

    def close(self) -> None:
        """Give the lock back; tensors that map the file stay valid."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._map = None

    def __enter__(self) -> KernelFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _array(self, mapped: mmap.mmap) -> Tensor:
        return torch.frombuffer(mapped, dtype=self.dtype, offset=len(self._header)).view(
            self._shape
        )

    def error(self, text: str) -> KernelFileError:
        """The error about this file."""
        return file_error(self._where, self.path, text)

    def _read(self) -> dict[str, Any] | None:
        """The sidecar's record, checked; None where there is neither sidecar nor content."""
        record = read_record(self.path, self._where)
        if record is None:
            return None
        self._compare(record)
        if record["done"] and not self.path.exists():
            raise self.error(f"is missing; delete {self.sidecar.name} to start again")
        return record

    def _compare(self, record: dict[str, Any]) -> None:
        held, own = record["identity"], json.loads(canonical(self._identity))
        differing = [k for k in sorted({*held, *own}) if held.get(k) != own.get(k)]
        close = 3e-4 if self.dtype == torch.float32 else 1e-8  # of another thread count, chunks
        if not differing and not np.allclose(record["probe"], self._probe, rtol=close, atol=close):
            differing = ["the model's outputs"]
        if differing:
            raise self.error(
                f"holds another kernel (differing in {', '.join(differing)}) and is left "
                "untouched; choose another file=, or delete it and its .json"
            )

    def _lock(self) -> None:
        """Open for writing; the system drops the lock with the process, however that ends."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._file = os.fdopen(os.open(self.path, flags, 0o666), "r+b", buffering=0)
        if not lock(self._file):
            raise self.error("is being written by another process")
        for left in self.path.parent.glob(f".{self.sidecar.name}.*.tmp"):
            left.unlink(missing_ok=True)

    def _begin(self) -> None:
        """Header and room on disk; the sidecar first, so that a kill leaves what is known."""
        held = self._file.read(len(self._header))
        if not self._header.startswith(held):
            raise self.error(
                "was changed by something else and is left untouched; choose another file="
            )
        free = shutil.disk_usage(self.path.parent).free + os.fstat(self._file.fileno()).st_size
        if free < self.bytes:
            raise self.error(f"needs {self.bytes} bytes, and the disk has {free}")
        self._note()
        self._file.seek(0)
        self._file.write(self._header)
        allocate(self._file, self.bytes)

    def _check_file(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        self._file.seek(0)
        if size != self.bytes or self._file.read(len(self._header)) != self._header:
            raise self.error(
                f"is truncated or damaged ({size} bytes, {self.bytes} expected); delete it and "
                f"{self.sidecar.name} to start again"
            )

    def _note(self) -> None:
        record = {
            "identity": self._identity,
            "probe": self._probe,
            "cut": self.cut,
            "done": self.done,
            "complete": self.complete,
            "checks": self.checks,
        }
        document = {"format": FORMAT, "check": config_hash(record), "record": record}
        try:
            write_atomically(self.sidecar, (canonical(document) + "\n").encode())
        except RunFolderError as error:
            raise self.error(f"has a sidecar that cannot be written: {error}") from error


def array_header(shape: tuple[int, ...], dtype: torch.dtype) -> bytes:
    """Header of the ``.npy`` format, padded by NumPy so that the data are aligned."""
    from io import BytesIO

    plain = torch.uint16 if dtype == torch.bfloat16 else dtype
    kind = np.lib.format.dtype_to_descr(torch.empty(0, dtype=plain, device="cpu").numpy().dtype)
    out = BytesIO()
    fields = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, fields)
    return out.getvalue()


def checksum(block: Tensor, before: int = 0) -> int:
    """CRC-32 of the bytes of a contiguous tensor, after those that gave ``before``."""
    return zlib.crc32(block.reshape(-1).view(torch.uint8).numpy().data, before)
