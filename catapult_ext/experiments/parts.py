"""The finished parts of a run: loaded, or computed and stored at once, shared out over ranks."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from catapult_ext._processes import Ranks
from catapult_ext._store import RunFolder

Record = dict[str, Any]


def _alone(job: Callable[[], Record]) -> list[Record]:
    return [job()]


class Parts:
    """Returns finished parts, computes and stores missing ones.

    Args:
        folder: run folder, or None to keep everything in memory.
        ranks: who shares the parts (the folder is then needed).
        done: called with the name of every part that was computed here and stored, and its record.
    """

    def __init__(
        self,
        folder: RunFolder | None = None,
        ranks: Ranks | None = None,
        done: Callable[[str, Record], None] | None = None,
    ) -> None:
        self.folder, self.ranks, self.done = folder, ranks, done
        self._records: dict[str, Record] = {}

    def load(self, name: str) -> Record | None:
        """The record ``name``, or None where it is not finished."""
        return self._records.get(name) if self.folder is None else self.folder.load_part(name)

    def finished(self, name: str) -> bool:
        """Whether the part is finished; of a folder, without reading it."""
        return (
            name in self._records if self.folder is None else self.folder.part_path(name).exists()
        )

    def missing(self, names: Iterable[str]) -> list[str]:
        """Names of the parts that are not finished."""
        return [name for name in names if self.load(name) is None]

    def compute(self, jobs: Mapping[str, Callable[[], Record]]) -> None:
        """Compute and store the parts of ``jobs``, except those that another rank has claimed."""
        for name, job in jobs.items():
            self.compute_together([name], functools.partial(_alone, job))

    def compute_together(self, names: Sequence[str], job: Callable[[], Sequence[Record]]) -> None:
        """Compute the parts ``names`` in one piece of work, and store those that are missing.

        The piece is always the whole one, so that an interrupted run ends with the same bits; with
        ranks, one of them computes all of it.

        Args:
            names: names of the parts, the same on every rank.
            job: returns a record a name.
        """
        missing = set(self.missing(names))
        if not missing or (self.ranks is not None and not self.ranks.claim(names[0])):
            return
        begin, busy = time.perf_counter(), time.process_time()
        records = job()
        took = [time.perf_counter() - begin, time.process_time() - busy]
        for name, record in zip(names, records, strict=True):
            if name in missing:
                self._save(name, record, [seconds / len(names) for seconds in took])
                if self.done is not None:
                    self.done(name, record)

    def _save(self, name: str, record: Record, took: list[float]) -> None:
        if self.folder is None:
            self._records[name] = record
            return
        helps = self.ranks is not None and self.ranks.rank > 0
        if self.ranks is not None and helps:  # rank 0 writes all times, once the part is there
            self.ranks.tell(f"seconds/{name}", json.dumps(took))
        self.folder.save_part(name, record)
        if not helps:
            self.folder.note_time(name, *took)

    def collect(self, names: Iterable[str]) -> list[Record]:
        """The records ``names``, which other ranks may still be computing.

        They are as every later run sees them: read back where there is a folder.
        """
        found = []
        for name in names:
            while self.ranks is not None and not self.finished(name):
                self.ranks.pause()
            if self.ranks is not None and self.ranks.rank == 0 and self.folder is not None:
                took = self.ranks.told(f"seconds/{name}")
                if took is not None:
                    self.folder.note_time(name, *json.loads(took))
            record = self.load(name)
            assert record is not None
            found.append(record)
        return found
