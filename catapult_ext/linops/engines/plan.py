"""The record of how an operator runs and what it will cost; budgets in bytes and as texts.

:mod:`catapult_ext.linops.engines.planner` makes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from catapult_ext import _validate as v
from catapult_ext._free_memory import free_bytes, show_bytes
from catapult_ext._progress import for_people
from catapult_ext.linops.engines.machine_rate import machine_rate

SHARE = 0.5  # of the free memory, where no budget is given
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Plan:
    """How an operator runs, and what that is predicted to cost.

    Attributes:
        name: name of the operator.
        engine: of the frozen model; ``why`` says what decided it.
        n_samples: N; ``samples`` of them are held at a time (all: frozen once).
        columns: right-hand sides multiplied at a time.
        budget: bytes the operator may take, in addition to the model and the data it was given.
        peak: predicted peak bytes of set-up and a product with one column, result included;
            ``column`` more for each further one.
        kept: predicted bytes held between products.
        setup_flops: of freezing (check and probes not counted), ``product_flops`` and
            ``product_bytes`` (memory traffic) and ``product_calls`` (of torch's operations) of a
            product with one column; 1 multiply-add = 2.
        side: n of an operator (n, n); 0 of one that is not square.
        dense_flops, dense_calls: of ``dense()``, at most.
        dense_room: bytes that ``dense()`` takes beside its result, at most.
        device, dtype: of the operator.
        mixed: what products are made in with ``eigsh(precision="mixed")``, and why.

    Examples:
        >>> plan = cx.NTK(nn.Linear(3, 2), torch.randn(4, 3)).plan
        >>> plan.engine
        'dense-chain'
    """

    name: str
    engine: str
    why: str
    n_samples: int
    samples: int
    columns: int
    budget: int
    peak: int
    column: int
    kept: int
    setup_flops: float
    product_flops: float
    product_bytes: float
    product_calls: float
    side: int
    dense_flops: float
    dense_calls: float
    dense_room: int
    device: torch.device
    dtype: torch.dtype
    mixed: str = ""

    @property
    def product_seconds(self) -> float:
        """A forecast for a product with one column, from flops, bytes and this machine's rates.

        The rates are measured once, in 50 ms.  Products took between 0.6 and 2.7 times the
        forecast on one thread (``benchmarks/results/forecast.json``).
        """
        rate = machine_rate(self.device, self.dtype)
        return rate.seconds(self.product_flops, self.product_bytes, self.product_calls)

    @property
    def dense_bytes(self) -> int:
        """Size in bytes of the matrix that ``dense()`` returns."""
        return self.side**2 * self.dtype.itemsize

    @property
    def dense_seconds(self) -> float:
        """A forecast for ``dense()``, likewise, which took between a fifth and three times as long.

        The fifth is a kernel of convolutions, whose layers' factors save work.
        """
        rate = machine_rate(self.device, self.dtype)
        return rate.seconds(self.dense_flops, self.dense_bytes, self.dense_calls)

    def room(self, columns: int) -> int:
        """Bytes of the budget that a product with ``columns`` columns leaves."""
        return self.budget - self.peak - (columns - 1) * self.column

    def __str__(self) -> str:
        held = (
            f"all {self.n_samples} samples, frozen once"
            if self.samples >= self.n_samples
            else f"{self.samples} of {self.n_samples} samples at a time, frozen anew every product"
        )
        rows = {
            self.name: f"engine {self.engine} ({self.why})",
            "samples": held,
            "columns": f"{self.columns} at a time, {show_bytes(self.column)} each",
            "set-up": f"{self.setup_flops / 1e9:.3g} GFLOP",
            "product": f"{self.product_flops / 1e9:.3g} GFLOP, "
            f"{show_bytes(self.product_bytes)} moved, about {for_people(self.product_seconds)}, "
            "per column",
            "memory": f"{show_bytes(self.peak)} at the peak, {show_bytes(self.kept)} between "
            f"products, of a budget of {show_bytes(self.budget)}",
        }
        if self.mixed:
            rows["mixed"] = self.mixed
        if self.side:
            rows["dense()"] = (
                f"({self.side}, {self.side}), {show_bytes(self.dense_bytes)} and at most "
                f"{show_bytes(self.dense_room)} beside it, about {for_people(self.dense_seconds)}"
            )
        return "\n".join(f"{key:8s} {text}" for key, text in rows.items())


def parse_budget(budget: object, device: torch.device, where: str) -> int:
    """Bytes of ``memory_budget``: a number, a text like ``"512 MiB"``, or None for the default."""
    if budget is None:
        return int(SHARE * free_bytes(device))
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)i?B?\s*", budget, re.IGNORECASE)
        if match is None:
            v.fail(where, "memory_budget must read like '512 MiB'", repr(budget))
        return int(float(match[1]) * _UNITS[match[2].upper()])
    if not v.is_number(budget):
        v.fail(
            where,
            "memory_budget must be a number of bytes or a text like '512 MiB'",
            repr(budget),
            TypeError,
        )
    v.require(budget > 0, where, "memory_budget must be positive", budget)  # type: ignore[operator]
    return int(budget)  # type: ignore[call-overload]


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal up to rounding: a batch of another size takes other kernels."""
    bound = 1e3 * torch.finfo(left.dtype).eps * left.abs().max()
    return left.shape == right.shape and bool(((left - right).abs() <= bound).all())
