"""Synthetic inputs: Gaussian vectors with random labels, and images of random smooth classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from catapult_ext import _validate as v
from catapult_ext.data.dataset import Dataset
from catapult_ext.data.prepare import random_state


def gaussian(
    train: int = 64,
    test: int = 0,
    *,
    in_features: int = 50,
    out_features: int = 1,
    labels: str = "signs",
    mean: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    """Inputs N(mean, 1) with labels that do not depend on them: nothing to learn but to fit.

    Args:
        train: training samples N, >= 1.
        test: test samples.
        in_features: input dimension D.
        out_features: outputs O.
        labels: ``"signs"`` (+-1 with equal chance), ``"normal"`` or ``"zero"``.
        mean: mean of every input entry.
        seed: seed of everything (NumPy's ``RandomState``).
        dtype: float32 or float64.

    Raises:
        ValueError: for non-positive sizes, a non-finite mean or unknown labels.

    Examples:
        >>> cx.data.gaussian(16, in_features=5).x_train.shape
        torch.Size([16, 5])
    """
    where = "data.gaussian"
    v.integers(where, train=train, test=test, in_features=in_features, out_features=out_features)
    v.numbers(where, mean=mean)
    for name, value in (("train", train), ("in_features", in_features)):
        v.require(value > 0, where, f"{name} must be > 0", value)
    v.require(test >= 0, where, "test must be >= 0", test)
    v.require(out_features > 0, where, "out_features must be > 0", out_features)
    v.require(math.isfinite(mean), where, "mean must be finite", mean)
    known = ("signs", "normal", "zero")
    v.require(labels in known, where, f"labels must be one of {', '.join(known)}", repr(labels))
    rng = random_state(where, seed)
    x = mean + rng.standard_normal((train + test, in_features))
    drawn = rng.standard_normal((train + test, out_features))
    y = {"signs": np.where(drawn < 0, -1.0, 1.0), "normal": drawn, "zero": 0 * drawn}[labels]
    a, b = torch.from_numpy(x).to(dtype), torch.from_numpy(y).to(dtype)
    return Dataset("gaussian", a[:train], b[:train], a[train:], b[train:], classes=False)


def synthetic_images(
    train: int = 512,
    test: int = 512,
    *,
    shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    noise: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    """Images of the given shape in learnable classes: a smooth random pattern each, plus noise.

    Every image is its class's pattern, shifted at random by up to an eighth of the side and
    overlaid with white noise; pixels then have mean 0 and variance 1 over the training set.

    Args:
        train: training images N, >= 1.
        test: test images.
        shape: (C, S, S) of one image, S >= 4; (3, 32, 32) as CIFAR.
        classes: O >= 2; targets are one-hot.
        noise: deviation of the noise, the patterns having deviation 1.
        seed: seed of everything (NumPy's ``RandomState``).
        dtype: float32 or float64.

    Raises:
        ValueError: for sizes out of range or negative noise.

    Examples:
        >>> cx.data.synthetic_images(8, 4, shape=(1, 8, 8)).x_train.shape
        torch.Size([8, 1, 8, 8])
    """
    where = "data.synthetic_images"
    v.integers(where, train=train, test=test, classes=classes)
    v.numbers(where, noise=noise)
    v.listed(where, shape=shape)
    v.integers(where, **{f"shape[{i}]": size for i, size in enumerate(shape)})
    ok = len(shape) == 3 and shape[1] == shape[2] >= 4 and shape[0] > 0
    v.require(ok, where, "shape must be (C, S, S) with S >= 4", tuple(shape))
    v.require(train > 0, where, "train must be > 0", train)
    v.require(test >= 0, where, "test must be >= 0", test)
    v.require(classes >= 2, where, "classes must be >= 2", classes)
    v.require(math.isfinite(noise) and noise >= 0, where, "noise must be finite and >= 0", noise)
    rng = random_state(where, seed)
    side, count = shape[1], train + test
    coarse = torch.from_numpy(rng.standard_normal((classes, shape[0], 4, 4)))
    patterns = F.interpolate(coarse, size=side, mode="bicubic")
    patterns = patterns / patterns.std(dim=(1, 2, 3), keepdim=True)
    label = torch.from_numpy(rng.randint(0, classes, count))
    reach = side // 8
    moves = rng.randint(-reach, reach + 1, (count, 2))
    shifted = [
        torch.roll(patterns[c], (int(dy), int(dx)), dims=(1, 2))
        for c, (dy, dx) in zip(label.tolist(), moves, strict=True)
    ]
    x = torch.stack(shifted) + noise * torch.from_numpy(rng.standard_normal((count, *shape)))
    x = ((x - x[:train].mean()) / x[:train].std(correction=0)).to(dtype)
    y = F.one_hot(label, classes).to(dtype)
    return Dataset("synthetic images", x[:train], y[:train], x[train:], y[train:])
