"""Data of the experiments: real handwritten digits and a synthetic teacher."""

from __future__ import annotations

from catapult_ext.data.dataset import Dataset, as_dataset, update_digest
from catapult_ext.data.digits import digits, standardise
from catapult_ext.data.teacher import teacher

__all__ = ["Dataset", "as_dataset", "digits", "standardise", "teacher", "update_digest"]
