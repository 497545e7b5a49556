"""Data of any form as a data set: the inputs are sample numbers, which the model looks up."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext._batches import map_tensors, tensors_of
from catapult_ext._store import update_digest
from catapult_ext.probes.problem import Problem


class IndexedModel(nn.Module):
    """``model`` on samples of a problem, by their numbers."""

    def __init__(self, model: nn.Module, problem: Problem) -> None:
        super().__init__()
        self.model = model
        self._problem, self._n = problem, problem.n_samples

    def extra_repr(self) -> str:
        """The user's ``forward``, which is part of a run's identity."""
        user = self._problem.forward
        if user is None:
            return ""
        code = getattr(user, "__code__", None)
        held = "" if code is None else repr((code.co_code, code.co_names))
        name = getattr(user, "__qualname__", type(user).__name__)
        return f"forward={name} {hashlib.sha256(held.encode()).hexdigest()[:16]}"

    def forward(self, index: Tensor) -> Tensor:
        """The outputs of the samples ``index`` (n,), as the model returns them."""
        n = self._n

        def looked_up(t: Tensor) -> Tensor:
            return t[index] if t.dim() and t.shape[0] == n else t.clone()

        return self._problem.called(self.model, map_tensors(self._problem.x, looked_up))


@dataclass(frozen=True)
class IndexedData:
    """The training data of a sweep as :class:`~catapult_ext.data.Dataset` shows them, without test.

    Attributes:
        name: how reports call it.
        x_train: sample numbers (N,).
        y_train: labels as the loss takes them.
        digest: digest of inputs and labels.
        outputs: entries of one sample's outputs.
        classes: whether the labels are classes of whole samples, so that accuracy means something.
    """

    name: str
    x_train: Tensor
    y_train: Any
    digest: str
    outputs: int
    classes: bool

    @property
    def x_test(self) -> Tensor:
        """No sample."""
        return self.x_train[:0]

    @property
    def y_test(self) -> Tensor:
        """No label."""
        return self.x_train[:0]

    @property
    def train(self) -> tuple[Tensor, Any]:
        """The training set, (x_train, y_train)."""
        return self.x_train, self.y_train

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        """(x_test, y_test)."""
        return self.x_test, self.y_test

    def fingerprint(self) -> str:
        """The data's identity in a run's config."""
        return self.digest


def indexed(model: nn.Module, problem: Problem) -> tuple[IndexedModel, IndexedData]:
    """A model of sample numbers, and its data.

    Cost:
        One forward pass.

    Raises:
        TypeError: labels that are no tensor, or outputs that are not one row of entries a sample.
        ValueError: labels that do not fit the outputs.
    """
    problem = problem.read(model)
    if not isinstance(problem.y, Tensor):
        kind = type(problem.y).__name__
        v.fail(problem.where, "labels must be a torch.Tensor", kind, TypeError)
    n = problem.n_samples
    wrapped = IndexedModel(model, problem)
    numbers = torch.arange(n, device=problem.y.device)
    with torch.no_grad():
        f = wrapped(numbers)
    problem.loss.targets(f, problem.y)
    digest = hashlib.sha256(type(problem.x).__name__.encode())
    for i, t in enumerate([*tensors_of(problem.x), problem.y]):
        update_digest(digest, str(i), t)
    whole = f.dim() == 2 and len(f) == n and problem.y.dim() == 1
    classes = whole and not problem.y.is_floating_point()
    entries = f.numel() // n
    data = IndexedData("data", numbers, problem.y, digest.hexdigest()[:16], entries, classes)
    return wrapped, data
