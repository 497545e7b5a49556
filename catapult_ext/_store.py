"""Run folders: atomic files, identified by a hash of the configuration, resumable any time.

Also the digests that identify tensors, weights and the runs on them.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from catapult_ext._native import build_info

FORMAT = "catapult_ext run 1"
_OWN_FILES = (
    *("summary.json", "summary.csv", "timing.json", "report.html", "fig_*.png"),
    *("claims.json", "data.json", "table_*.csv", "fig_*.svg", "probes.jsonl"),
)


class RunFolderError(RuntimeError):
    """A run folder that cannot be used; the message says which, why, and what to do."""


def clean(value: Any) -> Any:
    """Convert ``value`` to strict JSON: tuples to lists, keys to str, non-finite floats to None."""
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(clean(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def config_hash(config: dict[str, Any]) -> str:
    """Identity of a run: 16 hexadecimal digits of the SHA-256 of its canonical configuration.

    Examples:
        >>> from catapult_ext.runs import config_hash
        >>> len(config_hash({"steps": 100}))
        16
    """
    return _digest(config)[:16]


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn an OSError of what runs inside into one error that names the file and the reason.

    Raises:
        RunFolderError: ``path`` cannot be written.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunFolderError(f"catapult_ext.runs: cannot write {path}: {reason}") from error


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A temporary neighbour to write to, which takes the place of ``path`` once it is on disk.

    Readers see all of the new content or the old one; after an error nothing is left behind.

    Raises:
        RunFolderError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` as :func:`atomic` does.

    Raises:
        RunFolderError: the file cannot be written.
    """
    with atomic(path) as file:
        file.write(data)


def allocate(file: IO[bytes], size: int) -> None:
    """Take ``size`` bytes of disk for an open file, so that writing to its map cannot fail later.

    A map of a file with holes ends the process by a bus error when the disk is full.

    Raises:
        OSError: the disk has no such room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def later_format(held: object, own: str) -> bool:
    """Whether ``held`` names a later version of the format ``own`` ("... 1")."""
    kind, _, number = own.rpartition(" ")
    found = re.fullmatch(rf"{re.escape(kind)} (\d+)", held) if isinstance(held, str) else None
    return found is not None and int(found[1]) > int(number)


def update_digest(digest: hashlib._Hash, name: str, value: Tensor) -> None:
    """Feed name, dtype, shape and bytes of a tensor into a hash."""
    value = value.detach().cpu().contiguous()
    digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}".encode())
    digest.update(value.reshape(-1).view(torch.uint8).numpy().data)


def weights_digest(model: nn.Module) -> str:
    """Identity of a model's parameters and buffers, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        update_digest(digest, name, value)
    return digest.hexdigest()[:16]


