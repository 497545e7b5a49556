"""Readers of data files, on small files made here."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

from catapult_ext import data
from catapult_ext.data import DataFileError


def idx(array):
    head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def images():
    rng = np.random.RandomState(0)
    return {
        "train-images-idx3-ubyte": rng.randint(0, 256, (30, 4, 4)),
        "train-labels-idx1-ubyte": np.arange(30) % 10,
        "t10k-images-idx3-ubyte": rng.randint(0, 256, (20, 4, 4)),
        "t10k-labels-idx1-ubyte": np.arange(20) % 10,
    }


@pytest.fixture
def mnist(tmp_path, images):
    for name, array in images.items():
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


def cifar_bytes(n, classes, seed=0):
    rng = np.random.RandomState(seed)
    pixels = rng.randint(0, 256, (n, 3072)).astype(np.uint8)
    label = (np.arange(n) % classes).astype(np.uint8)[:, None]
    heads = [label] if classes == 10 else [label // 5, label]
    return np.hstack([*heads, pixels]).tobytes(), pixels.reshape(n, 3, 32, 32), label[:, 0]


@pytest.fixture
def cifar10(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        (folder / f"{name}.bin").write_bytes(cifar_bytes(4 if i < 5 else 10, 10, i)[0])
    return tmp_path


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_values_and_labels(mnist, images, zipped):
    if zipped:
        for path in list(mnist.iterdir()):
            (mnist / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    d = data.load("mnist", data_dir=mnist, standardisation="none")
    expected = torch.from_numpy(images["train-images-idx3-ubyte"])[:, None] / 255
    torch.testing.assert_close(d.x_train, expected.float())
    assert d.y_train.argmax(dim=1).tolist() == images["train-labels-idx1-ubyte"].tolist()
    assert d.x_test.shape == (20, 1, 4, 4)
    assert d.outputs == 10


def test_folder_comes_from_the_variable_and_usual_subfolders(mnist, monkeypatch):
    sub = mnist / "FashionMNIST" / "raw"
    sub.mkdir(parents=True)
    for path in [p for p in mnist.iterdir() if p.is_file()]:
        path.rename(sub / path.name)
    monkeypatch.setenv("CATAPULT_DATA", str(mnist))
    assert data.load("fashion-mnist", flatten=True).x_train.shape == (30, 16)
    with pytest.raises(DataFileError, match=r"train-images-idx3-ubyte: not found, plain or .gz"):
        data.load("mnist")
    monkeypatch.delenv("CATAPULT_DATA")
    monkeypatch.setattr("catapult_ext.data.standard.packaged", lambda name: None)
    with pytest.raises(DataFileError, match="pass data_dir or set CATAPULT_DATA"):
        data.load("mnist")
    with pytest.raises(DataFileError, match="nowhere: is not a folder"):
        data.load("mnist", data_dir=mnist / "nowhere")
    with pytest.raises(TypeError, match=r"data\.load: data_dir must be a path, got int"):
        data.load("mnist", data_dir=3)
    with pytest.raises(ValueError, match=r"data\.mnist: seed must be from 0 to 2\^32 - 1, got -1"):
        data.load("mnist", data_dir=mnist / "FashionMNIST" / "raw", seed=-1)


def test_subsets_classes_and_signed_targets(mnist):
    d = data.load("mnist", data_dir=mnist, train=4, test=2, classes=(3, 7), targets="signed")
    assert d.x_train.shape == (4, 1, 4, 4)
    assert set(d.y_train.flatten().tolist()) <= {-1.0, 1.0}
    assert d.classes is False
    both = data.load("mnist", data_dir=mnist, classes=(7, 3))
    assert both.y_train.shape == (6, 2)
    assert both.y_train.argmax(dim=1).tolist() == [1, 0, 1, 0, 1, 0]  # 3 comes before 7 in the file
    again = data.load("mnist", data_dir=mnist, train=4, test=2, classes=(3, 7), targets="signed")
    assert again.fingerprint() == d.fingerprint()
    other = data.load("mnist", data_dir=mnist, train=5, seed=1)
    assert other.fingerprint() != data.load("mnist", data_dir=mnist, train=5, seed=2).fingerprint()
    for wrong in ((1,), (1, 1), (0, 10)):
        with pytest.raises(ValueError, match=r"classes must be two or more distinct of 0\.\.9"):
            data.load("mnist", data_dir=mnist, classes=wrong)
    with pytest.raises(ValueError, match=r"train must be in 1\.\.30, got 31"):
        data.load("mnist", data_dir=mnist, train=31)
    with pytest.raises(ValueError, match="signed targets need two classes"):
        data.load("mnist", data_dir=mnist, targets="signed")


@pytest.mark.parametrize("how", ["global", "channel", "pixel", "image"])
def test_standardisation_gives_mean_0_and_variance_1_where_it_says(how):
    x = torch.randn(40, 3, 5, 5, dtype=torch.float64) * 3 + torch.arange(3.0)[:, None, None]
    z = data.standardise(x, x, how)
    dims = {"global": (0, 1, 2, 3), "channel": (0, 2, 3), "pixel": (0,), "image": (1, 2, 3)}[how]
    assert z.mean(dim=dims).abs().max() < 1e-12
    assert (z.var(dim=dims, correction=0) - 1).abs().max() < 1e-12


def test_cifar10_layout_is_label_then_red_green_blue_planes(cifar10):
    d = data.load("cifar-10", data_dir=cifar10, standardisation="none", complete=False)
    _, pixels, labels = cifar_bytes(4, 10, 0)
    torch.testing.assert_close(d.x_train[:4], torch.from_numpy(pixels).float() / 255)
    assert d.y_train[:4].argmax(dim=1).tolist() == labels.tolist()
    assert (len(d.x_train), len(d.x_test)) == (20, 10)


def test_cifar100_takes_the_fine_label(tmp_path):
    for name, n in (("train", 100), ("test", 10)):
        (tmp_path / f"{name}.bin.gz").write_bytes(gzip.compress(cifar_bytes(n, 100)[0]))
    d = data.load("cifar-100", data_dir=tmp_path, complete=False)
    assert d.y_train.argmax(dim=1).tolist() == list(range(100))


def spoil(path, how):
    content = path.read_bytes()
    zipped = path.with_name(f"{path.name}.gz")
    if how == "short":
        path.write_bytes(content[:-5])
    elif how == "long":
        path.write_bytes(content + b"\0")
    elif how == "header":
        path.write_bytes(content[:7])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "magic":
        path.write_bytes(b"\0\0\x0d" + content[3:])
    elif how == "huge":
        path.write_bytes(content[:4] + b"\xff" * (len(content) - 4))
    elif how == "gz cut":
        zipped.write_bytes(gzip.compress(content)[:-12])
        path.unlink()
    elif how == "gz bit":
        packed = bytearray(gzip.compress(content))
        packed[len(packed) // 2] ^= 0xFF
        zipped.write_bytes(bytes(packed))
        path.unlink()
    elif how == "not gz":
        zipped.write_bytes(content)
        path.unlink()
    elif how == "label":
        path.write_bytes(content[:-1] + b"\x0b")


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ("short", "is truncated: 475 bytes of data, its header says 480"),
        ("long", "is longer than the 480 bytes of data its header says"),
        ("header", "is truncated: 7 bytes, IDX header incomplete"),
        ("empty", "is truncated: 0 bytes, no IDX header"),
        ("magic", "has IDX header 00000d03, expected 00000803"),
        ("huge", r"says \d+ bytes of data, more than 1 GiB"),
        ("gz cut", r"is truncated \(the gzip stream ends early\)"),
        ("gz bit", "cannot be read"),
        ("not gz", "cannot be read: Not a gzipped file"),
    ],
)
def test_bad_idx_files_name_file_and_fault(mnist, how, fault):
    spoil(mnist / "train-images-idx3-ubyte", how)
    with pytest.raises(DataFileError, match=rf"train-images-idx3-ubyte(\.gz)?: {fault}"):
        data.load("mnist", data_dir=mnist)


def test_labels_must_fit(mnist, images):
    spoil(mnist / "train-labels-idx1-ubyte", "label")
    with pytest.raises(DataFileError, match="idx1-ubyte: is corrupted: label 11, expected 0 to 9"):
        data.load("mnist", data_dir=mnist)
    labels = images["train-labels-idx1-ubyte"][:29]
    (mnist / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(DataFileError, match="has 29 labels for the 30 images of"):
        data.load("mnist", data_dir=mnist)


def test_bad_cifar_files_name_file_and_fault(cifar10):
    with pytest.raises(DataFileError, match=r"data_batch_1.bin: has 4 images, expected 10000"):
        data.load("cifar-10", data_dir=cifar10)
    path = cifar10 / "cifar-10-batches-bin" / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataFileError, match=r"data_batch_3.bin: is truncated or no binary CIFAR"):
        data.load("cifar-10", data_dir=cifar10, complete=False)
    path.write_bytes(b"\xc8" + whole[1:])
    with pytest.raises(DataFileError, match=r"data_batch_3.bin: is corrupted: label 200"):
        data.load("cifar-10", data_dir=cifar10, complete=False)
    path.unlink()
    with pytest.raises(DataFileError, match=r"data_batch_3.bin: not found"):
        data.load("cifar-10", data_dir=cifar10, complete=False)


def test_npz_with_labels_and_with_values(tmp_path):
    path = tmp_path / "set.npz"
    x = np.random.RandomState(0).standard_normal((6, 3))
    np.savez(path, x=x, y=np.array([0, 1, 2, 0, 1, 2]))
    d = data.npz(path, dtype=torch.float64)
    assert torch.equal(d.x_train, torch.from_numpy(x))
    assert torch.equal(d.y_train, torch.eye(3, dtype=torch.float64).repeat(2, 1))
    assert d.classes
    np.savez(path, x_train=x, y_train=x[:, 0], x_test=x[:2], y_test=x[:2, 0])
    d = data.named(str(path))
    assert (d.y_train.shape, d.y_test.shape, d.classes) == ((6, 1), (2, 1), False)


def test_bad_npz_files_name_file_and_fault(tmp_path):
    path = tmp_path / "set.npz"
    x, y = np.zeros((4, 3)), np.zeros(4)
    with pytest.raises(DataFileError, match=r"set.npz: not found"):
        data.npz(path)
    path.write_bytes(pickle.dumps(x))
    with pytest.raises(DataFileError, match=r"set.npz: is not an .npz archive, or is truncated"):
        data.npz(path)
    np.savez(path, x=x)
    with pytest.raises(DataFileError, match=r"lacks the array y_train \(it holds x\)"):
        data.npz(path)
    np.savez(path, x=np.array([{}, 1], dtype=object), y=y[:2])
    with pytest.raises(DataFileError, match=r"array 'x' holds Python objects"):
        data.npz(path)
    np.savez(path, x=x, y=y[:3])
    with pytest.raises(DataFileError, match=r"y_train must have shape \(4, O\), got \(3, 1\)"):
        data.npz(path)
    np.savez(path, x=np.array(["a", "b"]), y=y[:2])
    with pytest.raises(DataFileError, match=r"array 'x_train' has dtype <U1, expected numbers"):
        data.npz(path)
    np.savez(path, x=x, y=np.array([0, -1, 0, 0]))
    with pytest.raises(DataFileError, match="has negative class labels"):
        data.npz(path)
    np.savez(path, x=np.arange(3000.0).reshape(1000, 3), y=np.zeros(1000))
    content = bytearray(path.read_bytes())
    content[5000] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataFileError, match=r"set.npz: is corrupted: Bad CRC"):
        data.npz(path)


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("x", "y", "fault"),
    [
        (b"no array", saved(np.zeros(4)), "member 'x_train' is not a NumPy array"),
        (saved(np.zeros((4, 2)))[:90], saved(np.zeros(4)), "array 'x_train' is corrupted"),
        (saved(np.float64(1.0)), saved(np.zeros(1)), "array 'x_train' is a single number"),
        (saved(np.zeros((4, 2), "m8[s]")), saved(np.zeros(4)), "has dtype timedelta64"),
        (saved(np.zeros((4, 2))), saved(np.arange(4) * 10**9), "has class label 3000000000: too"),
        (saved(np.full((4, 2), 1e300)), saved(np.zeros(4)), "x_train must be finite"),
        (saved(np.zeros((0, 2))), saved(np.zeros(0, int)), "training set must not be empty"),
        (saved(np.zeros((4, 2))), saved(np.full(4, 65536)), "has class label 65536: too many"),
        (saved(np.zeros((4, 2))), saved(np.full(4, 2**63, "u8")), "too many one-hot targets"),
    ],
)
def test_what_the_fuzzer_found_in_npz(tmp_path, x, y, fault):
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", x)
        archive.writestr("y_train.npy", y)
    with pytest.raises(DataFileError, match=f"set.npz: .*({fault})"):
        data.npz(path)


@pytest.mark.parametrize("kind", [">f4", "f2", "g", "u2", "u8", ">i4"])
def test_npz_takes_every_number(tmp_path, kind):
    np.savez(tmp_path / "set.npz", x=np.arange(6).reshape(3, 2).astype(kind), y=np.zeros(3))
    expected = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(data.npz(tmp_path / "set.npz").x_train, expected)


def test_unknown_names():
    with pytest.raises(ValueError, match="name must be one of mnist, fashion-mnist"):
        data.load("svhn")
    with pytest.raises(ValueError, match="name must be one of digits, teacher"):
        data.named("svhn")
