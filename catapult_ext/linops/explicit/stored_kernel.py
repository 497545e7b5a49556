"""A symmetric kernel in a file as an operator, which reads each tile once for a product."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._progress import Progress, counted
from catapult_ext._store import canonical
from catapult_ext.linops.base import LinearOperator
from catapult_ext.linops.explicit.kernel_file import (
    array_header,
    checksum,
    file_error,
    read_record,
)

_WHERE = "StoredKernel"
_PANEL_BYTES = 1 << 27  # of the rows that are in memory at once; as many are being read
_EXACT_BYTES = 1 << 26  # of the rows that are in float64 at once
_DTYPES = {str(t): t for t in (torch.float32, torch.float64, torch.bfloat16)}


class StoredKernel(LinearOperator):
    """Operator on a kernel file that :meth:`NTK.dense` wrote.

    A product with any number of columns reads the lower triangle once; the next rows are read while
    the last ones are multiplied.  The first product checks every tile against its checksum.

    Args:
        file: finished symmetric kernel with layout ``"flat"``, or with ``outputs="trace"``.

    Attributes:
        path: path of the file.
        passes: number of passes over the triangle so far.
        storage: dtype of the entries in the file; products of bfloat16 are made in float32.
        identity: identifies the kernel by JSON values; equal values mean the same kernel.

    Raises:
        KernelFileError: the file is missing, unfinished, damaged, truncated or rectangular, or was
            not written by this package; during a product: a tile has changed since.
        TypeError: ``file`` is not a path.

    Example:
        >>> model, data = cx.models.fully_connected(50, 1), cx.data.gaussian(32)
        >>> written = cx.NTK(model, data.x_train).dense(file="kernel.npy")
        >>> kernel = cx.StoredKernel("kernel.npy")
        >>> kernel
        StoredKernel(shape=(32, 32), dtype=torch.float32, device=cpu)
        >>> values, vectors = cx.eigsh(kernel, k=2)
    """

    name = _WHERE

    def __init__(self, file: Path | str) -> None:
        if not isinstance(file, (str, os.PathLike)):
            v.fail(_WHERE, "file must be a path", type(file).__name__, TypeError)
        self.path = Path(file).absolute()
        record = read_record(self.path, _WHERE)
        if record is None or not self.path.is_file():
            raise file_error(_WHERE, self.path, "is missing; NTK.dense(file=...) writes it")
        if not record["complete"]:
            text = "is not finished; make the call of NTK.dense that began it once more"
            raise file_error(_WHERE, self.path, text)
        layout, *_, shape, kind = record["identity"]["layout"]
        one = len(record["identity"].get("data", [])) == 1  # no cross kernel, no factor
        square = len(shape) == 2 and shape[0] == shape[1] and one
        if not square or kind not in _DTYPES or layout != "flat":
            text = f"holds no symmetric kernel in the layout 'flat': {layout}, {tuple(shape)}"
            raise file_error(_WHERE, self.path, text)
        self.shape = (shape[0], shape[0])
        self.storage = _DTYPES[kind]
        self.dtype = torch.float64 if self.storage == torch.float64 else torch.float32
        self.device = torch.device("cpu")
        header = array_header(self.shape, self.storage)
        self._offset = len(header)
        size = self._offset + shape[0] ** 2 * self.storage.itemsize
        with open(self.path, "rb") as held:
            intact = held.read(len(header)) == header
        if not intact or self.path.stat().st_size != size:
            text = f"is truncated or damaged ({self.path.stat().st_size} bytes, {size} expected)"
            raise file_error(_WHERE, self.path, text)
        facts = {"kernel": record["identity"], "checks": record.get("checks")}
        self.identity: dict[str, Any] = json.loads(canonical(facts))
        self.passes = 0
        self._unchecked = _Checks.of(record, shape[0])
        self._trace: float | None = None

    @property
    def skew_is_rounding(self) -> bool:
        """The upper triangle is the mirror of the lower one."""
        return True

    @property
    def lower_bound(self) -> float:
        """-c_n eps times the trace: a semi-definite kernel whose entries were rounded.

        |E|_2 <= c eps |K|_F <= c eps tr K for entries off by c eps (K_ii K_jj)^(1/2).
        """
        if self._trace is None:
            self._trace = self.diagonal().double().sum().item()
        eps = torch.finfo(self.storage).eps
        rounding = (10 + self.shape[0] ** 0.25) * torch.finfo(self.dtype).eps
        return -max(eps if eps > 1e-3 else 0.0, rounding) * self._trace

    def _matmat(self, vectors: Tensor) -> Tensor:
        out = torch.zeros_like(vectors)
        for at, panel in self.rows():
            stop = at + len(panel)
            panel = panel.to(self.dtype)
            out[at:stop] += panel @ vectors[:stop]
            out[:at] += panel[:, :at].T @ vectors[at:stop]
        return out

    def exact_product(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """A V and |A| |V| in float64 for (n, K): the second tells how much rounding may do."""
        vectors = vectors.double()
        out, total = torch.zeros_like(vectors), torch.zeros_like(vectors)
        size = vectors.abs()
        for at, panel in self.rows():
            step = max(1, _EXACT_BYTES // (8 * (at + len(panel))))
            for first in range(0, len(panel), step):
                start = at + first
                some = panel[first : first + step].double()
                stop = start + len(some)
                out[start:stop] += some @ vectors[: at + len(panel)]
                out[:at] += some[:, :at].T @ vectors[start:stop]
                some = some.abs()
                total[start:stop] += some @ size[: at + len(panel)]
                total[:at] += some[:, :at].T @ size[start:stop]
        return out, total

    def rows(self) -> Iterator[tuple[int, Tensor]]:
        """The lower triangle by panels: first row, and rows (r, first + r) in the file's dtype.

        A panel's memory is used again for the one after the next.

        Raises:
            KernelFileError: a tile that differs from its checksum, a file that cannot be read.
        """
        n, item = self.shape[0], self.storage.itemsize
        starts, at = [], 0
        while at < n:
            starts.append(at)
            at += self._panel(at)
        checks = self._unchecked.begin() if self._unchecked else None
        room = max(self._panel(at) * min(at + self._panel(at), n) for at in starts)
        buffers = [torch.empty(room * item, dtype=torch.uint8, device="cpu") for _ in range(2)]
        with open(self.path, "rb", buffering=0) as file, ThreadPoolExecutor(1) as reader:
            read = [
                lambda at=at, held=buffers[i % 2]: self._read(file, at, held)
                for i, at in enumerate(starts)
            ]
            ahead = reader.submit(read[0])
            for i, at in enumerate(starts):
                panel = ahead.result()
                if i + 1 < len(starts):
                    ahead = reader.submit(read[i + 1])
                if checks is not None:
                    self._verify(checks, at, panel)
                yield at, panel
        self.passes += 1
        self._unchecked = None

    def _panel(self, at: int) -> int:
        """Rows of the panel that begins there: all the same bytes, about."""
        n, item = self.shape[0], self.storage.itemsize
        low = int((at**2 + 4 * _PANEL_BYTES // item) ** 0.5 - at) // 2
        return max(1, min(low, n - at))

    def _read(self, file: FileIO, at: int, held: Tensor) -> Tensor:
        n, item = self.shape[0], self.storage.itemsize
        count = self._panel(at)
        width = at + count
        view = held.numpy().data
        for row in range(count):
            part = view[row * width * item : (row + 1) * width * item]
            self._fill(file, part, self._offset + (at + row) * n * item)
        return held[: count * width * item].view(self.storage).view(count, width)

    def _fill(self, file: FileIO, part: memoryview, offset: int) -> None:
        done = 0
        while done < len(part):
            try:
                file.seek(offset + done)
                got = file.readinto(part[done:])
            except OSError as error:
                text = f"cannot be read: {error.strerror}"
                raise file_error(_WHERE, self.path, text) from error
            if not got:
                raise file_error(_WHERE, self.path, "ends too early: it was cut since")
            done += got

    def _verify(self, checks: _Checks, at: int, panel: Tensor) -> None:
        bad = checks.add(at, panel)
        if bad is not None:
            text = (
                f"was changed after it was written: the tile of rows {bad[0]} and columns {bad[1]} "
                "differs from its checksum; delete it and its .json, and write it again"
            )
            raise file_error(_WHERE, self.path, text)

    def read_columns(self, chosen: Tensor) -> Tensor:
        """Columns (n, j) of the given indices, which are rows too: no product."""
        n, item = self.shape[0], self.storage.itemsize
        out = torch.empty(len(chosen), n, dtype=self.storage, device="cpu")
        view = out.view(torch.uint8).numpy().reshape(-1).data
        with open(self.path, "rb", buffering=0) as file:
            for i, column in enumerate(chosen.tolist()):
                part = view[i * n * item : (i + 1) * n * item]
                self._fill(file, part, self._offset + column * n * item)
        return out.T.to(self.dtype)

    def diagonal(self) -> Tensor:
        """The diagonal (n,)."""
        n, item = self.shape[0], self.storage.itemsize
        out = torch.empty(n, dtype=self.storage, device="cpu")
        view = out.view(torch.uint8).numpy().data
        with open(self.path, "rb", buffering=0) as file:
            for i in range(n):
                part = view[i * item : (i + 1) * item]
                self._fill(file, part, self._offset + i * (n + 1) * item)
        return out.to(self.dtype)

    def dense(self, *, progress: Progress = None) -> Tensor:
        """The matrix in memory, (n, n); ``progress`` tells of its rows."""
        self._check_room(f"{_WHERE}.dense")
        out = torch.empty(self.shape, dtype=self.dtype, device="cpu")
        with counted(progress, f"{_WHERE}.dense", self.shape[0], "rows") as counter:
            for at, panel in self.rows():
                stop = at + len(panel)
                out[at:stop, :stop] = panel
                out[:at, at:stop] = panel[:, :at].T
                counter.at(stop)
        return out


class _Checks:
    """Checksums of square tiles, continued row by row as panels of rows come by."""

    def __init__(self, edge: int, tiles: dict[tuple[int, int], int], n: int) -> None:
        self.edge, self.tiles, self.n = edge, tiles, n
        self.running: dict[int, int] = {}

    @classmethod
    def of(cls, record: dict[str, Any], n: int) -> _Checks | None:
        """Read from a sidecar's record; None if its tiles have no checksums, or are bands."""
        checks, cut = record.get("checks") or [], record["cut"]
        width = record["cut"].get("width")
        if cut["by"] != "parts" or width is None or None in checks:
            return None
        edge = cut["edge"] * width
        starts = range(0, n, edge)
        places = [(r, c) for r in starts for c in starts if c <= r]
        if len(places) != len(checks):
            return None
        return cls(edge, dict(zip(places, checks, strict=True)), n)

    def begin(self) -> _Checks:
        """Fresh sums."""
        self.running = {}
        return self

    def add(self, at: int, panel: Tensor) -> tuple[int, int] | None:
        """Rows from ``at`` on, as far as the diagonal; the first tile that does not fit."""
        done = at
        while done < at + len(panel):
            row = done // self.edge * self.edge
            stop = min(row + self.edge, at + len(panel))
            some = panel[done - at : stop - at]
            whole = min(row + self.edge, self.n)
            for column in range(0, row + 1, self.edge):
                part = some[:, column : column + self.edge].contiguous()
                if column == row:  # its upper part is not read: the sum is of the lower one
                    part = some.new_zeros(len(some), whole - row)
                    part[:, : panel.shape[1] - row] = some[:, row : min(whole, panel.shape[1])]
                    part = part.tril(done - row)
                self.running[column] = checksum(part, self.running.get(column, 0))
                if stop == whole and self.running.pop(column) != self.tiles[row, column]:
                    return row, column
            done = stop
        return None
