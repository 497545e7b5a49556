"""Data of the experiments: files on disk, real handwritten digits, synthetic problems."""

from __future__ import annotations

from catapult_ext._store import update_digest
from catapult_ext.data.augment import Augment
from catapult_ext.data.dataset import Dataset, as_dataset
from catapult_ext.data.digits import digits
from catapult_ext.data.files import DataFileError
from catapult_ext.data.gaussian import gaussian, synthetic_images
from catapult_ext.data.named import NAMES, SYNTHETIC, named
from catapult_ext.data.prepare import standardise
from catapult_ext.data.standard import load, npz
from catapult_ext.data.sums import sums
from catapult_ext.data.teacher import teacher

__all__ = [
    "NAMES",
    "SYNTHETIC",
    "Augment",
    "DataFileError",
    "Dataset",
    "as_dataset",
    "digits",
    "gaussian",
    "load",
    "named",
    "npz",
    "standardise",
    "sums",
    "synthetic_images",
    "teacher",
    "update_digest",
]


def __dir__() -> list[str]:
    return __all__
