"""The parts of a run handed out over several processes, through a torch.distributed store."""

from __future__ import annotations

import itertools
import threading
import time
from types import TracebackType
from typing import Any

import torch.distributed as dist

PATIENCE = 20.0  # seconds without a sign of life after which a rank counts as lost
START = 120.0  # the same until its first one: a busy machine loads torch slowly
PAUSE = 0.2  # seconds between looks at the store
_count = itertools.count()


class Ranks:
    """Who takes which part, who is alive; use as a context manager on every rank.

    A part goes to the rank that asks first. Every rank gives signs of life from a thread of its
    own; an error on one rank, or its silence, ends the work of the others.

    Args:
        store: of torch.distributed, shared by all ranks and by nothing else.
        rank: of this process.
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
        if not dist.is_initialized():
            raise RuntimeError(
                f"catapult_ext.{where}: group needs torch.distributed.init_process_group first"
            )
        held = dist.group.WORLD if group == "world" else group
        store: Any = dist.distributed_c10d._get_default_store()
        members = "-".join(map(str, dist.get_process_group_ranks(held)))
        own = dist.PrefixStore(f"catapult_ext/{where}/{members}/{next(_count)}", store)
        return cls(own, dist.get_rank(held), dist.get_world_size(held), where)

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
                "restart all ranks to go on"
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
