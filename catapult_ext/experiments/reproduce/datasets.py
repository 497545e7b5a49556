"""Data of the experiments: any set by name, with the samples, targets and shape one asks for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catapult_ext._validate import fail, require
from catapult_ext.data import Dataset, named, standardise
from catapult_ext.data.prepare import check_classes, make_targets
from catapult_ext.data.standard import FROM_FILES

WHERE = "reproduce"


def load(
    name: str,
    data_dir: Path | str | None = None,
    *,
    train: int | None = None,
    test: int | None = None,
    classes: Sequence[int] | None = None,
    targets: str = "one-hot",
    standardisation: str | None = None,
    flatten: bool = False,
    **own: Any,
) -> tuple[Dataset, str | None]:
    """``data.named`` with the same arguments for every data set.

    Args:
        name: of the data set, or the path of an .npz file.
        data_dir: folder of data files.
        train: size of a random training subset; None for all, or the built-in set's default.
        test: the same of the test set.
        classes: keep only these labels.
        targets: ``"one-hot"``, or ``"signed"`` for two classes.
        standardisation: as in ``data.standardise``; None for ``"global"`` of digits and data
            files, and for the others as they are.
        flatten: vectors also of images.
        **own: of a built-in set alone.

    Returns:
        The data set, and the digest of what its files hold; None for a built-in set.

    Raises:
        ValueError: an unknown name, more samples than there are, or classes of a set without.
        DataFileError: a missing or damaged file.
    """
    counts = {"train": train, "test": test}
    labels: dict[str, Any] = {"classes": classes, "targets": targets}
    digest = None
    if name == "digits":
        how = standardisation or "global"
        return named(name, **counts, **labels, standardisation=how, flatten=flatten, **own), None
    if name in FROM_FILES:
        # The last bits of standardised values depend on the number of threads; a digest must not.
        data = named(name, data_dir=data_dir, **counts, **labels, standardisation="none", **own)
        standardisation, digest = standardisation or "global", data.fingerprint()
    elif name.endswith(".npz"):
        data = named(name, **own)
        digest = data.fingerprint()
        if labels != {"classes": None, "targets": "one-hot"}:
            data = _choose(name, data, classes, targets)
        data = _draw(data, train, test)
    else:
        data = named(name, **{k: v for k, v in counts.items() if v is not None}, **own)
        if labels != {"classes": None, "targets": "one-hot"}:
            known = f"digits, {', '.join(FROM_FILES)} or an .npz file, whose classes can be chosen"
            fail(WHERE, f"data must be one of {known}", repr(name))

    def shaped(x: Tensor) -> Tensor:
        if standardisation is not None and len(x):
            x = standardise(x, data.x_train, standardisation)
        return x.reshape(len(x), math.prod(x.shape[1:])) if flatten else x

    x_train, x_test = shaped(data.x_train), shaped(data.x_test)
    return dataclasses.replace(data, x_train=x_train, x_test=x_test), digest


def _choose(name: str, data: Dataset, classes: Sequence[int] | None, targets: str) -> Dataset:
    """The samples of some classes, with new targets."""
    require(data.classes, WHERE, "data must have integer class labels to choose from", repr(name))
    chosen = check_classes(WHERE, classes, data.outputs, targets)

    def part(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        label = y.argmax(dim=1)
        kept = torch.isin(label, torch.tensor(chosen, device="cpu"))
        return x[kept], make_targets(label[kept], chosen, targets, y.dtype)

    parts = *part(*data.train), *part(*data.test)
    return Dataset(data.name, *parts, classes=targets == "one-hot")


def _draw(data: Dataset, train: int | None, test: int | None) -> Dataset:
    """Random subsets, in the file's order where all samples are taken."""
    rng = np.random.RandomState(0)

    def part(kind: str, x: Tensor, y: Tensor, count: int | None) -> tuple[Tensor, Tensor]:
        least = 1 if kind == "train" else 0
        ok = count is None or least <= count <= len(x)
        require(ok, WHERE, f"{kind} must be in {least}..{len(x)} for this data", count)
        if count is None:
            return x, y
        index = torch.from_numpy(rng.permutation(len(x))[:count])
        return x[index], y[index]

    parts = *part("train", *data.train, train), *part("test", *data.test, test)
    return Dataset(data.name, *parts, classes=data.classes)
