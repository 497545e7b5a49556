"""Data of the experiments: every set for every experiment, and never two of them in one run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from catapult_ext import data
from catapult_ext.experiments import reproduce as rp
from catapult_ext.runs import RunFolderError

TINY = {
    "fc-phases": {"c": (1.0,), "seeds": 1, "steps": 2, "width": 8, "train": 12, "test": 4},
    "kalra-phase-diagram": {"widths": (8, 16), "steps": 2, "highest": 1.0, "train": 12},
    "warmup": {"exponents": (1.0,), "steps": 2, "width": 8, "train": 12, "test": 4, "batch": 6},
}


def idx(array):
    head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


def write_mnist(folder, seed):
    rng = np.random.RandomState(seed)
    folder.mkdir()
    for name, count in (("train", 30), ("t10k", 20)):
        images = idx(rng.randint(0, 256, (count, 8, 8)))
        (folder / f"{name}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))
    return folder


@pytest.fixture
def archive(tmp_path):
    rng = np.random.RandomState(0)
    x, x_test = rng.standard_normal((40, 1, 8, 8)), rng.standard_normal((20, 1, 8, 8))
    y, y_test = np.arange(40) % 4, np.arange(20) % 4
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return tmp_path / "mine.npz"


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("held", ["teacher", "gaussian", "synthetic-images", "mine.npz"])
def test_vectors_of_every_data_set(name, held, archive):
    held = str(archive) if held == archive.name else held
    done = rp.reproduce(name, "smoke", data=held, **TINY[name])
    assert len(done.outcome.claims) >= 3


def test_images_of_an_archive(archive):
    small = {"train": 8, "test": 4, "steps": 2, "c": (1.0,), "crop": 0}
    done = rp.reproduce("cnn-fixed-steps", "smoke", data=str(archive), **small)
    assert done.outcome.tables["rates"][0]["runs"] == 1


def test_an_experiment_says_what_data_it_takes(tmp_path, archive):
    wanted = r"data must be one of digits, mnist, .* whose classes can be chosen, got 'teacher'"
    for name in ("quadratic-models", "progressive-sharpening", "meltzer-sparsity"):
        with pytest.raises(ValueError, match=wanted):
            rp.reproduce(name, "smoke", data="teacher")
    with pytest.raises(ValueError, match=r"wrn-10-1 needs samples of shape \(C, S, S\)"):
        rp.reproduce("wrn-phases", "smoke", data="gaussian")
    with pytest.raises(ValueError, match=r"reproduce: train must be in 1\.\.40 for .*, got 41"):
        rp.reproduce("fc-phases", "smoke", data=str(archive), train=41, test=1)
    np.savez(tmp_path / "real.npz", x=np.ones((4, 3)), y=np.ones(4))
    with pytest.raises(ValueError, match=r"must have integer class labels .*real\.npz"):
        rp.reproduce("meltzer-sparsity", "smoke", data=str(tmp_path / "real.npz"))


def equal(a, b):
    pairs = zip((*a.train, *a.test), (*b.train, *b.test), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def test_digits_and_files_are_those_of_the_loaders(tmp_path):
    shape = {"flatten": True, "standardisation": "pixel", "classes": (3, 8), "targets": "signed"}
    found = data.named("digits", train=20, test=9, **shape)
    assert equal(found, data.digits(train=20, test=9, **shape))
    assert found.source is None
    assert data.named("digits", train=20, flatten=False).x_train.dim() == 4
    folder = write_mnist(tmp_path / "a", 0)
    for more in ({}, {"flatten": True}, shape | {"standardisation": "image"}):
        found = data.named("mnist", data_dir=folder, train=4, **more)
        assert equal(found, data.load("mnist", data_dir=folder, train=4, **more))
        assert len(found.source) == 16


def test_subsets_and_classes_of_an_archive(archive):
    whole = data.npz(archive)
    found = data.named(str(archive))
    assert equal(found, whole)
    assert found.source == whole.fingerprint()
    found = data.named(str(archive), train=9, test=0, classes=(2, 1), targets="signed")
    assert found.x_train.shape == (9, 1, 8, 8)
    assert len(found.x_test) == 0
    assert not found.classes
    for x, y in zip(*found.train, strict=True):
        at = [i for i, row in enumerate(whole.x_train) if torch.equal(row, x)]
        assert whole.y_train[at[0]].argmax() == (2 if y < 0 else 1)


def mixed(out, folder, **more):
    small = TINY["fc-phases"] | {"seeds": 2}
    return rp.reproduce(
        "fc-phases", "smoke", data="mnist", out=out, data_dir=folder, **small, **more
    )


def test_a_run_goes_on_with_the_data_it_was_begun_with_only(tmp_path):
    a, b, out = write_mnist(tmp_path / "a", 0), write_mnist(tmp_path / "b", 1), tmp_path / "run"
    mixed(out, a)
    table = (out / "table_rates.csv").read_bytes()
    (out / "parts" / "fc_s1_c1.json").unlink()
    with pytest.raises(RunFolderError, match=r"data must be those of .* folder .*a, .* folder .*b"):
        mixed(out, b)
    assert not (out / "parts" / "fc_s1_c1.json").exists()
    (tmp_path / "moved").mkdir()
    for path in a.iterdir():
        path.rename(tmp_path / "moved" / path.name)
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    mixed(out, tmp_path / "moved")  # the same data, on another number of threads
    torch.set_num_threads(threads)
    assert (out / "table_rates.csv").read_bytes() == table
    mixed(out, b, fresh=True)
    assert (out / "table_rates.csv").read_bytes() != table


def test_an_archive_that_changed_is_noticed(tmp_path, archive):
    small = TINY["fc-phases"]
    rp.reproduce("fc-phases", "smoke", data=str(archive), out=tmp_path / "run", **small)
    held = dict(np.load(archive))
    np.savez(archive, **held | {"x_train": held["x_train"] + 1})
    with pytest.raises(RunFolderError, match=r"mine\.npz\(.*\) as digest .*, got digest"):
        rp.reproduce("fc-phases", "smoke", data=str(archive), out=tmp_path / "run", **small)


def test_report_and_command_name_the_data_folder(tmp_path, monkeypatch):
    folder = write_mnist(tmp_path / "my data", 0)
    monkeypatch.setenv("CATAPULT_DATA", str(folder))
    done = mixed(tmp_path / "run", None)
    told = json.loads((tmp_path / "run" / "claims.json").read_text())["command"]
    assert f"--scale smoke --data-dir '{folder}' --data mnist" in told
    assert done.data_folder == folder
    assert "<h2>Data</h2>" in (tmp_path / "run" / "report.html").read_text()
    held = json.loads((tmp_path / "run" / "data.json").read_text())
    assert [v["folder"] for v in held.values()] == [str(folder)]
    rp.reproduce("c-act-table", "smoke", out=tmp_path / "own", seeds=1, activations=("relu",))
    assert "--data-dir" not in (tmp_path / "own" / "claims.json").read_text()
    assert not (tmp_path / "own" / "data.json").exists()
