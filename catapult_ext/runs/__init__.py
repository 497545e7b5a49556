"""Run folders, pictures and reports."""

from __future__ import annotations

from catapult_ext._store import RunFolder, RunFolderError, config_hash

__all__ = ["RunFolder", "RunFolderError", "config_hash"]


def __dir__() -> list[str]:
    return __all__
