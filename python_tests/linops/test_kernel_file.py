"""Kernels in files: the same numbers and bytes however often the work was killed; else refused."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from linops import zoo
from torch import nn

import catapult_ext as cx
from catapult_ext.linops import KernelFileError
from catapult_ext.linops.engines.base import Allowance
from catapult_ext.linops.explicit.tiles import Tiles
from catapult_ext.testing.tolerances import assert_close

WORKER = Path(__file__).with_name("write_kernel.py")
FORMS = [("flat", "all"), ("blocks", "all"), ("flat", "trace")]


def small_tiles(monkeypatch, edge):
    cut = Tiles._cut
    monkeypatch.setattr(Tiles, "_cut", lambda self: {**cut(self), "edge": edge})


close = partial(assert_close, tolerance=1e-11)


def build(name="kinked"):
    return zoo.build(name)


CASES = [(n, c, *f) for n in ("kinked", "conv") for c in (False, True) for f in FORMS]
CASES += [("gpt", True, "blocks", "all"), ("cell", False, *FORMS[2]), ("cell", True, *FORMS[0])]


@pytest.mark.parametrize(("name", "cross", "layout", "outputs"), CASES)
def test_same_numbers(name, cross, layout, outputs, tmp_path, monkeypatch):
    """Chains, uses, and what has neither and goes by products; with ragged last tiles."""
    small_tiles(monkeypatch, 3)
    model, x = zoo.build(name)
    part = {k: t[:2] for k, t in x.items()} if isinstance(x, dict) else x[:2]
    kernel = cx.NTK(model, x, part) if cross else cx.NTK(model, x)
    exact = kernel.dense(layout, outputs)
    got = kernel.dense(layout, outputs, file=tmp_path / "k.npy")
    close(got, exact)
    assert np.array_equal(np.load(tmp_path / "k.npy", mmap_mode="r"), got.numpy())
    if not cross and layout == "flat":
        assert torch.equal(got, got.T)
    if not cross and layout == "blocks":
        assert torch.equal(got, got.permute(1, 0, 3, 2))
    got.zero_()  # a private mapping: the file keeps its numbers
    close(kernel.dense(layout, outputs, file=tmp_path / "k.npy"), exact)


@pytest.mark.parametrize("name", ["kinked", "conv", "cell"])
def test_tiles_in_memory(name, monkeypatch):
    small_tiles(monkeypatch, 2)
    model, x = zoo.build(name)
    whole, chunks = cx.NTK(model, x), cx.NTK(model, x, samples_at_once=3)
    for layout, outputs in FORMS:
        seen = []
        got = chunks.dense(layout, outputs, progress=lambda *p: seen.append(p))  # noqa: B023
        close(got, whole.dense(layout, outputs))
        assert len(seen) > 1
        assert seen[-1][0] == seen[-1][1]


def test_interrupted_and_finished(tmp_path, monkeypatch):
    """An interruption costs the tile in progress; a finished file costs no tile at all."""
    small_tiles(monkeypatch, 2)
    kernel = cx.NTK(*build())
    file = tmp_path / "k.npy"
    calls = []

    def stop(done, tiles):
        calls.append((done, tiles))
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kernel.dense(file=file, progress=stop)
    assert [done for done, _ in calls] == [1, 2, 3]
    monkeypatch.setattr(Tiles, "_cut", None)  # the file knows its tiles
    kernel.dense(file=file, progress=stop)
    tiles = calls[0][1]
    assert [done for done, _ in calls[3:]] == list(range(3, tiles + 1))
    monkeypatch.setattr(Tiles, "_blocks", None)
    file.chmod(0o444)  # a finished one is only read
    close(kernel.dense(file=str(file)), kernel.dense())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k.npy", "k.npy.json"]


def same_bytes(folder, before):
    return {p.name: p.read_bytes() for p in folder.iterdir()} == before


def others():
    """Operators and layouts that are not the kernel of the file."""
    model, x = build()
    changed = [t.clone() for t in (x, x)]
    changed[0][1, 1] += 1e-9
    bent = nn.Sequential(*model)
    bent[1] = nn.Softplus()
    moved, _ = build()
    with torch.no_grad():
        next(moved.parameters()).view(-1)[0] += 1e-12
    yield "data", cx.NTK(model, changed[0]), {}
    yield "data", cx.NTK(model, x, x), {}
    yield "weights", cx.NTK(moved, x), {}
    yield "model", cx.NTK(bent, x), {}
    yield "parameters", cx.NTK(model, x, params="0.*"), {}
    yield "options", cx.NTK(model, x, dropout="fixed"), {}
    yield "layout", cx.NTK(model, x), {"layout": "blocks"}
    yield "layout", cx.NTK(model, x), {"outputs": "trace"}
    yield "layout", cx.NTK(nn.Sequential(*model).float(), x.float()), {}


@pytest.mark.parametrize("killed", [False, True])
def test_another_kernel_is_refused(killed, tmp_path, monkeypatch):
    small_tiles(monkeypatch, 2)
    kernel = cx.NTK(*build())
    file = tmp_path / "k.npy"

    def stop(done, tiles):
        if killed and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) if killed else pytest.MonkeyPatch.context():
        kernel.dense(file=file, progress=stop)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for name, other, form in others():
        with pytest.raises(KernelFileError, match=f"holds another kernel.*{name}"):
            other.dense(**form, file=file)
        assert same_bytes(tmp_path, before)
    close(kernel.dense(file=file), kernel.dense())


def test_a_forward_pass_that_no_weight_tells_apart(tmp_path):
    model, x = build()
    kernel = cx.NTK(model, x, forward=lambda m, a: m(a))
    kernel.dense(file=tmp_path / "k.npy")
    other = cx.NTK(model, x, forward=lambda m, a: torch.sin(m(a)))
    with pytest.raises(KernelFileError, match="differing in the model's outputs"):
        other.dense(file=tmp_path / "k.npy")


def cut_short(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path, at=100):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "truncated file": (lambda f, s: cut_short(f), "truncated or damaged"),
    "longer file": (lambda f, s: os.truncate(f, f.stat().st_size + 1), "truncated or damaged"),
    "another header": (lambda f, s: flip(f, 30), "truncated or damaged"),
    "truncated sidecar": (lambda f, s: cut_short(s), "damaged k.npy.json"),
    "empty sidecar": (lambda f, s: s.write_text(""), "damaged k.npy.json"),
    "changed sidecar": (
        lambda f, s: s.write_text(s.read_text().replace('"done":', '"done":1')),
        "damaged k.npy.json",
    ),
    "sidecar of a list": (lambda f, s: s.write_text("[]"), "damaged k.npy.json"),
    "no file": (lambda f, s: f.unlink(), "is missing"),
    "no sidecar": (lambda f, s: s.unlink(), "has no k.npy.json"),
    "a folder": (lambda f, s: (f.unlink(), s.unlink(), f.mkdir()), "has no k.npy.json"),
}


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damage_is_refused(damage, killed, tmp_path, monkeypatch):
    small_tiles(monkeypatch, 2)
    kernel = cx.NTK(*build())
    file, sidecar = tmp_path / "k.npy", tmp_path / "k.npy.json"

    def stop(done, tiles):
        if killed and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) if killed else pytest.MonkeyPatch.context():
        kernel.dense(file=file, progress=stop)
    change, message = DAMAGE[damage]
    change(file, sidecar)
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(KernelFileError, match=rf"catapult_ext\.NTK\.dense: .*{message}"):
        kernel.dense(file=file)
    assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_a_file_of_somebody_else(tmp_path):
    kernel = cx.NTK(*build())
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(KernelFileError, match="is left untouched"):
        kernel.dense(file=tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(KernelFileError, match="cannot be written"):
        kernel.dense(file=tmp_path / "nowhere" / "k.npy")
    with pytest.raises(TypeError, match="file must be a path"):
        kernel.dense(file=3)


def test_a_full_disk_is_an_error_before_the_work(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(KernelFileError, match="cannot be written: No space left"):
        cx.NTK(*build()).dense(file=tmp_path / "k.npy")
    monkeypatch.undo()
    cx.NTK(*build()).dense(file=tmp_path / "k.npy")  # and once there is room, it is written


def test_one_writer(tmp_path, monkeypatch):
    small_tiles(monkeypatch, 2)
    kernel, file = cx.NTK(*build()), tmp_path / "k.npy"

    def again(done, tiles):
        if done == 1:
            with pytest.raises(KernelFileError, match="being written by another process"):
                kernel.dense(file=file)

    kernel.dense(file=file, progress=again)


def test_a_kernel_larger_than_the_budget_names_the_file(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 10))
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    kernel = cx.NTK(model, x, memory_budget="12 MiB")
    message = r"catapult_ext\.NTK\.dense: the kernel, 15\.3 MiB, must fit .* file='kernel\.npy'"
    with pytest.raises(ValueError, match=message):
        kernel.dense()
    assert kernel.dense(outputs="trace").shape == (200, 200)
    whole = cx.NTK(model, x).dense()
    close(kernel.dense(file=tmp_path / "k.npy"), whole, tolerance=1e-5)


def check_killed(engine, kills, folder):
    file = folder / "k.npy"
    command = [sys.executable, str(WORKER), str(file), engine, str(kills), engine]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= kills
    assert file.read_bytes() == (folder / "k.npy.whole").read_bytes()
    assert json.loads((folder / "k.npy.json").read_text())["record"]["complete"]
    assert len(list(folder.iterdir())) == 4  # nothing half-written is left behind


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("engine", ["dense-chain", "autograd"])
def test_killed_at_drawn_lines(engine, tmp_path):
    """SIGKILL before, in and between tiles: the same bytes as of an undisturbed one."""
    check_killed(engine, 25, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("engine", ["dense-chain", "autograd"])
def test_killed_very_often(engine, tmp_path):
    check_killed(engine, 1000, tmp_path)


def check_disk(samples, most, folder):
    command = [sys.executable, str(Path(__file__).with_name("measure_kernel_file.py"))]
    command += [str(folder), str(samples)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout.splitlines()[-1])
    killed, resumed = got["runs"]
    assert killed["code"] == -9
    assert resumed["code"] == 0
    assert killed["tiles"][0] == -(-killed["tiles"][1] // 2)
    assert max(run["anonymous"] for run in got["runs"]) <= most, got
    assert got["error"] < 1e-5
    assert got["symmetric"]


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_kernel_of_20000_within_a_gibibyte(tmp_path):
    check_disk(2000, 1 << 30, tmp_path)


@pytest.mark.parametrize("cross", [False, True])
def test_traces_of_chains_some_outputs_at_a_time(cross):
    model, x = build()
    kernel = cx.NTK(model, x, x[:2]) if cross else cx.NTK(model, x)
    exact = kernel.dense(outputs="trace")
    small = kernel.linearization.allowed(Allowance(workspace=1))
    kernel = cx.NTK._of(small, kernel.linearization2 if cross else None)
    close(kernel.dense(outputs="trace"), exact)


def test_diagonals_of_chunks_by_backward_passes_per_output(monkeypatch):
    """Not one per row: the workspace of a product says nothing about what a diagonal may take."""
    model, x = zoo.build("conv")
    exact = cx.NTK(model, x).dense().diagonal()
    kernel = cx.NTK(model, x.repeat(6, 1, 1, 1), samples_at_once=2)
    kernel = cx.NTK.of(kernel.linearization.allowed(Allowance(workspace=0)))
    calls, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(0) or grad(*a, **k))
    close(kernel.diagonal(), exact.repeat(6))
    assert len(calls) <= 5 * (2 + kernel.n_outputs) < kernel.shape[0]


def test_a_disk_without_room_is_refused_before_the_first_tile(tmp_path, monkeypatch):
    kernel, file = cx.NTK(*build()), tmp_path / "k.npy"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    monkeypatch.setattr(Tiles, "_blocks", None)
    with pytest.raises(KernelFileError, match=r"needs \d+ bytes, and the disk has 100"):
        kernel.dense(file=file)
    monkeypatch.undo()
    close(kernel.dense(file=file), kernel.dense())
