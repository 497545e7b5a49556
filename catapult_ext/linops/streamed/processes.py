"""What the ranks of a process group tell each other: sums, rows, agreement, and who was lost."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = 10.0  # seconds in which the surviving ranks notice a loss, too
_count = itertools.count()


class Group:
    """A torch.distributed process group, or None: this process alone.

    Attributes:
        rank, size: of this process, of the group.
        bytes: name of the collective -> payload handed to it so far by this rank.
    """

    def __init__(self, group: Any, where: str) -> None:
        alone = group is None
        if not alone and not dist.is_initialized():
            raise RuntimeError(
                f"catapult_ext.{where}: group needs torch.distributed.init_process_group first"
            )
        self.where = where
        self.group = dist.group.WORLD if group == "world" else group
        self.rank = 0 if alone else dist.get_rank(self.group)
        self.size = 1 if alone else dist.get_world_size(self.group)
        self.bytes = {"all_reduce": 0, "all_gather": 0}
        self._beats, self._key = 0, f"catapult_ext/{next(_count)}"
        self._store: Any = None if alone else dist.distributed_c10d._get_default_store()

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, in place, the same bits on every rank."""
        if self.size > 1:
            self.bytes["all_reduce"] += values.numel() * values.element_size()
            flat = values.contiguous()
            self._together("all_reduce", lambda: dist.all_reduce(flat, group=self.group))
            return flat
        return values

    def rows(self, mine: Tensor, counts: list[int]) -> Tensor:
        """The ranks' rows (counts[r], K) one below the other, on every rank."""
        if self.size == 1:
            return mine
        padded = mine.new_zeros(max(counts), mine.shape[1])
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in counts]
        self.bytes["all_gather"] += padded.numel() * padded.element_size()
        self._together("all_gather", lambda: dist.all_gather(parts, padded, group=self.group))
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    def everyone(self, mine: Any) -> list[Any]:
        """A small picklable object of every rank."""
        if self.size == 1:
            return [mine]
        out: list[Any] = [None] * self.size
        self._together("all_gather", lambda: dist.all_gather_object(out, mine, group=self.group))
        return out

    def built(self, make: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
        """``make()`` on every rank: the facts it returns, from all; its error on one, to all.

        Raises:
            RuntimeError: some rank could not, which is named; raised on every rank.
        """
        problem: Exception | None = None
        facts: dict[str, Any] = {}
        try:
            facts = make()
        except Exception as error:
            if self.size == 1:
                raise
            problem = error
        found = self.everyone((facts, None if problem is None else str(problem)))
        bad = [(rank, text) for rank, (_, text) in enumerate(found) if text is not None]
        if bad:
            told = "; ".join(f"rank {rank}: {text}" for rank, text in bad)
            raise RuntimeError(f"catapult_ext.{self.where}: {told}") from problem
        return [facts for facts, _ in found]

    def agree(self, facts: list[dict[str, Any]]) -> None:
        """Every fact that is not None must be the same on all ranks.

        Raises:
            ValueError: one differs; names it, two ranks and their values; raised on every rank.
        """
        for name in facts[0]:
            told = [(rank, one[name]) for rank, one in enumerate(facts) if one[name] is not None]
            for rank, value in told:
                if value != told[0][1]:
                    raise ValueError(
                        f"catapult_ext.{self.where}: {name} must be the same on all ranks, got "
                        f"{told[0][1]} on rank {told[0][0]} and {value} on rank {rank}"
                    )

    def _together(self, name: str, collective: Callable[[], object]) -> None:
        self._beats += 1
        self._store.set(f"{self._key}/{self.rank}", str(self._beats))
        try:
            collective()
        except RuntimeError as error:
            raise RuntimeError(
                f"catapult_ext.{self.where}: {self._lost()} in {name} number {self._beats}; "
                f"restart all ranks ({str(error).splitlines()[0][:120]})"
            ) from error

    def _lost(self) -> str:
        """Who did not reach this collective, as the store knows it."""
        missing: list[int] = []
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                missing = [r for r in range(self.size) if self._beat(r) < self._beats]
            except RuntimeError:
                return "the rank that hosts the store was lost"
            if len(missing) <= 1:
                break
            time.sleep(0.05)
        if not missing:
            return "a rank was lost"
        return (
            f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))} did not answer"
        )

    def _beat(self, rank: int) -> int:
        key = f"{self._key}/{rank}"
        return int(self._store.get(key)) if self._store.check([key]) else 0
