"""Synthetic data: Gaussian inputs labelled by a random two-layer teacher network."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

from catapult_ext import _validate as v
from catapult_ext.data.dataset import Dataset
from catapult_ext.data.prepare import random_state


def teacher(
    train: int = 128,
    test: int = 512,
    *,
    in_features: int = 16,
    out_features: int = 1,
    width: int = 32,
    noise: float = 0.0,
    classes: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    """Inputs N(0, 1), targets of a random tanh network of one hidden layer.

    Args:
        train: number of training samples N, >= 1.
        test: number of test samples.
        in_features: input dimension D.
        out_features: outputs O (>= 2 with ``classes``).
        width: hidden units of the teacher.
        noise: deviation of Gaussian noise on the real-valued training targets (variance 1).
        classes: one-hot targets of the teacher's largest output instead of real values.
        seed: seed of everything (NumPy's ``RandomState``).
        dtype: float32 or float64.

    Raises:
        ValueError: for non-positive sizes or negative noise.

    Examples:
        >>> cx.data.teacher(16, in_features=3).y_train.shape
        torch.Size([16, 1])
    """
    where = "data.teacher"
    v.integers(where, train=train, test=test, in_features=in_features, width=width)
    v.integers(where, out_features=out_features)
    v.numbers(where, noise=noise)
    for name, value in (("train", train), ("in_features", in_features), ("width", width)):
        v.require(value > 0, where, f"{name} must be > 0", value)
    v.require(test >= 0, where, "test must be >= 0", test)
    least = 2 if classes else 1
    v.require(out_features >= least, where, f"out_features must be >= {least}", out_features)
    v.require(math.isfinite(noise) and noise >= 0, where, "noise must be finite and >= 0", noise)
    rng = random_state(where, seed)
    x = rng.standard_normal((train + test, in_features))
    hidden = np.tanh(x @ rng.standard_normal((in_features, width)) / math.sqrt(in_features))
    f = hidden @ rng.standard_normal((width, out_features)) / math.sqrt(width)
    f = (f - f.mean(axis=0)) / f.std(axis=0) if len(f) > 1 else f
    y = torch.from_numpy(f)
    if classes:
        y = F.one_hot(y.argmax(dim=1), out_features)
    else:
        y[:train] += noise * torch.from_numpy(rng.standard_normal((train, out_features)))
    inputs, y = torch.from_numpy(x).to(dtype), y.to(dtype)
    return Dataset(
        "synthetic teacher", inputs[:train], y[:train], inputs[train:], y[train:], classes
    )
