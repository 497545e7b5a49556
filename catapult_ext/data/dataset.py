"""A data set in memory: training and test inputs with their targets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._shown import Shown
from catapult_ext._store import update_digest


@dataclass(frozen=True, repr=False)
class Dataset(Shown, saved=True):
    """Training and test tensors of one problem.

    Attributes:
        name: name of the data set in reports.
        x_train: (N, ...) inputs, float32 or float64; int64 for the tokens of a language model.
        y_train: (N, O) targets (one-hot for classes), of the inputs' dtype if that is floating.
        x_test: (M, ...) inputs; M may be 0.
        y_test: (M, O) targets.
        classes: whether the targets are one-hot classes, so that accuracy is defined.
        source: digest of the contents of the data files; None for data without files.

    Raises:
        TypeError: for other dtypes, or dtypes that differ.
        ValueError: for mismatched sizes, an empty training set or non-finite values.

    Examples:
        >>> data = cx.data.teacher(32, 8, in_features=4)
        >>> data.x_train.shape, data.outputs
        (torch.Size([32, 4]), 1)
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: bool = True
    source: str | None = None

    def __post_init__(self) -> None:
        where = "data.Dataset"
        for name in ("x_train", "y_train", "x_test", "y_test"):
            value = getattr(self, name)
            if not isinstance(value, Tensor):
                v.fail(where, f"{name} must be a torch.Tensor", type(value).__name__, TypeError)
            tokens = name[0] == "x" and value.dtype == torch.int64
            if value.dtype not in v.FLOAT_DTYPES and not tokens:
                held = "float32, float64 or int64" if name[0] == "x" else "float32 or float64"
                v.fail(where, f"{name} must have dtype {held}", value.dtype, TypeError)
            first = "x_train" if name[0] == "x" or self.x_train.is_floating_point() else "y_train"
            if value.dtype != getattr(self, first).dtype:
                v.fail(where, f"{name} must have the dtype of {first}", value.dtype, TypeError)
            v.require(
                bool(torch.isfinite(value).all()), where, f"{name} must be finite", "nan or inf"
            )
        for x, y, name in (
            (self.x_train, self.y_train, "y_train"),
            (self.x_test, self.y_test, "y_test"),
        ):
            if y.dim() != 2 or x.dim() < 1 or len(x) != len(y):
                v.fail(where, f"{name} must have shape ({len(x)}, O)", tuple(y.shape))
        v.require(len(self.x_train) > 0, where, "the training set must not be empty", "0 samples")
        v.require(
            self.x_test.shape[1:] == self.x_train.shape[1:],
            where,
            f"x_test must have samples of shape {tuple(self.x_train.shape[1:])}",
            tuple(self.x_test.shape[1:]),
        )
        v.require(
            self.y_test.shape[1] == self.y_train.shape[1],
            where,
            f"y_test must have {self.y_train.shape[1]} columns",
            self.y_test.shape[1],
        )

    def _line(self) -> str:
        shape = " x ".join(map(str, self.x_train.shape[1:])) or "1"
        kind = f"{self.outputs} classes" if self.classes else f"{self.outputs} targets"
        counts = f"{len(self.x_train)} training and {len(self.x_test)} test samples"
        return f"{self.name}: {counts} of {shape}, {kind}, {self.x_train.dtype}"

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        """(x_train, y_train)."""
        return self.x_train, self.y_train

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        """(x_test, y_test)."""
        return self.x_test, self.y_test

    @property
    def outputs(self) -> int:
        """Number of target columns O."""
        return self.y_train.shape[1]

    def to(self, target: torch.dtype | torch.device | str) -> Dataset:
        """The same data in another dtype (tokens keep theirs) or on another device."""
        names = ["x_train", "y_train", "x_test", "y_test"]
        if isinstance(target, torch.dtype) and not self.x_train.is_floating_point():
            names = ["y_train", "y_test"]
        return replace(self, **{name: getattr(self, name).to(target) for name in names})

    def fingerprint(self) -> str:
        """SHA-256 over names, shapes, dtypes and bytes: the data's identity in a run's config."""
        digest = hashlib.sha256(f"{self.name}|{self.classes}".encode())
        for name in ("x_train", "y_train", "x_test", "y_test"):
            update_digest(digest, name, getattr(self, name))
        return digest.hexdigest()[:16]


def as_dataset(data: object, where: str) -> Dataset:
    """Make a :class:`Dataset` from another one, ``(x, y)`` or ``(x, y, x_test, y_test)``.

    Targets of a single output may have the shape (N,). Without a test set, reports leave test
    columns empty.

    Examples:
        >>> data = cx.data.as_dataset((torch.randn(8, 3), torch.randn(8, 1)), "example")
        >>> len(data.x_train), len(data.x_test)
        (8, 0)
    """
    if isinstance(data, Dataset):
        return data
    if not isinstance(data, tuple | list) or len(data) not in (2, 4):
        kind = f"{type(data).__name__} of {len(data)}" if isinstance(data, tuple | list) else data
        v.fail(
            where, "data must be a Dataset, (x, y) or (x, y, x_test, y_test)", repr(kind), TypeError
        )
    parts = list(data)
    for i, part in enumerate(parts):
        if not isinstance(part, Tensor):
            v.fail(where, f"data[{i}] must be a torch.Tensor", type(part).__name__, TypeError)
    targets = [t[:, None] if t.dim() == 1 else t for t in parts[1::2]]
    x, y = parts[0], targets[0]
    x_test, y_test = (parts[2], targets[1]) if len(parts) == 4 else (x[:0], y[:0])
    one_hot = y.dim() == 2 and y.shape[1] > 1 and bool(((y == 0) | (y == 1)).all())
    return Dataset(
        "data", x, y, x_test, y_test, classes=one_hot and bool((y.sum(dim=1) == 1).all())
    )