def processor() -> str:
    """The name of the processor, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """Versions, threads and processor: noted with the results, no part of a run's identity."""
    return {
        "catapult_ext": build_info()["version"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "processor": processor(),
    }


class RunFolder:
    """One run on disk; use as a context manager, which holds a lock against a second process.

    Layout: ``config.json``, ``parts/NAME.json`` (one per finished learning rate, with a checksum),
    then ``summary.json``, ``summary.csv``, ``timing.json`` and whatever reports are written.

    Args:
        path: the folder; created if missing, taken if empty, if it holds the same run, or if the
            run in it left nothing but its configuration.
        config: JSON-like configuration; its hash is the run's identity.
        environment: facts that are noted in config.json but are no part of the identity.
        joined: this process shares the run of another one, which has opened the folder and holds
            its lock.
        fresh: forget the finished parts and reports of an earlier run in this folder, whatever
            its configuration; files that no run wrote are never touched.

    Raises:
        RunFolderError: the folder cannot be written, belongs to another configuration, was not
            written by catapult_ext (both left untouched), or is in use by another process.
    """

    def __init__(
        self,
        path: Path | str,
        config: dict[str, Any],
        *,
        environment: dict[str, Any] | None = None,
        fresh: bool = False,
        joined: bool = False,
    ) -> None:
        self.path = Path(path).absolute()  # the process may change its folder during the run
        self.config = clean(config)
        self.hash = config_hash(config)
        self.environment = clean(environment or {})
        self.resumed = False
        self._lock: Any = None
        self._open(fresh, joined)

    def _open(self, fresh: bool, joined: bool) -> None:
        held = self._accept(fresh, joined)
        if joined:
            if held is None:
                raise RunFolderError(
                    f"catapult_ext.runs: {self.path} must be a folder that all ranks see"
                )
            self.resumed, self.started_in = True, held.get("environment") or {}
            return
        try:
            (self.path / "parts").mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(self.path / ".lock")
        except OSError as error:
            raise RunFolderError(
                f"catapult_ext.runs: cannot write the run folder {self.path}: {error.strerror}"
            ) from error
        try:
            self._begin(fresh, joined)
        except BaseException:
            self.close()
            raise

    def _begin(self, fresh: bool, joined: bool) -> None:
        """Resume or begin the run, once the folder is locked."""
        held = self._accept(fresh, joined)  # another process may have begun here since
        self._sweep_temporaries()
        if held is not None and (fresh or held.get("hash") != self.hash):
            self._forget()
            held = None
        self.resumed = held is not None
        if held is not None:
            noted = held.get("environment")
            self.started_in = noted if isinstance(noted, dict) else {}
            return
        self.started_in = self.environment
        document = {
            "format": FORMAT,
            "hash": self.hash,
            "config": self.config,
            "environment": self.environment,
        }
        self.write_json("config.json", document)

    def _accept(self, fresh: bool, joined: bool) -> dict[str, Any] | None:
        """The config.json that is there, of this run, or of another one that may be replaced."""
        held = self._identify()
        another = held is not None and held.get("hash") != self.hash
        if another and not fresh and (joined or self._left_something()):
            assert held is not None
            raise RunFolderError(
                f"catapult_ext.runs: {self.path} holds a run with another configuration "
                f"({_difference(held.get('config'), self.config)}); choose another --out or "
                "--name, or pass --fresh to replace that run"
            )
        return held

    def _left_something(self) -> bool:
        """Whether anything is here but what every run begins with."""
        names = {p.name for p in self.path.iterdir() if not p.name.endswith(".tmp")}
        return self.begun or not names <= {"config.json", "data.json", "parts", ".lock"}

    def _identify(self) -> dict[str, Any] | None:
        """The config.json that is there, None for a missing or empty folder; else an error."""
        path = self.path / "config.json"
        try:
            if self.path.is_symlink() and not self.path.exists():
                raise RunFolderError(
                    f"catapult_ext.runs: {self.path} is a symbolic link to {os.readlink(self.path)}"
                    ", which does not exist; make that folder or choose another --out"
                )
            if not self.path.exists():
                return None
            if not self.path.is_dir():
                raise RunFolderError(f"catapult_ext.runs: {self.path} is not a folder")
            # A run killed before its first write leaves only these behind.
            names = {p.name for p in self.path.iterdir() if not p.name.startswith(".config.json.")}
            if not path.exists() and names <= {"parts", ".lock"} and not self._part_files():
                return None
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunFolderError(
                f"catapult_ext.runs: {self.path} is not a run folder (it has files but no "
                "config.json) and is left untouched; choose another --out"
            ) from None
        except OSError as error:
            raise RunFolderError(
                f"catapult_ext.runs: cannot read the run folder {self.path}: {error.strerror}"
            ) from error
        except (ValueError, RecursionError):
            document = None
        if isinstance(document, dict) and later_format(document.get("format"), FORMAT):
            raise RunFolderError(
                f"catapult_ext.runs: {path} was written by a later version of catapult_ext (format "
                f"{document['format']!r}, this version knows {FORMAT!r}); the folder is left "
                "untouched; upgrade, or choose another --out"
            )
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise RunFolderError(
                f"catapult_ext.runs: {path} was not written by catapult_ext or is damaged; the "
                "folder is left untouched; choose another --out"
            )
        if config_hash(document.get("config", {})) != document.get("hash"):
            raise RunFolderError(
                f"catapult_ext.runs: {path} was changed after it was written (its hash does not "
                "match); the folder is left untouched; choose another --out"
            )
        return document

    def _forget(self) -> None:
        found = [path for pattern in _OWN_FILES for path in self.path.glob(pattern)]
        found += self._part_files()
        for path in found:  # before anything is removed
            if path.is_dir() and not path.is_symlink():
                raise RunFolderError(
                    f"catapult_ext.runs: {path} is a folder where a run has a file; nothing was "
                    "removed; move it away, or choose another --out"
                )
        for path in found:
            with writing(path):
                path.unlink()

    def _sweep_temporaries(self) -> None:
        """Remove half-written files of killed processes; the caller holds the folder's lock."""
        for path in [*self.path.glob(".*.tmp"), *(self.path / "parts").glob(".*.tmp")]:
            path.unlink(missing_ok=True)

    def _part_files(self) -> list[Path]:
        return sorted((self.path / "parts").glob("*.json"))

    @property
    def begun(self) -> bool:
        """Whether a finished piece of work is stored."""
        return bool(self._part_files())

    def part_path(self, name: str) -> Path:
        """File of the finished piece of work ``name``."""
        return self.path / "parts" / f"{name}.json"

    def save_part(self, name: str, record: dict[str, Any]) -> None:
        """Store a finished piece of work atomically, with its checksum and the run's hash."""
        record = clean(record)
        document = {"run": self.hash, "name": name, "sha256": _digest(record), "record": record}
        write_atomically(self.part_path(name), (canonical(document) + "\n").encode())

    def load_part(self, name: str) -> dict[str, Any] | None:
        """The stored record, or None if this piece is not finished.

        Raises:
            RunFolderError: the file is damaged, belongs to another run or cannot be read.
        """
        path = self.part_path(name)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            record = document["record"]
            intact = document["name"] == name and document["sha256"] == _digest(record)
            run = document["run"]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunFolderError(
                f"catapult_ext.runs: cannot read {path}: {error.strerror}; move it away to have "
                "this part done again"
            ) from error
        except (ValueError, KeyError, TypeError, RecursionError):  # UnicodeDecodeError: ValueError
            intact, run, record = False, None, None
        if not intact or run != self.hash:
            fault = "is damaged" if not intact else f"belongs to run {run}"
            raise RunFolderError(
                f"catapult_ext.runs: {path} {fault}; delete it to have this part done again, "
                "or pass --fresh to start the whole run again"
            )
        return record

    def write_json(self, name: str, value: Any) -> None:
        """Write readable strict JSON atomically."""
        text = json.dumps(clean(value), indent=1, allow_nan=False)
        write_atomically(self.path / name, (text + "\n").encode())

    def read_json(self, name: str) -> Any:
        """A JSON file of this folder, or None where it is missing or unreadable."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None

    def write_csv(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write dictionaries of equal keys as CSV atomically; None becomes an empty cell."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows([clean(row) for row in rows])
        write_atomically(self.path / name, text.getvalue().encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write any other file of the run atomically."""
        write_atomically(self.path / name, data)

    def note_time(self, part: str, seconds: float, processor: float | None = None) -> None:
        """Add the time of a finished part to timing.json, which holds all times and only times.

        ``processor`` seconds, of all threads, are what a busy machine does not blur.
        """
        known = self.read_json("timing.json")
        document = known if isinstance(known, dict) else {}
        for name, value in (("seconds", seconds), ("processor_seconds", processor)):
            if value is not None:
                parts = document.setdefault(name, {})
                parts[part] = round(value, 3)
                document[f"total_{name}"] = round(sum(parts.values()), 3)
        self.write_json("timing.json", document)

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _take_lock(path: Path) -> Any:
    """An exclusive lock that the system drops with the process, however that ends."""
    file = open(path, "ab")  # noqa: SIM115  (closed by RunFolder.close)
    if not lock(file):
        file.close()
        raise RunFolderError(f"catapult_ext.runs: {path.parent} is in use by another process")
    return file


def lock(file: Any) -> bool:
    """Lock an open file for this process alone; False where another one holds it."""
    try:
        import fcntl
    except ImportError:  # no such locks outside POSIX
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _difference(old: Any, new: Any) -> str:
    """Names of the first few settings that differ, for the message."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return "unreadable"
    names = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    return "differing in " + ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
