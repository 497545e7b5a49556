"""Choices about batch statistics and randomness, and the modules that none of them allows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v

BatchStats = Literal["frozen", "coupled"]
Dropout = Literal["fixed"]
BATCH_STATS = (None, *get_args(BatchStats))
DROPOUT = (None, *get_args(Dropout))
SHARED_STATE = threading.RLock()  # generators and levels of forward mode, which threads share


@dataclass(frozen=True)
class Policy:
    """Choices that would be wrong to make silently; None refuses the model.

    Attributes:
        batch_stats: for batch norms that use the statistics of the batch: ``"frozen"`` holds them
            as constants, ``"coupled"`` differentiates through them (samples depend on each other).
        dropout: ``"fixed"`` draws every random number of the forward pass once, from ``seed``.
        seed: seed of the fixed masks.
    """

    batch_stats: str | None = None
    dropout: str | None = None
    seed: int = 0

    def check(self, where: str) -> None:
        """Raise ValueError on an unknown choice."""
        text = f"batch_stats must be one of {BATCH_STATS}"
        v.require(self.batch_stats in BATCH_STATS, where, text, repr(self.batch_stats))
        v.require(
            self.dropout in DROPOUT, where, f"dropout must be one of {DROPOUT}", repr(self.dropout)
        )

    @contextmanager
    def seeded(self, device: torch.device) -> Iterator[None]:
        """Random numbers from ``seed`` inside, and the caller's generators as they were after."""
        if self.dropout is None:
            yield
            return
        with SHARED_STATE, torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            yield


def check_modules(model: object, where: str, policy: Policy) -> nn.Module:
    """Refuse non-modules, train-mode batch norm, active dropout and uninitialised parameters."""
    if not isinstance(model, nn.Module):
        v.fail(where, "model must be a torch.nn.Module", type(model).__name__, TypeError)
    for name, module in model.named_modules():
        batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        own_statistics = batch_norm and (module.training or module.running_mean is None)
        v.require(
            not own_statistics or policy.batch_stats is not None,
            where,
            "BatchNorm must be in eval mode with running statistics (call model.eval() or pass "
            "batch_stats='frozen' or 'coupled')",
            f"{type(module).__name__} '{name}' using batch statistics",
        )
        dropout = isinstance(module, (nn.modules.dropout._DropoutNd, nn.RReLU))
        active = dropout and module.training and getattr(module, "p", 1.0) > 0
        v.require(
            not active or policy.dropout is not None,
            where,
            "dropout must be off (call model.eval() or pass dropout='fixed' for one fixed mask)",
            f"{type(module).__name__} '{name}' in train mode",
        )
    for name, p in model.named_parameters():
        lazy = isinstance(p, nn.parameter.UninitializedParameter)
        v.require(not lazy, where, "parameters must be initialised (run a forward pass)", name)
    return model


def repeats(first: Tensor, again: Tensor) -> bool:
    """Whether two passes agree as curvlinops asks: 5e-5 relative, 1e-6 of the largest."""
    bound = 5e-5 * first.abs() + 1e-6 * first.abs().max()
    return first.shape == again.shape and bool(((first - again).abs() <= bound).all())


def check_repeats(first: Tensor, again: Tensor, where: str) -> None:
    """Raise ValueError unless two passes agree: see :func:`repeats`."""
    v.require(
        repeats(first, again),
        where,
        "two forward passes must give the same outputs (does forward() change its own state?)",
        f"a difference of {(first - again).abs().max().item():.1e}"
        if first.shape == again.shape
        else f"shapes {tuple(first.shape)} and {tuple(again.shape)}",
    )
