"""Memory that this process can still take."""

from __future__ import annotations

import contextlib
import os
import re
import sys


def free_bytes() -> int:
    """The least of what the machine, the control group and the limits of the process leave."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        with open("/proc/meminfo") as file:
            match = re.search(r"MemAvailable:\s+(\d+)", file.read())
        free = int(match[1]) * 1024 if match else free
        limits = []
        for name in ("max", "current"):  # "max" is no number where there is no limit
            with open(f"/sys/fs/cgroup/memory.{name}") as file:
                limits.append(int(file.read()))
        free = min(free, limits[0] - limits[1])
    except (OSError, ValueError):
        pass
    return max(min(free, _below_the_limit()), 1)


def _below_the_limit() -> int:
    """What RLIMIT_AS leaves of the address space; all where it has no limit."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            with open("/proc/self/statm") as file:
                return limit - int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return sys.maxsize
