"""Memory that this process can still take."""

from __future__ import annotations

import contextlib
import os
import re
import sys

import torch

#: Taken to be free where the system tells neither what is free nor what it has.
UNKNOWN = 4 << 30


def free_bytes(device: torch.device | None = None) -> int:
    """Bytes left by the machine, the control group and the limits of the process; or by a GPU."""
    if device is not None and device.type == "cuda":
        # what torch's allocator keeps for the next tensors is as good as free
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return max(min(_of_the_machine(), _of_the_control_group(), _below_the_limit()), 1)


def _of_the_machine() -> int:
    """Free memory on Linux; half of the built-in memory on macOS, which reports nothing else."""
    with contextlib.suppress(OSError):
        with open("/proc/meminfo") as file:
            match = re.search(r"MemAvailable:\s+(\d+)", file.read())
        if match:
            return int(match[1]) * 1024
    page = _sysconf("SC_PAGE_SIZE")
    free, built_in = _sysconf("SC_AVPHYS_PAGES"), _sysconf("SC_PHYS_PAGES")
    if page and free:
        return page * free
    return page * built_in // 2 if page and built_in else UNKNOWN


def _of_the_control_group() -> int:
    """Memory left in the control group; unlimited without a group or a limit."""
    with contextlib.suppress(OSError, ValueError):  # "max" is no number where there is no limit
        limits = []
        for name in ("max", "current"):
            with open(f"/sys/fs/cgroup/memory.{name}") as file:
                limits.append(int(file.read()))
        return limits[0] - limits[1]
    return sys.maxsize


def _below_the_limit() -> int:
    """Address space left under RLIMIT_AS; unlimited where it sets no limit."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            with open("/proc/self/statm") as file:
                return limit - int(file.read().split()[0]) * resource.getpagesize()
    return sys.maxsize


def _sysconf(name: str) -> int:
    """One number of the system, or 0 where it does not tell (macOS lacks SC_AVPHYS_PAGES)."""
    try:
        return max(int(os.sysconf(name)), 0)
    except (AttributeError, OSError, ValueError):
        return 0


def show_bytes(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def ran_out(error: Exception) -> bool:
    """Whether memory ran out, of a device or, as torch's allocator says it, of the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
