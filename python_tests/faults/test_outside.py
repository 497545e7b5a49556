"""Files and folders that something else has changed, and an environment that is not as usual."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext import toy
from catapult_ext._store import FORMAT, RunFolder, RunFolderError
from catapult_ext.linops.explicit.kernel_file import KernelFileError

CONFIG = {"steps": 10}
POSIX = pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")


def stored(path):
    with RunFolder(path, CONFIG) as run:
        run.save_part("0000", {"a": 1})
        run.write_bytes("report.html", b"old")
    return path


def test_a_part_replaced_by_a_folder_is_named(tmp_path):
    part = stored(tmp_path / "r") / "parts" / "0000.json"
    part.unlink()
    part.mkdir()
    with RunFolder(tmp_path / "r", CONFIG) as run:
        with pytest.raises(RunFolderError, match=r"cannot read .*0000\.json: Is a directory"):
            run.load_part("0000")
        with pytest.raises(RunFolderError, match=r"cannot write .*0000\.json: Is a directory"):
            run.save_part("0000", {"a": 1})


@pytest.mark.parametrize("name", ["report.html", "parts/0001.json"])
def test_fresh_removes_nothing_where_a_folder_is_in_the_way(tmp_path, name):
    folder = stored(tmp_path / "r")
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    with pytest.raises(RunFolderError, match="is a folder where a run has a file; nothing was rem"):
        RunFolder(folder, CONFIG, fresh=True)
    with RunFolder(folder, CONFIG) as run:  # the lock was given back
        assert run.load_part("0000") == {"a": 1}


@POSIX
def test_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"a symbolic link to .*nowhere, which does not"):
        RunFolder(tmp_path / "link", CONFIG)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_later_format_is_named_and_left_untouched(tmp_path, fresh):
    file = stored(tmp_path / "r") / "config.json"
    later = json.loads(file.read_text()) | {"format": FORMAT[:-1] + "2"}
    file.write_text(json.dumps(later))
    before = file.read_bytes()
    with pytest.raises(RunFolderError, match="was written by a later version of catapult_ext"):
        RunFolder(tmp_path / "r", CONFIG, fresh=fresh)
    assert file.read_bytes() == before
    assert (tmp_path / "r" / "report.html").read_bytes() == b"old"


def test_a_kernel_file_of_a_later_format_is_named(tmp_path):
    kernel, file = cx.NTK(nn.Linear(3, 1), torch.randn(4, 3)), tmp_path / "k.npy"
    kernel.dense(file=file)
    sidecar = tmp_path / "k.npy.json"
    sidecar.write_text(sidecar.read_text().replace("kernel 1", "kernel 2"))
    with pytest.raises(KernelFileError, match="were written by a later version of catapult_ext"):
        kernel.dense(file=file)


def test_a_process_may_change_its_folder(tmp_path, monkeypatch):
    """Relative paths are meant from where the call was made."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    tracker = cx.CurvatureTracker(nn.Linear(3, 1), "half_mse", (x, y), out="tracked")
    tracker.start()
    generator = torch.Generator().manual_seed(0)
    kernel = cx.NTK(nn.Linear(3, 1), torch.randn(4, 3, generator=generator))
    with RunFolder("run", CONFIG) as run:
        monkeypatch.chdir(tmp_path / "other")
        run.save_part("0000", {"a": 1})
        tracker.close()
    monkeypatch.chdir(tmp_path)

    def away(done, rows):
        monkeypatch.chdir(tmp_path / "other")

    toy.phase_diagram("width", resolution=(9, 4), steps=3, out="diagram", progress=away)
    monkeypatch.chdir(tmp_path)
    kernel.dense(file="k.npy", progress=away)
    monkeypatch.chdir(tmp_path)
    for name in ("run/parts/0000.json", "tracked/summary.json", "diagram/diagram.npz", "k.npy"):
        assert (tmp_path / name).exists(), name
    assert list((tmp_path / "other").iterdir()) == []


def test_a_mapped_array_is_replaced_where_its_file_is_damaged(tmp_path):
    calm = toy.phase_diagram("width", resolution=(9, 4), steps=3, out=tmp_path / "d")
    for content in (b"", b"\x93NUMPY", (tmp_path / "d" / "phase.npy").read_bytes()[:-1]):
        (tmp_path / "d" / "phase.npy").write_bytes(content)
        again = toy.phase_diagram("width", resolution=(9, 4), steps=3, out=tmp_path / "d")
        np.testing.assert_array_equal(again.phase, calm.phase)
    (tmp_path / "d" / "phase.npy").unlink()
    (tmp_path / "d" / "phase.npy").mkdir()
    with pytest.raises(RunFolderError, match=r"cannot write .*phase\.npy: Is a directory"):
        toy.phase_diagram("width", resolution=(9, 4), steps=3, out=tmp_path / "d")


def command(*words, **options):
    code = "from catapult_ext.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        **options,
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        done = command("info", stdout=full)
    assert done.returncode == 1
    assert done.stderr == (
        "error: catapult-ext: cannot write the output: No space left on device\n"
    )


def test_a_terminal_of_no_columns_shows_what_80_show():
    shown = {
        width: command("info", stdout=subprocess.PIPE, env={**os.environ, "COLUMNS": width}).stdout
        for width in ("0", "80")
    }
    assert shown["0"] == shown["80"]
    assert "version" in shown["0"]


def test_a_picture_in_the_way_of_a_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = command(
        "toy", "figure", "plane", "--out", str(tmp_path / "file" / "p.png"), stdout=subprocess.PIPE
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
