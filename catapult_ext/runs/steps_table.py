"""One long table of a run: a row for each seed, rate and step, as CSV or Parquet."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from catapult_ext import _validate as v
from catapult_ext._store import clean, write_atomically

Row = dict[str, Any]
_WHERE = "runs.steps_table"
KEYS = ("part", "seed", "c", "eta", "step", "time", "loss")
CURVES = ("projection", "growth")  # have a value wherever the loss has one
SUFFIXES = (".csv", ".parquet")


def steps_table(folder: Path | str) -> list[Row]:
    """All stored steps in the run folder of a sweep or experiment, in the order of its parts.

    A row holds ``part``, ``seed`` (index of the model; 0 for a single model), ``c``, ``eta``,
    ``step``, ``time`` = eta * step and ``loss``. ``projection`` and ``growth`` of the residual and
    all other measurements follow, with None at steps where they were not made. Non-finite losses
    are None.

    Args:
        folder: run folder; only its training runs are included.

    Raises:
        ValueError: not a run folder, or a run folder without training runs.

    Examples:
        >>> import tempfile
        >>> from catapult_ext.runs import RunFolder, steps_table
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> with RunFolder(folder, {"experiment": "mine"}) as run:
        ...     run.save_part("a", {"c": 1.0, "eta": 0.5, "loss": [2.0, 0.5]})
        >>> [(row["step"], row["time"], row["loss"]) for row in steps_table(folder)]
        [(0, 0.0, 2.0), (1, 0.5, 0.5)]
    """
    parts = Path(folder) / "parts"
    v.require(parts.is_dir(), _WHERE, "folder must be a run folder with parts", folder)
    rows: list[Row] = []
    for path in sorted(parts.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        record = record.get("record", record) if isinstance(record, Mapping) else {}
        rows += _rows(path.stem, record)
    v.require(bool(rows), _WHERE, "folder must hold training runs", f"none in {folder}")
    names = dict.fromkeys([*KEYS, *(name for row in rows for name in row)])
    return [{name: row.get(name) for name in names} for row in rows]


def _rows(part: str, record: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of one part; none where it is no training run."""
    loss, eta = record.get("loss"), record.get("eta")
    if not isinstance(loss, list) or not isinstance(eta, (int, float)):
        return
    at = record.get("loss_steps") or range(len(loss))
    own = re.match(r"seed_(\d+)_", part)  # of a sweep of several models
    seed = record.get("seed", int(own[1]) if own else 0)
    whole = {"part": part, "seed": seed, "c": record.get("c"), "eta": eta}
    curves = {n: record[n] for n in CURVES if isinstance(record.get(n), list)}
    found: dict[int, Row] = {}
    for i, (step, value) in enumerate(zip(at, loss, strict=False)):
        measured = {name: values[i] for name, values in curves.items() if i < len(values)}
        found[step] = {"step": step, "time": eta * step, "loss": value} | measured
    for probe in _probes(record):
        step = probe["step"]
        found[step] = {"step": step, "time": eta * step} | found.get(step, {}) | probe
    for step in sorted(found):
        yield whole | found[step]


def _probes(record: Mapping[str, Any]) -> list[Row]:
    """Measurements along a run, by step: rows of experiments, columns of sweeps."""
    rows = record.get("probes")
    if isinstance(rows, list):
        return [row for row in rows if isinstance(row, dict) and "step" in row]
    steps = record.get("probe_steps") or []
    columns = {
        name: values
        for name, values in record.items()
        if isinstance(values, list) and len(values) == len(steps)
        if name not in ("loss", "loss_steps", "probe_steps", *CURVES)
    }
    return [
        {"step": step} | {name: values[i] for name, values in columns.items()}
        for i, step in enumerate(steps)
    ]


def write_table(rows: Sequence[Mapping[str, Any]], path: Path | str) -> Path:
    """Write rows of equal keys, atomically, as CSV or Parquet by the suffix.

    Args:
        rows: as of :func:`steps_table`; None is an empty cell.
        path: ends in ``.csv``, or in ``.parquet`` where pyarrow is installed.

    Raises:
        ValueError: another suffix.
        RuntimeError: pyarrow is missing; the message names it.

    Examples:
        >>> import tempfile
        >>> from catapult_ext.runs import write_table
        >>> path = write_table([{"step": 0, "loss": 1.5}], tempfile.mkdtemp() + "/steps.csv")
        >>> path.read_text().split()
        ['step,loss', '0,1.5']
    """
    path = Path(path)
    wanted = f"path must end in {' or '.join(SUFFIXES)}"
    v.require(path.suffix in SUFFIXES, "runs.write_table", wanted, str(path))
    held = [clean(dict(row)) for row in rows]
    if path.suffix == ".parquet":
        write_atomically(path, _parquet(held))
        return path
    text = io.StringIO()
    writer = csv.DictWriter(text, list(held[0]) if held else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(held)
    write_atomically(path, text.getvalue().encode())
    return path


def _parquet(rows: list[Row]) -> bytes:
    if importlib.util.find_spec("pyarrow") is None:
        text = "a .parquet table needs pyarrow: pip install pyarrow, or choose .csv"
        raise RuntimeError(f"catapult_ext.runs.write_table: {text}")
    import pyarrow
    import pyarrow.parquet

    held = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), held)
    return held.getvalue()
