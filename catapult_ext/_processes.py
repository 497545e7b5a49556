"""Processes that work together through a torch.distributed store: collectives and shared parts."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

NOTICE = 10.0  # seconds in which the other ranks notice a collective that a rank does not reach
PATIENCE = 20.0  # seconds without a sign of life after which a rank counts as lost
START = 120.0  # the same until its first one: a busy machine loads torch slowly
PAUSE = 0.2  # seconds between looks at the store
_uses: collections.Counter[str] = collections.Counter()  # of the store, by the group's members


def _group(group: Any, where: str) -> Any:
    """The torch.distributed group that ``group``, ``"world"`` or itself, means.

    Raises:
        RuntimeError: no process group.
    """
    if not dist.is_initialized():
        raise RuntimeError(
            f"catapult_ext.{where}: group needs torch.distributed.init_process_group first"
        )
    return dist.group.WORLD if group == "world" else group


def _own_store(group: Any) -> Any:
    """A part of the default store that nothing else uses, the same on all ranks of ``group``."""
    members = "-".join(map(str, dist.get_process_group_ranks(group)))
    _uses[members] += 1
    store: Any = dist.distributed_c10d._get_default_store()
    return dist.PrefixStore(f"catapult_ext/{members}/{_uses[members]}", store)


class Group:
    """A torch.distributed process group, or None: this process alone.

    Attributes:
        rank, size: of this process, of the group.
        bytes: name of the collective -> payload that this rank has sent so far.
    """

    def __init__(self, group: Any, where: str) -> None:
        alone = group is None
        self.where = where
        self.group = None if alone else _group(group, where)
        self.rank = 0 if alone else dist.get_rank(self.group)
        self.size = 1 if alone else dist.get_world_size(self.group)
        self.bytes = {"all_reduce": 0, "all_gather": 0}
        self._beats = 0
        self._store: Any = None if alone else _own_store(self.group)

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
        """Collect a small picklable object from every rank."""
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
        self._store.set(str(self.rank), str(self._beats))
        try:
            collective()
        except RuntimeError as error:
            raise RuntimeError(
                f"catapult_ext.{self.where}: {self._lost()} in {name} number {self._beats}; "
                f"restart all ranks ({str(error).splitlines()[0][:120]})"
            ) from error

    def _lost(self) -> str:
        """Ranks that did not reach this collective, according to the store."""
        missing: list[int] = []
        end = time.monotonic() + NOTICE
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
        return int(self._store.get(str(rank))) if self._store.check([str(rank)]) else 0


class Ranks:
    """Shares parts out over ranks and watches that all are alive; a context manager on each.

    A part goes to the rank that asks first. Every rank gives signs of life from a thread of its
    own; an error on one rank, or its silence, ends the work of the others.

    Args:
        store: store of torch.distributed, shared by all ranks and by nothing else.
        rank: rank of this process.
        size: number of ranks.
        where: the public function named in errors.

    Attributes:
        rank, size: as given.
    """

    def __init__(self, store: Any, rank: int, size: int, where: str) -> None:
        self.rank, self.size = rank, size
        self._store, self._where = store, where
        self._trouble: str | None = None
        self._over = threading.Event()
        self._pulse = threading.Thread(target=self._watch, daemon=True)

    @classmethod
    def of(cls, group: Any, where: str) -> Ranks:
        """The ranks of ``group``: ``"world"`` or a torch.distributed group.

        Raises:
            RuntimeError: no process group.
        """
        found = _group(group, where)
        return cls(_own_store(found), dist.get_rank(found), dist.get_world_size(found), where)

    def __enter__(self) -> Ranks:
        self._pulse.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._pulse.join()
        if kind is not None and self._trouble is None:
            self.tell(f"failed/{self.rank}", str(value) or kind.__name__)

    def claim(self, part: str) -> bool:
        """True on the rank that asks first."""
        self.check()
        return self._store.add(f"claim/{part}", 1) == 1

    def tell(self, key: str, text: str = "") -> None:
        """Leave a text for the other ranks."""
        self._store.set(key, text)

    def told(self, key: str) -> str | None:
        """The text under ``key``, or None."""
        return self._store.get(key).decode() if self._store.check([key]) else None

    def wait(self, key: str) -> str:
        """The text under ``key`` once a rank leaves it."""
        while (text := self.told(key)) is None:
            self.pause()
        return text

    def pause(self) -> None:
        """Let a moment pass; raises as :meth:`check`."""
        self.check()
        time.sleep(PAUSE)

    def meet(self, point: str) -> None:
        """Return when every rank is here."""
        self.tell(f"{point}/{self.rank}")
        for rank in range(self.size):
            self.wait(f"{point}/{rank}")

    def check(self) -> None:
        """Raise RuntimeError, which names the rank, if one failed or was lost."""
        if self._trouble is not None:
            raise RuntimeError(
                f"catapult_ext.{self._where}: {self._trouble}; what is finished is stored: "
                "restart all ranks to resume"
            )

    def _watch(self) -> None:
        seen = {r: (0, time.monotonic()) for r in range(self.size) if r != self.rank}
        try:
            while not self._over.wait(PAUSE):
                self._store.add(f"beat/{self.rank}", 1)
                now = time.monotonic()
                for rank, (beat, since) in seen.items():
                    failure = self.told(f"failed/{rank}")
                    if failure is not None:
                        self._trouble = f"rank {rank} failed: {failure}"
                        return
                    latest = self._store.add(f"beat/{rank}", 0)
                    if latest != beat:
                        seen[rank] = (latest, now)
                    elif now - since > (PATIENCE if beat else START):
                        self._trouble = f"rank {rank} was lost"
                        return
        except RuntimeError as error:
            self._trouble = f"the rank that hosts the store was lost ({error})"
