"""Tables computed a few rows at a time: in memory, or on disk, where an interrupted one resumes."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from catapult_ext._progress import Counter, Progress, check_progress, counted
from catapult_ext._store import RunFolder, allocate, atomic, writing

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class RowTable:
    """Arrays that share their first axis, and the function that computes a slice of them.

    Attributes:
        rows: length of the first axis.
        fields: name -> (dtype, shape of one row).
        stride: rows computed at a time.
        compute: slice of rows -> name -> array of those rows.
        where: the public function.
        unit: what a row is, in the plural.
        progress: of rows; see :mod:`catapult_ext._progress`.
    """

    rows: int
    fields: dict[str, tuple[Any, tuple[int, ...]]]
    stride: int
    compute: Callable[[slice], Arrays]
    where: str
    unit: str = "rows"
    progress: Progress = None

    def __post_init__(self) -> None:
        check_progress(self.where, self.progress)  # before a folder is made

    def in_memory(self) -> Arrays:
        """Compute every row."""
        arrays = {n: np.empty((self.rows, *shape), k) for n, (k, shape) in self.fields.items()}
        with self._counted() as counter:
            for part in self._parts():
                self._fill(arrays, part)
                counter.at(part.stop)
        return arrays

    def stored(self, folder: RunFolder) -> Arrays:
        """Rows go into mapped files of the folder; a part file holds the checksum of finished ones.

        Rows that are not as they were finished are computed again.

        Raises:
            RunFolderError: a file cannot be written, or the disk has no room for all of them; the
                latter before the first row is computed.
        """
        arrays: Arrays = {
            name: _mapped(folder.path / f"{name}.npy", np.dtype(kind), (self.rows, *shape))
            for name, (kind, shape) in self.fields.items()
        }
        with self._counted() as counter:
            for part in self._parts():
                name = f"rows-{part.start:06d}"
                finished = folder.load_part(name)
                if finished is None or finished != _record(arrays, part):
                    self._fill(arrays, part)
                    for field, array in arrays.items():
                        assert isinstance(array, np.memmap)
                        with writing(folder.path / f"{field}.npy"):
                            array.flush()
                    folder.save_part(name, _record(arrays, part))
                counter.at(part.stop)
        return arrays

    def _parts(self) -> Iterator[slice]:
        for start in range(0, self.rows, self.stride):
            yield slice(start, min(self.rows, start + self.stride))

    def _fill(self, arrays: Arrays, part: slice) -> None:
        computed = self.compute(part)
        for name, array in arrays.items():
            array[part] = computed[name]

    def _counted(self) -> AbstractContextManager[Counter]:
        return counted(self.progress, self.where, self.rows, self.unit)


def _mapped(path: Path, kind: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """The file's array where it has this type and shape, else a new one in its place."""
    try:
        held = np.lib.format.open_memmap(path, mode="r")  # "r+" would lengthen a short file
        fits = (held.dtype, held.shape) == (kind, shape)
    except Exception:  # NumPy's header parser answers damaged bytes with errors of many types
        fits = False
    header = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    size = len(header.getvalue()) + math.prod(shape) * kind.itemsize
    with writing(path):
        try:
            with open(path, "r+b" if fits else "wb") as file:
                if not fits:
                    file.write(header.getvalue())
                allocate(file, size)
        except OSError:
            if not fits and path.is_file():
                path.unlink()  # frees the space that was taken
            raise
        return np.lib.format.open_memmap(path, mode="r+")


def _record(arrays: Arrays, part: slice) -> dict[str, Any]:
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(array[part].tobytes())
    return {"rows": [part.start, part.stop], "sha256": digest.hexdigest()}


def save_npz(path: Path | str, arrays: Arrays) -> Path:
    """Write the arrays to an ``.npz`` file, one at a time and mapped ones a few rows at a time.

    Raises:
        RunFolderError: the file cannot be written.
    """
    path = Path(path)

    with (
        atomic(path) as whole,
        zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                _write_npy(file, array)
    return path


def _write_npy(file: Any, array: np.ndarray) -> None:
    """As ``np.save``, but a mapped array is copied a few rows at a time."""
    header = np.lib.format.header_data_from_array_1_0(np.asarray(array))
    np.lib.format.write_array_header_1_0(file, {**header, "fortran_order": False})
    rows = np.atleast_1d(array)
    stride = max(1, (1 << 24) // max(1, rows[:1].nbytes))
    for start in range(0, len(rows), stride):
        file.write(np.ascontiguousarray(rows[start : start + stride]).tobytes())
