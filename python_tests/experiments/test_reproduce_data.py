"""Data of the experiments: every set for every experiment, and never two of them in one run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from catapult_ext import data
from catapult_ext.experiments import reproduce as rp
from catapult_ext.experiments.reproduce import datasets

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
    for name in ("quadratic-models", "edge-of-stability", "meltzer-sparsity"):
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
    found, digest = datasets.load("digits", train=20, test=9, **shape)
    assert equal(found, data.digits(train=20, test=9, **shape))
    assert digest is None
    assert datasets.load("digits", train=20)[0].x_train.dim() == 4
    folder = write_mnist(tmp_path / "a", 0)
    for more in ({}, {"flatten": True}, shape | {"standardisation": "image"}):
        found, digest = datasets.load("mnist", folder, train=4, **more)
        assert equal(found, data.load("mnist", data_dir=folder, train=4, **more))
        assert len(digest) == 16


def test_subsets_and_classes_of_an_archive(archive):
    whole = data.npz(archive)
    found, digest = datasets.load(str(archive))
    assert equal(found, whole)
    assert digest == whole.fingerprint()
    found, _ = datasets.load(str(archive), train=9, test=0, classes=(2, 1), targets="signed")
    assert found.x_train.shape == (9, 1, 8, 8)
    assert len(found.x_test) == 0
    assert not found.classes
    for x, y in zip(*found.train, strict=True):
        at = [i for i, row in enumerate(whole.x_train) if torch.equal(row, x)]
        assert whole.y_train[at[0]].argmax() == (2 if y < 0 else 1)
