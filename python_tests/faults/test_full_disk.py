"""A full disk at any write: one error that names file and reason; the next call ends as usual."""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults.jobs import JOBS

from catapult_ext import _store
from catapult_ext.linops.explicit.kernel_file import KernelFileError
from catapult_ext.toy import row_table

# files that hold seconds, and the lock
UNEQUAL = ("timing.json", ".lock")


class FullDisk:
    """A disk that has no room for the first write to every file, and room for all later ones."""

    def __init__(self, monkeypatch):
        self.refused = []
        allocate = os.posix_fallocate

        def allocated(descriptor, start, size):
            self.write(Path(f"/proc/self/fd/{descriptor}").resolve().name)
            allocate(descriptor, start, size)

        monkeypatch.setattr(os, "posix_fallocate", allocated)
        for module in (_store, row_table):
            monkeypatch.setattr(module, "open", self.open, raising=False)

    def open(self, path, mode="r", **options):
        if mode != "wb":
            return open(path, mode, **options)
        return io.BufferedWriter(_Refusing(self, path))

    def write(self, name):
        if name not in self.refused:
            self.refused.append(name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Refusing(io.FileIO):
    def __init__(self, disk, path):
        super().__init__(path, "wb")
        self._disk, self._name = disk, Path(path).name.replace(f".{os.getpid()}.tmp", "")

    def write(self, data):
        self._disk.write(self._name)
        return super().write(data)


@pytest.fixture(scope="module", autouse=True)
def draw_equal_pictures_once():
    """Drawing takes longer than these small sweeps."""
    module = importlib.import_module("catapult_ext.experiments.sweep")
    drawn, draw = {}, module.sweep_figures

    def cached(summary, records):
        key = json.dumps([summary, records])
        if key not in drawn:
            drawn[key] = draw(summary, records)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sweep_figures", cached)
        yield


def contents(folder):
    found = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    html = {p for p in found if p.name == "report.html"}  # reproduce's holds elapsed seconds
    return {p: c for p, c in found.items() if p.name not in UNEQUAL and p not in html}, html


def refused_by(job, folder):
    """The message of the error that a job ends in, None where it succeeds."""
    try:
        job(folder)
    except (_store.RunFolderError, KernelFileError) as error:
        return str(error)
    return None


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
@pytest.mark.parametrize("name", JOBS)
def test_every_file_is_refused_once(name, tmp_path, monkeypatch):
    calm, full = tmp_path / "calm", tmp_path / "full"
    calm.mkdir()
    full.mkdir()
    JOBS[name](calm)
    disk = FullDisk(monkeypatch)
    for attempt in range(200):
        message = refused_by(JOBS[name], full)
        if message is None:
            break
        assert len(disk.refused) == attempt + 1  # the error came at once
        assert message.endswith("No space left on device")
        assert f"{full}/" in message
        assert disk.refused[-1].lstrip(".") in message
    assert len(disk.refused) == attempt >= (2 if name == "dense_file" else 5)
    assert contents(full / "run") == contents(calm / "run")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
@pytest.mark.parametrize("name", ["diagram", "bifurcation"])
def test_mapped_files_take_their_room_before_the_first_row(name, tmp_path, monkeypatch):
    """F12: a map of a file with holes ends the process by a bus error when the disk is full."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        patch.setattr(row_table.RowTable, "_fill", lambda *_: pytest.fail("a row was computed"))
        with pytest.raises(_store.RunFolderError, match=r"cannot write .*\.npy: No space left"):
            JOBS[name](tmp_path)
    assert not list((tmp_path / "run").glob("*.npy"))  # what was taken is given back
    JOBS[name](tmp_path)


def mounted(folder):
    """A tmpfs of 2 MiB at ``folder``, or a skip with the reason."""
    if sys.platform != "linux":
        pytest.skip("needs tmpfs")
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"mount: {error}")
    if done.returncode:
        pytest.skip(f"tmpfs cannot be mounted: {done.stderr.strip()}")


@pytest.mark.nightly
@pytest.mark.parametrize("name", JOBS)
def test_a_real_full_disk(name, tmp_path):
    """2 MiB, filled up to a few KiB of room, in steps; a bus error would show in the status."""
    calm, full = tmp_path / "calm", tmp_path / "full"
    calm.mkdir()
    full.mkdir()
    mounted(full)
    try:
        seen = [status for status, _ in real(name, calm, full)]
    finally:
        subprocess.run(["umount", str(full)], check=True)
    assert 1 in seen, "the disk was never full"


def real(name, calm, full):
    """Run with ever more room until it succeeds; (status, last line of the error) of each run."""
    run = [sys.executable, str(Path(__file__).with_name("jobs.py")), name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*run, str(calm)], check=True, env=environment)
    ballast, results = full / "ballast", []
    for room in (0, 4, 16, 64, 128, 256, 512, 1024, 2048):
        ballast.unlink(missing_ok=True)
        free = os.statvfs(full)
        size = free.f_bavail * free.f_frsize - room * 1024
        if size > 0:
            with open(ballast, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        done = subprocess.run(
            [*run, str(full)], capture_output=True, text=True, check=False, env=environment
        )
        last = done.stderr.strip().splitlines()[-1:]
        results.append((done.returncode, last))
        print(name, f"{room} KiB of room:", *results[-1])
        assert done.returncode in (0, 1), done.stderr
        if done.returncode == 0:
            break
        assert "No space left on device" in last[0]
        assert f"{full}/" in last[0]
    assert done.returncode == 0
    assert contents(full / "run") == contents(calm / "run")
    return results
