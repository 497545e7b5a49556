"""Reading of data files: IDX (MNIST), the binary CIFAR version, NumPy archives, torch files."""

from __future__ import annotations

import gzip
import os
import pickle
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from catapult_ext import _validate as v
from catapult_ext._free_memory import free_bytes

ENVIRONMENT = "CATAPULT_DATA"
READ_ERRORS = (OSError, EOFError, zlib.error, zipfile.BadZipFile, MemoryError)
CIFAR_PIXELS = 3 * 32 * 32
_PIECE = 1 << 24
_MOST = 1 << 30  # bytes of an image file, inflated; EMNIST, the largest one in use, has 5.5e8
_COPIES = 3  # of an archive's arrays that reading and converting them takes

Held = TypeVar("Held")


class DataFileError(RuntimeError):
    """A data file that is missing or cannot be used; the message names the file and the fault.

    Examples:
        >>> try:
        ...     cx.data.npz("missing.npz")
        ... except cx.data.DataFileError as error:
        ...     print(type(error).__name__)
        DataFileError
    """

    def __init__(self, path: Path | str, fault: str) -> None:
        super().__init__(f"catapult_ext.data: {path}: {fault}")


def data_folder(data_dir: Path | str | None, otherwise: str = "") -> Path:
    """``data_dir``, else the folder named by the variable CATAPULT_DATA.

    Args:
        data_dir: given by the user.
        otherwise: another way to the data, for the error.

    Raises:
        TypeError: data_dir is no path.
        DataFileError: neither is given, or it is not a folder.
    """
    if not isinstance(data_dir, (str, Path, type(None))):
        v.fail("data.load", "data_dir must be a path", type(data_dir).__name__, TypeError)
    given = os.environ.get(ENVIRONMENT) if data_dir is None else data_dir
    if not given:
        ways = f"pass data_dir or set {ENVIRONMENT}{otherwise and ', or '}{otherwise}"
        raise DataFileError("data folder", f"none given: {ways}")
    folder = Path(given)
    if not folder.is_dir():
        source = ENVIRONMENT if data_dir is None else "data_dir"
        raise DataFileError(folder, f"is not a folder (from {source})")
    return folder


def find(folder: Path, places: Sequence[str], names: Sequence[str]) -> Path:
    """First of ``names``, plain or with .gz, in one of the sub-folders ``places`` of ``folder``."""
    for place in places:
        for name in names:
            for path in (folder / place / name, folder / place / f"{name}.gz"):
                if path.is_file():
                    return path
    where = " or ".join(str(folder / p) if p else str(folder) for p in places)
    raise DataFileError(names[0], f"not found, plain or .gz, in {where}")


def content(path: Path, limit: int | None = None) -> bytes:
    """Content of a plain or gzipped file, at most ``limit`` bytes of it.

    Without a limit a file of more than 1 GiB, inflated, is refused.
    """
    try:
        opened = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # noqa: SIM115
        with opened as file:
            pieces, left = [], _MOST + 1 if limit is None else limit
            # Piecewise: a damaged header may ask for more than there is memory.
            while left > 0 and (piece := file.read(min(left, _PIECE))):
                pieces.append(piece)
                left -= len(piece)
    except EOFError:
        raise DataFileError(path, "is truncated (the gzip stream ends early)") from None
    except READ_ERRORS as error:
        raise DataFileError(path, f"cannot be read: {_reason(error)}") from error
    if limit is None and left == 0:
        raise DataFileError(path, f"is larger than {_MOST >> 30} GiB, inflated: no such data set")
    return b"".join(pieces)


def _reason(error: BaseException) -> str:
    return "not enough memory" if isinstance(error, MemoryError) else str(error)


def read_idx(path: Path, dims: int) -> np.ndarray:
    """An IDX file of unsigned bytes with ``dims`` dimensions.

    Raises:
        DataFileError: another magic number, type or dimension count, or too few or many bytes.
    """
    head = content(path, 4 + 4 * dims)
    if len(head) < 4:
        raise DataFileError(path, f"is truncated: {len(head)} bytes, no IDX header")
    if head[:2] != b"\0\0" or head[2] != 8 or head[3] != dims:
        wanted = bytes((0, 0, 8, dims)).hex()
        raise DataFileError(path, f"has IDX header {head[:4].hex()}, expected {wanted}")
    if len(head) < 4 + 4 * dims:
        raise DataFileError(path, f"is truncated: {len(head)} bytes, IDX header incomplete")
    shape = tuple(int(size) for size in np.frombuffer(head, ">u4", dims, offset=4))
    size = int(np.prod(shape, dtype=object))
    if size > _MOST:
        raise DataFileError(path, f"says {size} bytes of data, more than {_MOST >> 30} GiB")
    body = content(path, len(head) + size + 1)[len(head) :]
    if len(body) < size:
        raise DataFileError(
            path, f"is truncated: {len(body)} bytes of data, its header says {size}"
        )
    if len(body) > size:
        raise DataFileError(path, f"is longer than the {size} bytes of data its header says")
    return np.frombuffer(body, np.uint8).reshape(shape)


