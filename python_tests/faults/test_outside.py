"""Files and folders that something else has changed, and an environment that is not as usual."""

from __future__ import annotations

import copy
import gzip
import json
import os
import pickle
import struct
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


def idx(path, shape, body):
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape))
        for piece in body:
            file.write(piece)


def no_room(*_, **__):
    raise MemoryError


def test_a_gzip_file_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    """F17: 3.8 MB of gzip that hold 3.9 GB; here the header alone says so."""
    images = tmp_path / "train-images-idx3-ubyte.gz"
    idx(images, (5_000_000, 28, 28), [bytes(784_000)])
    idx(tmp_path / "train-labels-idx1-ubyte.gz", (5_000_000,), [bytes(5_000_000)])
    with pytest.raises(cx.data.DataFileError, match="says 3920000000 bytes of data, more than 1 G"):
        cx.data.load("mnist", data_dir=tmp_path)
    idx(images, (5, 28, 28), [bytes(5 * 784)])
    read = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", no_room)
    with pytest.raises(cx.data.DataFileError, match=r"idx3-ubyte\.gz: cannot be read: not enough"):
        cx.data.load("mnist", data_dir=tmp_path)
    monkeypatch.setattr(gzip.GzipFile, "read", read)


def test_a_gzip_file_without_a_header_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("catapult_ext.data.files._MOST", 1 << 20)
    (tmp_path / "cifar-10").mkdir()
    with gzip.open(tmp_path / "cifar-10" / "data_batch_1.bin.gz", "wb") as file:
        file.write(bytes(3073 * 400))
    with pytest.raises(cx.data.DataFileError, match=r"is larger than .* inflated"):
        cx.data.load("cifar-10", data_dir=tmp_path, complete=False)


def test_an_archive_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    file = tmp_path / "zeros.npz"
    np.savez_compressed(file, x_train=np.zeros((1000, 500)), y_train=np.zeros(1000))
    assert file.stat().st_size < 50_000
    monkeypatch.setattr("catapult_ext.data.files.free_bytes", lambda: 10_000_000)
    loaded = []
    monkeypatch.setattr(np, "load", lambda *a, **k: loaded.append(a))
    with pytest.raises(cx.data.DataFileError, match="too many for 10000000 bytes of free memory"):
        cx.data.npz(file)
    assert loaded == []
    monkeypatch.undo()
    assert len(cx.data.npz(file).x_train) == 1000
    monkeypatch.setattr("catapult_ext.data.files.np.load", no_room)
    with pytest.raises(cx.data.DataFileError, match="not enough memory"):
        cx.data.npz(file)


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")
def test_the_limit_of_a_process_counts_as_free_memory():
    code = (
        "import resource; from catapult_ext._free_memory import free_bytes; before = free_bytes();"
        "held = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 28), -1));"
        "assert (1 << 27) < free_bytes() <= (1 << 28) < before, free_bytes()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Operator:
    """A matrix known by its products."""

    def __init__(self, matrix):
        self.matrix = matrix
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, vectors):
        return self.matrix @ vectors


@pytest.mark.parametrize("size", [1e300, 1e-320, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("explicit", [False, True])
def test_start_vectors_of_any_size(size, dtype, explicit):
    matrix = torch.diag(torch.linspace(0, 3, 60, dtype=dtype))
    v0 = torch.zeros(60, dtype=torch.float64)
    v0[-1] = size
    found = cx.eigsh(matrix if explicit else Operator(matrix), v0=v0)
    assert abs(found.eigenvalues[0] - 3) <= found.errors[0] + 1e-6


@pytest.mark.parametrize("size", [1e-320, 1e-306, 1e-290])
@pytest.mark.parametrize("k", [1, 3])
def test_matrices_of_denormals_are_scaled_first(size, k):
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0, *[0.5] * 97], dtype=torch.float64) * size)
    found = cx.eigsh(matrix, k)
    true = matrix.diagonal()[:k]
    assert bool(((found.eigenvalues - true).abs() <= found.errors + 1e-323).all())
    if size < 1e-300:
        with pytest.raises(ValueError, match="products with A must be well above"):
            cx.eigsh(Operator(matrix), k)


