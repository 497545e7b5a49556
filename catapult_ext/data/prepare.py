"""From raw images and labels to a Dataset: classes, subsets, standardisation, targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from catapult_ext import _validate as v
from catapult_ext.data.dataset import Dataset

Standardisation = Literal["global", "channel", "pixel", "image", "none"]
Targets = Literal["one-hot", "signed"]
STANDARDISATIONS, TARGETS = get_args(Standardisation), get_args(Targets)


def standardise(x: Tensor, reference: Tensor, how: str) -> Tensor:
    """Shift and scale ``x`` (N, ...) by the statistics of ``reference``.

    ``global``: one mean and deviation over all values; ``channel``: one per channel of images
    (N, C, H, W); ``pixel``: one per feature; ``image``: each sample by its own; ``none``:
    unchanged. What does not vary is only shifted.

    Examples:
        >>> x = torch.rand(100, 3)
        >>> bool(cx.data.standardise(x, x, "global").mean().abs() < 1e-5)
        True
    """
    if how not in STANDARDISATIONS:
        v.fail("data.standardise", f"how must be one of {', '.join(STANDARDISATIONS)}", repr(how))
    if how == "none":
        return x
    if how == "channel":
        v.require(x.dim() == 4, "data.standardise", "channel needs (N, C, H, W)", tuple(x.shape))
    if how == "image":
        reference, dims = x, tuple(range(1, x.dim()))
    else:
        everything = tuple(range(x.dim()))
        dims = {"global": everything, "channel": (0, 2, 3), "pixel": (0,)}[how]
    spread = reference.std(dim=dims, correction=0, keepdim=True)
    mean = reference.mean(dim=dims, keepdim=True)
    return (x - mean) / torch.where(spread > 0, spread, torch.ones_like(spread))


def random_state(where: str, seed: int) -> np.random.RandomState:
    """NumPy's generator for ``seed``, which must be an int from 0 to 2^32 - 1."""
    v.integers(where, seed=seed)
    v.require(0 <= seed < 1 << 32, where, "seed must be from 0 to 2^32 - 1", seed)
    return np.random.RandomState(seed)


@dataclass(frozen=True)
class RawImages:
    """Unsigned bytes (N, C, H, W) and labels (N,) of both parts, as files hold them."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int


def check_classes(where: str, classes: Sequence[int] | None, held: int, targets: str) -> list[int]:
    """The classes to keep, checked against the number of those held and the kind of targets.

    Raises:
        ValueError: fewer than two, repeated or unknown ones; signed targets of more than two.
    """
    if classes is not None:
        v.listed(where, classes=classes)
        v.integers(where, **{f"classes[{i}]": c for i, c in enumerate(classes)})
    chosen = list(range(held)) if classes is None else [int(c) for c in classes]
    ok = len(chosen) >= 2 and len(set(chosen)) == len(chosen)
    ok = ok and all(0 <= c < held for c in chosen)
    v.require(ok, where, f"classes must be two or more distinct of 0..{held - 1}", classes)
    if targets not in TARGETS:
        v.fail(where, f"targets must be one of {', '.join(TARGETS)}", repr(targets))
    if targets == "signed":
        v.require(len(chosen) == 2, where, "signed targets need two classes", chosen)
    return chosen


def prepare(
    raw: RawImages,
    *,
    train: int | None,
    test: int | None,
    classes: Sequence[int] | None,
    targets: str,
    standardisation: str,
    flatten: bool,
    seed: int,
    dtype: torch.dtype,
) -> Dataset:
    """Choose classes and a random subset, scale to [0, 1], standardise, make targets.

    See ``data.load`` for the arguments.
    """
    where = f"data.{raw.name}"
    v.integers(where, train=train, test=test, optional=True)
    chosen = check_classes(where, classes, raw.classes, targets)
    rng = random_state(where, seed)
    parts = []
    for kind, x, y, count in (
        ("train", raw.x_train, raw.y_train, train),
        ("test", raw.x_test, raw.y_test, test),
    ):
        index = _subset(where, kind, y, chosen, count, rng)
        images = torch.from_numpy(np.ascontiguousarray(x[index])).to(dtype) / 255
        parts.append((images, make_targets(torch.from_numpy(y[index]), chosen, targets, dtype)))
    (x_train, y_train), (x_test, y_test) = parts
    inputs = [standardise(x, x_train, standardisation) for x in (x_train, x_test)]
    if flatten:
        inputs = [x.flatten(1) for x in inputs]
    return Dataset(raw.name, inputs[0], y_train, inputs[1], y_test, targets == "one-hot")


def _subset(
    where: str,
    kind: str,
    labels: np.ndarray,
    chosen: list[int],
    count: int | None,
    rng: np.random.RandomState,
) -> np.ndarray:
    """Indices of a random subset of the chosen classes, in the file's order if all are taken."""
    index = np.flatnonzero(np.isin(labels, chosen))
    if count is None:
        return index
    least = 1 if kind == "train" else 0
    ok = least <= count <= len(index)
    v.require(ok, where, f"{kind} must be in {least}..{len(index)}", count)
    return index[rng.permutation(len(index))[:count]]


def make_targets(labels: Tensor, chosen: list[int], targets: str, dtype: torch.dtype) -> Tensor:
    """One-hot rows in the order of ``chosen``, or -1 and +1 for its two classes."""
    position = torch.zeros(max(chosen) + 1, dtype=torch.int64, device="cpu")
    position[torch.tensor(chosen, device="cpu")] = torch.arange(len(chosen), device="cpu")
    index = position[labels]
    if targets == "signed":
        return (2 * index - 1).to(dtype)[:, None]
    return F.one_hot(index, len(chosen)).to(dtype)
