"""Facts about a forward pass that say which of its derivatives need a proof."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from catapult_ext.linops.model.large_products import FACTORS, FILTERED, multiply_adds

aten: Any = torch.ops.aten
# position of the argument that divides gradients by the number of times that a row is used
_SCALED_BY_FREQUENCY = {aten.embedding.default: 3, aten._embedding_bag.default: 3}
_WRONG_THIRD = {aten.native_layer_norm_backward.default}
_NO_SECOND = {
    aten.hardsigmoid.default,
    aten.hardsigmoid_.default,
    aten._cdist_forward.default,
    aten._pdist_forward.default,
    aten._embedding_bag.default,
}
_NOTED = {*FACTORS, *FILTERED, *_SCALED_BY_FREQUENCY, *_WRONG_THIRD, *_NO_SECOND}
_NARROW = (torch.float32, torch.float16, torch.bfloat16)


@cache
def _is_noted(func: Any) -> bool:
    """Whether more is noted of an operation than how precise its result is."""
    return func in _NOTED


class Observed:
    """Notes on one forward pass, taken while it runs.

    Attributes:
        hidden: an operation ran without grad mode, as inside an autograd Function.
        hooked: tensors whose gradients were given a hook.
        scaled: names of operations whose gradients are divided by frequencies.
        third: the pass has differentiated an operation whose third derivative torch has wrong.
        second: an operation has no second derivative in torch.
        eps: the rounding unit of the least precise floating-point result.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.hidden = False
        self.hooked: list[Tensor] = []
        self.scaled: list[str] = []
        self.third = self.second = False
        self.eps = torch.finfo(dtype).eps
        self._multiplied = self._large = 0.0
        self._dtype = dtype

    @property
    def plain(self) -> bool:
        """Whether torch's own operations with their own derivatives alone were seen."""
        return not (self.hidden or self.hooked or self.scaled)

    @property
    def large_share(self) -> float:
        """Share of large matrix products in the multiply-adds of the pass."""
        return self._large / self._multiplied if self._multiplied else 0.0

    def take(self, func: Any, args: Any, out: Any) -> None:
        """Note one operation and its result."""
        if not torch.is_grad_enabled():
            self.hidden = True
        if isinstance(out, Tensor) and out.dtype is not self._dtype and out.dtype in _NARROW:
            self.eps = max(self.eps, torch.finfo(out.dtype).eps)
        if not _is_noted(func):
            return
        every, large = multiply_adds(func, args, out)
        self._multiplied, self._large = self._multiplied + every, self._large + large
        if func in _WRONG_THIRD:
            self.third = True
        elif func in _NO_SECOND:
            self.second = True
        at = _SCALED_BY_FREQUENCY.get(func)
        if at is not None and len(args) > at and args[at]:
            self.scaled.append(f"{func.name().split('::')[1]}(scale_grad_by_freq=True)")

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Notes the tensors that this thread gives gradient hooks inside the block."""
        before = _Noting.start(self.hooked)
        try:
            yield
        finally:
            _Noting.stop(before)


class _Noting:
    """Stands in for ``Tensor.register_hook`` while any thread watches."""

    lock = threading.Lock()
    watchers = 0
    plain: Any = None
    local = threading.local()

    @classmethod
    def start(cls, found: list[Tensor]) -> list[Tensor] | None:
        """Notes go to ``found`` from now on; returns where they went before."""
        with cls.lock:
            if cls.watchers == 0:
                cls.plain = torch.Tensor.register_hook
                torch.Tensor.register_hook = cls.register_hook  # type: ignore[method-assign]
            cls.watchers += 1
        before = getattr(cls.local, "found", None)
        cls.local.found = found
        return before

    @classmethod
    def stop(cls, before: list[Tensor] | None) -> None:
        """Notes go to ``before`` again."""
        cls.local.found = before
        with cls.lock:
            cls.watchers -= 1
            if cls.watchers == 0:
                torch.Tensor.register_hook = cls.plain  # type: ignore[method-assign]

    @staticmethod
    def register_hook(tensor: Tensor, hook: Any) -> Any:
        """``Tensor.register_hook``, noted."""
        found = getattr(_Noting.local, "found", None)
        if found is not None and tensor.requires_grad:
            found.append(tensor)
        return _Noting.plain(tensor, hook)
