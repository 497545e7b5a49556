"""scikit-learn's handwritten digits: 1797 real images, shipped with the library, no download."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from catapult_ext import _validate as v
from catapult_ext.data.dataset import Dataset
from catapult_ext.data.prepare import (
    Standardisation,
    Targets,
    check_classes,
    make_targets,
    random_state,
    standardise,
)


def _load() -> tuple[Tensor, Tensor]:
    try:  # imported here only: scikit-learn maps a second OpenMP runtime
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise RuntimeError(
            "catapult_ext.data.digits: needs scikit-learn, which the extra 'experiments' brings: "
            "pip install 'catapult_ext[experiments]'"
        ) from error
    bunch = datasets.load_digits()
    images = torch.from_numpy(np.asarray(bunch.images, dtype=np.float64)) / 16
    return images, torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))


def digits(
    size: int = 8,
    *,
    train: int = 512,
    test: int | None = None,
    classes: Sequence[int] | None = None,
    targets: Targets = "one-hot",
    seed: int = 0,
    standardisation: Standardisation = "global",
    flatten: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    """Handwritten digits, split, standardised by the training images, one-hot targets.

    Args:
        size: 8, the original images, or 28: enlarged to 20 x 20 in a 28 x 28 frame, like MNIST.
        train: number of training images, fewer than there are (1797 of all ten digits).
        test: number of test images; default: all the others.
        classes: keep only these digits, in this order of the targets; default: all ten.
        targets: ``"one-hot"``, or ``"signed"``: one output, -1 and +1 for the two classes kept.
        seed: seed of the split (a permutation drawn by NumPy's ``RandomState``, stable for good).
        standardisation: as in ``data.standardise``; ``"none"`` leaves values in [0, 1].
        flatten: (N, size^2) if true, else (N, 1, size, size).
        dtype: float32 or float64.

    Returns:
        Dataset with as many outputs as classes, or one for signed targets.

    Raises:
        ValueError: for another size, more images than there are, or classes that do not exist.
        RuntimeError: without scikit-learn; the message names the extra.

    Examples:
        >>> data = cx.data.digits(train=64)  # needs scikit-learn
        >>> data.x_train.shape
        torch.Size([64, 64])
    """
    where = "data.digits"
    v.require(size in (8, 28), where, "size must be 8 or 28", size)
    v.integers(where, train=train)
    v.integers(where, test=test, optional=True)
    rng = random_state(where, seed)
    chosen = check_classes(where, classes, 10, targets)
    images, labels = _load()
    if classes is not None:
        kept = torch.isin(labels, torch.tensor(chosen, device="cpu"))
        images, labels = images[kept], labels[kept]
    total = len(images)
    v.require(1 <= train < total, where, f"train must be in 1..{total - 1}", train)
    test = total - train if test is None else test
    v.require(0 <= test <= total - train, where, f"test must be in 0..{total - train}", test)
    order = torch.from_numpy(rng.permutation(total))
    images, labels = images[order[: train + test]][:, None], labels[order[: train + test]]
    if size == 28:
        images = F.pad(F.interpolate(images, size=20, mode="bilinear"), (4, 4, 4, 4))
    images = standardise(images, images[:train], standardisation)
    x = (images.flatten(1) if flatten else images).to(dtype)
    y = make_targets(labels, chosen, targets, dtype)
    parts = x[:train], y[:train], x[train:], y[train:]
    return Dataset(f"digits {size}x{size}", *parts, classes=targets == "one-hot")
