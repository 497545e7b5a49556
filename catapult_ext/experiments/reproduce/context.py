"""What an experiment runs in: resumable parts, data by name, progress with the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from catapult_ext.data import Dataset, named
from catapult_ext.experiments import storage
from catapult_ext.runs import RunFolder

FROM_FILES = ("mnist", "fashion-mnist", "cifar-10", "cifar-100")


class Context:
    """Hands out finished parts, computes and stores missing ones.

    Args:
        folder: run folder, or None to keep everything in memory.
        data_dir: folder of data files.
        tell: called with a line of text when a part is done.
        device: where data and networks live.
    """

    def __init__(
        self,
        folder: RunFolder | None = None,
        data_dir: Path | str | None = None,
        tell: Callable[[str], None] | None = None,
        device: str = "cpu",
    ) -> None:
        self.device = device
        self.folder, self.data_dir, self.tell = folder, data_dir, tell
        self.seconds: dict[str, float] = {}
        self._expected = self._done = 0

    def expect(self, parts: int) -> None:
        """Announce that so many more parts will be asked for."""
        self._expected += parts

    def part(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The record ``name``: from the run folder, else computed and stored there at once."""
        stored = None if self.folder is None else self.folder.load_part(name)
        self._done += 1
        if stored is not None:
            return stored
        begin = time.perf_counter()
        record = compute()
        self.seconds[name] = time.perf_counter() - begin
        if self.folder is not None:
            self.folder.save_part(name, record)
            storage.note_time(self.folder, name, self.seconds[name])
            record = self.folder.load_part(name) or record  # floats as every later run sees them
        self._report(name)
        return record

    def _report(self, name: str) -> None:
        if self.tell is None:
            return
        line = f"{name}: {self.seconds[name]:.1f} s"
        if self._expected:
            left = max(0, self._expected - self._done)
            mean = sum(self.seconds.values()) / len(self.seconds)
            line += f" ({self._done}/{self._expected}, about {left * mean / 60:.1f} min left)"
        self.tell(line)

    def data(self, name: str, **settings: Any) -> Dataset:
        """``data.named`` with this run's data folder."""
        if name in FROM_FILES:
            settings["data_dir"] = self.data_dir
        return named(name, **settings).to(self.device)
