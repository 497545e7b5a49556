"""Memory that Python has freed, returned from the C library to the system.

glibc keeps the fragments of freed blocks.  After two products with the NTK of a ResNet-20 on 256
images, 32 at a time in float32, the process keeps 300 MiB resident with :func:`return_freed_memory`
after each chunk, and 383 to 410 MiB without it (two runs each).  The times do not differ by more
than the runs do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Glibc's ``malloc_trim``; None with another C library."""
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return None


def return_freed_memory() -> None:
    """Return free memory fragments to the system, if the C library has a function for it."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
