"""The surroundings of an experiment: resumable parts, data by name, progress with the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from catapult_ext import _validate as v
from catapult_ext._processes import Ranks
from catapult_ext._store import RunFolder, RunFolderError
from catapult_ext.data import Dataset, named
from catapult_ext.data.files import data_folder
from catapult_ext.data.packaged import packaged
from catapult_ext.data.standard import FROM_FILES
from catapult_ext.experiments.parts import Parts, Record


class Context(Parts):
    """Hands out finished parts, computes and stores missing ones; a context manager.

    Args:
        folder: run folder, or None to keep everything in memory.
        data_dir: folder of data files.
        tell: called with a line of text when a part is done.
        device: where data and networks live.
        standardise: how inputs are shifted and scaled, instead of the experiment's own way.
        ranks: who shares the parts (the folder is then needed): the ranks themselves, or what
            starts them; it is entered where several parts are missing for the first time.

    Attributes:
        data_folder: where data files were read; None if none were.
    """

    def __init__(
        self,
        folder: RunFolder | None = None,
        data_dir: Path | str | None = None,
        tell: Callable[[str], None] | None = None,
        device: str = "cpu",
        standardise: str | None = None,
        ranks: Ranks | AbstractContextManager[Ranks] | None = None,
    ) -> None:
        super().__init__(folder, ranks if isinstance(ranks, Ranks) else None)
        self.device, self.data_dir, self.tell = device, data_dir, tell
        self.standardise = standardise
        self.data_folder: Path | None = None
        self._starter = None if isinstance(ranks, Ranks) else ranks
        self._started = ExitStack()
        self._sources: dict[str, dict[str, str | None]] = {}

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *error: Any) -> None:
        self._started.__exit__(*error)

    def part(self, name: str, compute: Callable[[], Record]) -> Record:
        """The record ``name``: from the run folder, else computed and stored there at once."""
        return self.parts({name: compute})[0]

    def parts(self, jobs: Mapping[str, Callable[[], Record]]) -> list[Record]:
        """The records of all ``jobs``, in their order; ranks share what is missing."""
        return self.parts_together({(name,): _as_list(job) for name, job in jobs.items()})

    def parts_together(
        self, jobs: Mapping[tuple[str, ...], Callable[[], Sequence[Record]]]
    ) -> list[Record]:
        """The records of all names in ``jobs``; each job makes those of its names together."""
        names = [name for group in jobs for name in group]
        missing = self.missing(names)
        if len(missing) > 1 and self._starter is not None:
            self.ranks = self._started.enter_context(self._starter)
            self._starter = None
        begin = time.perf_counter()

        def report(name: str, _record: Record) -> None:
            if self.tell is None:
                return
            seconds, done = time.perf_counter() - begin, sum(map(self.finished, missing))
            left = seconds / done * (len(missing) - done)
            text = f"{name} ({done}/{len(missing)} in {seconds:.1f} s"
            self.tell(text + (f", about {left / 60:.1f} min left)" if left else ")"))

        self.done = report
        for group, job in jobs.items():
            self.compute_together(group, job)
        return self.collect(names)

    def data(self, name: str, **settings: Any) -> Dataset:
        """:func:`~catapult_ext.data.named` with this run's data folder; images keep their shape."""
        shape: dict[str, Any] = {"flatten": False} | settings
        if self.standardise is not None:
            shape["standardisation"] = self.standardise
        found = named(name, data_dir=self.data_dir, **shape, where="reproduce")
        if found.source is not None:
            if name in FROM_FILES and (self.data_dir is not None or packaged(name) is None):
                self.data_folder = data_folder(self.data_dir)
            given = ", ".join(f"{k}={v}" for k, v in settings.items() if v is not None)
            self._note_source(f"{name}({given})", found.source)
        return found.to(self.device)

    def _note_source(self, source: str, digest: str) -> None:
        """Keep in the folder what data its parts are of; refuse other data.

        Raises:
            RunFolderError: finished parts are of other data.
        """
        folder = None if self.data_folder is None else str(self.data_folder)
        self._sources[source] = found = {"folder": folder, "digest": digest}
        if self.folder is None:
            return
        known = self.folder.read_json("data.json") if self.folder.begun else None
        known = known if isinstance(known, dict) else {}
        held = known.get(source)
        if isinstance(held, dict) and held.get("digest") != digest:
            wanted = f"data must be those of the finished parts in {self.folder.path}, {source} as "
            hint = " (or choose another --out, or pass --fresh to replace that run)"
            v.fail("reproduce", f"{wanted}{_text(held)}{hint}", _text(found), RunFolderError)
        if self.ranks is None or self.ranks.rank == 0:
            self.folder.write_json("data.json", known | self._sources)


def _as_list(job: Callable[[], Record]) -> Callable[[], list[Record]]:
    return lambda: [job()]


def _text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