@pytest.mark.parametrize("size", [1e-28, 3e-30])
@pytest.mark.parametrize("seed", range(6))
def test_small_operators_whose_start_holds_little_of_them(size, seed):
    n = 200
    start = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    top = torch.randn(n, generator=torch.Generator().manual_seed(100), dtype=torch.float64)
    top -= (top @ start.double()) / (start.double() @ start.double()) * start.double()
    top = (top / top.norm() + 2e-4 * start.double() / start.double().norm()).float()
    top /= top.norm()
    given = []

    class Rank(Operator):
        def __matmul__(self, vectors):
            given.append(float(vectors.abs().max()))
            return super().__matmul__(vectors)

    matrix = size * torch.outer(top, top)
    found = cx.eigsh(Rank(matrix), seed=seed)
    true = torch.linalg.eigvalsh(matrix.double() / size)[-1] * size
    assert found.converged
    assert abs(found.eigenvalues[0].double() - true) <= found.errors[0] <= 1e-3 * size
    assert max(given) > 1e3  # the vectors were enlarged, else the first product is below 1e-31


@pytest.mark.parametrize("kind", [cx.NTK, cx.GGN, cx.Hessian])
def test_an_operator_cannot_be_pickled_and_says_so(kind):
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    rest = (x,) if kind is cx.NTK else ("half_mse", (x, y))
    operator = kind(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), *rest)
    for sent in (operator, 2 * operator):
        with pytest.raises(TypeError, match=rf"catapult_ext\.{kind.__name__}: cannot be pickled"):
            pickle.dumps(sent)
    v = torch.randn(operator.shape[1])
    assert torch.equal(copy.copy(operator) @ v, operator @ v)
    if kind is not cx.Hessian:
        assert torch.equal(copy.deepcopy(operator) @ v, operator @ v)


def test_tensors_written_in_place_are_no_lazy_negations():
    basis = torch._neg_view(torch.eye(8)[:4].reshape(1, 4, 8).clone())
    alpha, beta = torch.zeros(1, 3), torch.zeros(1, 3)
    with pytest.raises(ValueError, match=r"lanczos_step: basis is written .*basis\.resolve_neg"):
        cx.ops.lanczos_step(basis, alpha, beta, torch.randn(1, 8), 0)
    cx.ops.lanczos_step(basis.resolve_neg(), alpha, beta, torch.randn(1, 8), 0)
    with pytest.raises(ValueError, match=r"lanczos_step: alpha is written"):
        cx.ops.lanczos_step(basis.resolve_neg(), torch._neg_view(alpha), beta, torch.randn(1, 8), 0)
    u, v = torch.randn(1, 4, 3), torch.randn(1, 4)
    x, y, eta = torch.randn(2, 3), torch.randn(2), torch.tensor([0.1])
    with pytest.raises(ValueError, match=r"toy_gd: U is written"):
        cx.ops.toy_gd(torch._neg_view(u), v, x, y, eta, 2)


def test_modules_may_be_imported_again():
    code = (
        "import sys, torch, catapult_ext as cx; first = cx.eigsh(torch.eye(3)).eigenvalues\n"
        "for n in [n for n in sys.modules if n.startswith('catapult_ext')]: del sys.modules[n]\n"
        "del cx; import gc; gc.collect(); import catapult_ext as cx\n"
        "assert torch.equal(cx.eigsh(torch.eye(3)).eigenvalues, first)\n"
        "basis = torch.eye(8)[:4].reshape(1, 4, 8).contiguous()\n"
        "args = torch.zeros(1, 3), torch.zeros(1, 3), torch.randn(1, 8)\n"
        "cx.ops.lanczos_step(basis, *args, 0); assert args[0][0, 0] == args[2][0, 0]\n"
        "from catapult_ext.ops import _registry\n"
        "try: _registry.register('gram(Tensor a) -> Tensor', None, None)\n"
        "except RuntimeError as error: assert 'another version' in str(error)\n"
        "else: raise AssertionError('another schema was taken')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
