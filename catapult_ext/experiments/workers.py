"""Processes of this machine that share the parts of one run: one thread pool each, one store."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any

import torch
import torch.distributed as dist

from catapult_ext._processes import Ranks

HOST = "127.0.0.1"


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def helped(
    count: int, where: str, work: Callable[..., None], arguments: tuple[Any, ...]
) -> Iterator[Ranks]:
    """Start ``count - 1`` processes that call ``work(ranks, *arguments)``; this one is rank 0.

    The processors are shared out: meanwhile every process, this one too, computes on
    cores / count threads. The helpers end with the block, and with this process however it ends.

    Args:
        count: processes in all, >= 2.
        where: the public function named in errors.
        work: a function of a module; its error ends the work of all and is told by rank 0.
        arguments: what pickle can carry.

    Raises:
        RuntimeError: torch was built without its distributed package.
    """
    if not dist.is_available():
        raise RuntimeError(f"catapult_ext.{where}: workers > 1 needs a torch with distributed")
    before, threads = torch.get_num_threads(), max(1, cores() // count)
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    spawn = multiprocessing.get_context("spawn")  # a forked child must not use OpenMP
    helpers = [
        spawn.Process(
            target=_help,
            args=(store.port, rank, count, where, threads, os.getpid(), work, arguments),
            daemon=True,
        )
        for rank in range(1, count)
    ]
    torch.set_num_threads(threads)
    try:
        with _interrupts_held():
            for helper in helpers:
                helper.start()
        with Ranks(store, 0, count, where) as ranks:
            yield ranks
    finally:
        torch.set_num_threads(before)
        for helper in helpers:
            if helper.pid is not None:
                helper.kill()
                helper.join()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back; processes started meanwhile never see it, not even while they import."""
    if not hasattr(signal, "pthread_sigmask"):  # outside POSIX
        yield
        return
    resource_tracker.ensure_running()  # its start would let interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _help(
    port: int,
    rank: int,
    count: int,
    where: str,
    threads: int,
    parent: int,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    store = dist.TCPStore(HOST, port, is_master=False)
    with contextlib.suppress(Exception), Ranks(store, rank, count, where) as ranks:
        work(ranks, *arguments)
        threading.Event().wait()  # with signs of life, until the parent is done


def _end_with(parent: int) -> None:
    """End this process soon after its parent has ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
