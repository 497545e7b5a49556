"""Curvature in the dtype of the parameters, whatever autocast and TF32 are allowed elsewhere.

A GPU multiplies float32 convolutions in TF32 by default (operands of 10 bits), and matrices where
the user says so; on CPUs with AMX, oneDNN may take bfloat16.  Then products of operators would be
good to three digits, while error bounds rest on seven.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch

_Undo = Callable[[], None]
_LOCK = threading.Lock()
_users = 0  # contexts that are open, of all threads
_undo: list[_Undo] = []


@contextmanager
def no_autocast() -> Iterator[None]:
    """Autocast off and float32 products in float32 inside, a context or a decorator.

    Coarse products switch autocast on themselves.
    """
    off = torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False)
    with off[0], off[1], ieee():
        yield


@contextmanager
def ieee() -> Iterator[None]:
    """Convolutions, recurrent layers and matrix products of float32 in IEEE float32 inside.

    On CUDA (cuDNN, cuBLAS) and on the CPU (oneDNN).  The settings belong to the process: other
    threads compute in IEEE float32 meanwhile, and the settings are as they were once the last
    context is left.  Contexts nest.  bfloat16 under autocast is no float32, and stays.
    """
    global _users
    with _LOCK:
        if _users == 0:
            _undo[:] = _switched()
        _users += 1
    try:
        yield
    finally:
        with _LOCK:
            _users -= 1
            if _users == 0:
                for take_back in _undo:
                    take_back()


def _switched() -> list[_Undo]:
    """Switch everything to IEEE; returns what takes that back, in the order in which it has to be.

    The old switches are for torch before 2.9 and for models that read them, as
    ``torch.backends.cudnn.flags`` does: torch refuses that where only the new ones were set.  They
    write to the new ones, which therefore are read before them and written after them.
    """
    kinds = [(kind, _own(kind, parent)) for kind, parent in _kinds()]
    undo = _old_switches()
    for kind, own in kinds:
        kind.fp32_precision = "ieee"
        undo.append(partial(setattr, kind, "fp32_precision", own))
    return undo


def _own(kind: Any, parent: Any) -> str:
    """The precision of one kind of operation; ``"none"`` where it may be what the parent says."""
    value = kind.fp32_precision
    return "none" if value == parent.fp32_precision else value


def _old_switches() -> list[_Undo]:
    """Switch ``allow_tf32`` and ``set_float32_matmul_precision``, where they can be read."""
    undo: list[_Undo] = []
    with suppress(RuntimeError):  # the user has set the new switches against them
        convolutions = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        undo.append(partial(setattr, torch.backends.cudnn, "allow_tf32", convolutions))
    with suppress(RuntimeError):
        matrices = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        undo.append(partial(torch.set_float32_matmul_precision, matrices))
    return undo


def _kinds() -> list[tuple[Any, Any]]:
    """Kinds of operations that have a switch of their own, each with where it inherits from."""
    known = torch.backends
    kinds = [
        (known.cudnn, "conv", known.cudnn),
        (known.cudnn, "rnn", known.cudnn),
        (known.cuda, "matmul", known),
        (known.mkldnn, "conv", known.mkldnn),
        (known.mkldnn, "rnn", known.mkldnn),
        (known.mkldnn, "matmul", known.mkldnn),
    ]
    found = [(getattr(owner, name, None), parent) for owner, name, parent in kinds]
    return [(kind, parent) for kind, parent in found if hasattr(kind, "fp32_precision")]
