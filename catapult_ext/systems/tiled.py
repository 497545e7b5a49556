"""Cholesky factors in a file, panel of rows by panel of rows; an interrupted one goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._progress import Progress, counted
from catapult_ext._store import update_digest
from catapult_ext.linops.explicit.kernel_file import KernelFile, checksum
from catapult_ext.linops.explicit.stored_kernel import StoredKernel
from catapult_ext.systems.problem import System

_WHERE = "cholesky"
_PANEL_BYTES = 1 << 28  # of the rows of L that are being made, in float64


def tiled_cholesky(
    system: System, file: Path | str, dtype: torch.dtype, progress: Progress
) -> Tensor:
    """L (n, n) in a file, mapped; only the panels that it lacks are computed.

    Raises:
        TypeError: A without entries that can be read row by row, another dtype.
        ValueError: A + shift I that is not positive definite; what is done stays in the file.
        KernelFileError: see :class:`KernelFile`; a panel that differs from its checksum.
    """
    source, n = system.source, system.a.n
    explicit = system.a.explicit
    if explicit is None and not isinstance(source, StoredKernel):
        needs = "A must be a dense tensor or a StoredKernel"
        v.fail(_WHERE, needs, type(source).__name__, TypeError)
    if dtype not in v.FLOAT_DTYPES:
        v.fail(_WHERE, "dtype must be float32 or float64", dtype, TypeError)
    facts = {
        "layout": ["cholesky", [n, n], str(dtype)],
        "matrix": _identity(system),
        "shift": system.shift,
    }
    edge = max(1, min(n, _PANEL_BYTES // (8 * n)))
    cut: dict[str, Any] = {"by": "rows", "edge": edge}
    with KernelFile(file, (n, n), dtype, facts, [], lambda: cut, _WHERE) as held:
        edge = held.cut["edge"]
        panels = [slice(at, min(at + edge, n)) for at in range(0, n, edge)]
        with counted(progress, _WHERE, len(panels), "panels") as counter:
            counter.at(held.done)
            if not held.complete:
                lower = held.writable()
                _check(held, lower, panels)
                for at, rows in enumerate(panels[held.done :], held.done + 1):
                    made = _panel(system, lower, panels[: at - 1], rows).to(dtype)
                    lower[rows, : rows.stop] = made
                    held.finish(at, at == len(panels), checksum(made.contiguous()))
                    counter.at(at)
        return held.result()


def _identity(system: System) -> Any:
    """Facts that identify this matrix."""
    if isinstance(system.source, StoredKernel):
        return system.source.identity
    digest = hashlib.sha256()
    assert system.a.explicit is not None
    update_digest(digest, "", system.a.explicit)
    return digest.hexdigest()


def _check(held: KernelFile, lower: Tensor, panels: list[slice]) -> None:
    """The panels of an earlier call, against their checksums."""
    for rows, wanted in zip(panels, held.checks, strict=False):
        if checksum(lower[rows, : rows.stop].contiguous()) != wanted:
            raise held.error(
                f"was changed after it was written (rows from {rows.start} differ from their "
                "checksum); delete it and its .json to start again"
            )


def _panel(system: System, lower: Tensor, before: list[slice], rows: slice) -> Tensor:
    """Rows of L up to the diagonal, in float64: X L_jj' = A_ij - sum over k < j of X_k L_jk'."""
    made = _rows_of(system, rows)
    for columns in before:
        known = lower[columns, : columns.stop].double()
        square = known[:, columns.start :]
        made[:, columns] -= made[:, : columns.start] @ known[:, : columns.start].T
        made[:, columns] = torch.linalg.solve_triangular(
            square.T, made[:, columns], upper=True, left=False
        )
    left = made[:, : rows.start]
    corner = made[:, rows.start :] - left @ left.T
    corner.diagonal().add_(system.shift)
    factor, status = torch.linalg.cholesky_ex(corner)
    if int(status):
        needs = "A + shift I must be positive definite beyond rounding (give a larger shift=)"
        v.fail(_WHERE, needs, f"a pivot <= 0 in row {rows.start + int(status) - 1}")
    made[:, rows.start :] = factor
    return made


def _rows_of(system: System, rows: slice) -> Tensor:
    """A[rows, : rows.stop] in float64."""
    if system.a.explicit is not None:
        return system.a.explicit[rows, : rows.stop].double().clone()
    out = [part.double() for part in _stored_rows(system.source, rows)]
    return torch.cat(out)


def _stored_rows(source: StoredKernel, rows: slice) -> Iterator[Tensor]:
    step = max(1, (1 << 26) // (8 * source.shape[0]))
    for at in range(rows.start, rows.stop, step):
        chosen = torch.arange(at, min(at + step, rows.stop), device="cpu")
        yield source.read_columns(chosen).T[:, : rows.stop]
