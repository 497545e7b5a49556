"""A tracker's run folder: a line for every probe as soon as it is made, the rest at the end."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catapult_ext._store import RunFolder, RunFolderError, canonical, writing
from catapult_ext.probes.record import Row, table_rows

LINES = "probes.jsonl"


class TrackedFolder:
    """Holds the folder and its lock during training.

    A process that is killed leaves all probes but the one that was being made: each is a line of
    ``probes.jsonl`` that is on disk before training continues, and a line cut short is left out.

    Args:
        out: the folder; new, or left by the run whose state was loaded.
        fresh: replace an earlier run in it.
        config: identity of the run; holds ``quantity``.
        earlier: probes made before, of a tracker that was resumed; None otherwise.
        count: steps made before; later probes in the folder are made again.

    Raises:
        RunFolderError: the folder is in use, holds another run, or probes of this one that a
            tracker which begins would lose.
    """

    def __init__(
        self,
        out: Path,
        fresh: bool,
        config: dict[str, Any],
        earlier: Sequence[Row] | None = None,
        count: int = 0,
    ) -> None:
        self._quantity, self._warned = config["quantity"], False
        self._folder = RunFolder(out, {"kind": "curvature", **config}, fresh=fresh)
        try:
            self._begin(earlier, count)
        except BaseException:
            self._folder.close()
            raise

    def _begin(self, earlier: Sequence[Row] | None, count: int) -> None:
        path = self._folder.path / LINES
        held = _whole_lines(path)
        if earlier is None and held:
            raise RunFolderError(
                f"catapult_ext.runs: {self._folder.path} holds {len(held)} probes of an earlier "
                "run; load that tracker's state_dict to resume it, choose another out=, or "
                "pass fresh=True to replace it"
            )
        kept = [row for row in held if row["step"] <= count]
        rows: Sequence[Any] = kept if len(kept) >= len(earlier or ()) else earlier or ()
        self._folder.write_bytes(LINES, b"".join(_line(row) for row in rows))
        with writing(path):
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115  (closed by close)

    def append(self, row: Row) -> None:
        """Store a probe; a disk that is full ends no training, and is warned of once."""
        try:
            with writing(self._folder.path / LINES):
                self._file.write(_line(row))
                os.fsync(self._file.fileno())
        except RunFolderError as error:
            if not self._warned:
                warnings.warn(str(error), RuntimeWarning, stacklevel=4)
            self._warned = True

    def finish(
        self, probes: Sequence[Row], steps: list[dict[str, Any]], times: dict[str, Any]
    ) -> None:
        """Write ``summary.json``, ``summary.csv`` (a row a probe), ``timing.json``, the picture.

        The picture is left out where matplotlib is missing.

        Args:
            probes: rows of the probes.
            steps: rows of the steps whose loss is known.
            times: goes into ``timing.json``.
        """
        folder = self._folder
        folder.write_json("summary.json", {"probes": probes, "steps": steps})
        folder.write_csv("summary.csv", table_rows(probes))
        folder.write_json("timing.json", times)
        try:
            from catapult_ext.figures.curvature import curvature_png

            picture = curvature_png([dict(row) for row in probes], steps, self._quantity)
        except RuntimeError:
            return
        folder.write_bytes("fig_curvature.png", picture)

    def close(self) -> None:
        """Release the folder."""
        self._file.close()
        self._folder.close()


def _line(row: Row) -> bytes:
    return (canonical(row) + "\n").encode()


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The rows that are there; a last line without its end is none."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = text[: text.rfind(b"\n") + 1]
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise RunFolderError(
            f"catapult_ext.runs: {path} is damaged; move it away, or pass fresh=True"
        ) from error
