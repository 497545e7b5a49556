"""Run folders, pictures and reports."""

from __future__ import annotations

from catapult_ext._store import RunFolder, RunFolderError, config_hash
from catapult_ext.runs.steps_table import steps_table, write_table

__all__ = ["RunFolder", "RunFolderError", "config_hash", "steps_table", "write_table"]


def __dir__() -> list[str]:
    return __all__