def read_idx_pair(images: Path, labels: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 1, H, W) and labels (N,) of two IDX files that belong together."""
    x, y = read_idx(images, 3), read_idx(labels, 1)
    if len(x) == 0:
        raise DataFileError(images, "holds no image")
    if len(x) != len(y):
        raise DataFileError(labels, f"has {len(y)} labels for the {len(x)} images of {images}")
    _check_labels(labels, y, classes)
    return x[:, None], y.astype(np.int64)


def read_cifar(path: Path, classes: int, records: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels (N,) of one binary CIFAR file.

    Args:
        path: of CIFAR-10 (one label byte) or CIFAR-100 (coarse and fine label; fine is taken).
        classes: 10 or 100.
        records: how many the file must hold; None takes any number.

    Raises:
        DataFileError: a length that is no whole number of records, or another number of them
            (so that a file cut at a record's end is noticed), or a label out of range.
    """
    head = 1 if classes == 10 else 2
    record = head + CIFAR_PIXELS
    held = content(path, None if records is None else record * records + 1)
    if not held or len(held) % record:
        raise DataFileError(
            path, f"is truncated or no binary CIFAR file: not a whole number of {record} bytes"
        )
    rows = np.frombuffer(held, np.uint8).reshape(-1, record)
    if records is not None and len(rows) != records:
        raise DataFileError(path, f"has {len(rows)} images, expected {records}: truncated?")
    _check_labels(path, rows[:, head - 1], classes)
    return rows[:, head:].reshape(-1, 3, 32, 32), rows[:, head - 1].astype(np.int64)


def _check_labels(path: Path, labels: np.ndarray, classes: int) -> None:
    if labels.size and int(labels.max()) >= classes:
        raise DataFileError(
            path, f"is corrupted: label {int(labels.max())}, expected 0 to {classes - 1}"
        )


def read_npz(path: Path | str) -> dict[str, np.ndarray]:
    """All arrays of an .npz archive; never unpickles.

    Raises:
        TypeError: path is no path.
        DataFileError: missing, not an archive, damaged, or an array of Python objects.
    """
    if not isinstance(path, (str, Path)):
        v.fail("data.npz", "path must be a path", type(path).__name__, TypeError)
    path = Path(path)
    if not path.is_file():
        raise DataFileError(path, "not found")
    name = ""
    try:
        if not zipfile.is_zipfile(path):
            raise DataFileError(path, "is not an .npz archive, or is truncated")
        _check_inflated(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {}
            for name in archive.files:
                arrays[name] = archive[name]
                if not isinstance(arrays[name], np.ndarray):
                    raise DataFileError(path, f"member {name!r} is not a NumPy array")
            return arrays
    except DataFileError:
        raise
    except MemoryError as error:
        raise DataFileError(path, f"array {name!r} cannot be read: not enough memory") from error
    # zipfile and NumPy's header parser answer damaged bytes with errors of a dozen types.
    except Exception as error:
        pickled = isinstance(error, ValueError) and "pickle" in str(error)
        fault = "holds Python objects" if pickled else f"is corrupted: {error}"
        named = name and isinstance(error, ValueError)
        raise DataFileError(path, f"array {name!r} {fault}" if named else fault) from error


def _check_inflated(path: Path) -> None:
    """Refuse an archive whose arrays exceed the free memory, before they are inflated."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    free = free_bytes()
    if _COPIES * size > free:
        raise DataFileError(
            path, f"holds {size} bytes of arrays, too many for {free} bytes of free memory"
        )


def training_named(path: Path | str, held: dict[str, Held]) -> dict[str, Held]:
    """Contents of a file, its training pair named ``x_train`` and ``y_train``, not ``x`` and ``y``.

    Raises:
        DataFileError: one of the two is not there.
    """
    names = ", ".join(map(str, held)) or "nothing"
    if "x" in held and "x_train" not in held:
        held = held | {"x_train": held["x"]} | ({"y_train": held["y"]} if "y" in held else {})
    for name in ("x_train", "y_train"):
        if name not in held:
            raise DataFileError(path, f"lacks the array {name} (it holds {names})")
    return held


def read_training_npz(path: Path | str) -> dict[str, np.ndarray]:
    """As :func:`read_npz`, with numbers under ``x_train`` and ``y_train``, a row a sample.

    Raises:
        TypeError: path is no path.
        DataFileError: as ``read_npz``, or arrays missing, of text, or single numbers.
    """
    arrays = training_named(path, read_npz(path))
    for key in ("x_train", "y_train", "x_test", "y_test"):
        value = arrays.get(key)
        if value is not None and value.dtype.kind not in "iuf":
            raise DataFileError(path, f"array {key!r} has dtype {value.dtype}, expected numbers")
        if value is not None and value.ndim == 0:
            raise DataFileError(path, f"array {key!r} is a single number, expected a row a sample")
    return arrays


def read_pt(path: Path) -> Any:
    """Contents of a ``torch.save`` file: tensors and plain containers, nothing unpickled.

    Raises:
        DataFileError: damaged, or other objects.
    """
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    # torch answers damaged bytes with errors of many types.
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            raise DataFileError(path, "holds Python objects, or is corrupted") from error
        reason = f"{type(error).__name__}: {error}".splitlines()[0].partition(". ")[0]
        raise DataFileError(path, f"is truncated or no file of torch.save: {reason}") from error
