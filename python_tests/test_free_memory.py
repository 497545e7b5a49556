"""Free memory is known, or a stated guess, on systems that tell less than Linux does."""

import builtins
import io
import os

import pytest
import torch

import catapult_ext as cx
from catapult_ext import _free_memory

PAGE, BUILT_IN = 16384, 1 << 20  # an Apple laptop: 16 GiB in pages of 16 KiB


def lacking(monkeypatch, files=(), sysconf=None):
    """A system whose /proc and /sys hold only ``files``, text by path, and this sysconf."""

    def opened(path, *rest, **options):
        if str(path).startswith(("/proc/", "/sys/")):
            if path not in dict(files):
                raise FileNotFoundError(path)
            return io.StringIO(dict(files)[path])
        return builtins.open(path, *rest, **options)

    monkeypatch.setattr(_free_memory, "open", opened, raising=False)
    if sysconf == "absent":
        monkeypatch.delattr(os, "sysconf")
    else:
        monkeypatch.setattr(os, "sysconf", sysconf or refuse)


def refuse(name):
    raise ValueError("unrecognized configuration name")


def apple(name):
    return {"SC_PAGE_SIZE": PAGE, "SC_PHYS_PAGES": BUILT_IN}.get(name) or refuse(name)


MEMINFO = ("/proc/meminfo", "MemTotal: 99 kB\nMemAvailable:    5000000 kB\n")
GROUP = [("/sys/fs/cgroup/memory.max", "3000"), ("/sys/fs/cgroup/memory.current", "1000")]


@pytest.mark.parametrize(
    ("files", "sysconf", "expected"),
    [
        ([MEMINFO], None, 5_120_000_000),
        ([MEMINFO], "absent", 5_120_000_000),
        ([MEMINFO, *GROUP], None, 2000),
        ([MEMINFO, ("/sys/fs/cgroup/memory.max", "max\n"), GROUP[1]], None, 5_120_000_000),
        ([], apple, PAGE * BUILT_IN // 2),
        ([], lambda name: 4096 if name == "SC_PAGE_SIZE" else 1000, 4_096_000),
        ([], lambda name: -1, _free_memory.UNKNOWN),
        ([], None, _free_memory.UNKNOWN),
        ([], "absent", _free_memory.UNKNOWN),
    ],
)
def test_free_memory_is_what_the_system_tells(monkeypatch, files, sysconf, expected):
    monkeypatch.setattr(_free_memory, "_below_the_limit", lambda: 1 << 62)
    lacking(monkeypatch, files, sysconf)
    assert _free_memory.free_bytes() == expected


@pytest.mark.parametrize("sysconf", [apple, None, "absent"])
def test_operators_work_where_the_system_tells_nothing(monkeypatch, sysconf):
    lacking(monkeypatch, (), sysconf)
    model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
    x, y = torch.rand(8, 3), torch.rand(8, 2)
    for operator in (cx.NTK(model, x), cx.GGN(model, "half_mse", (x, y))):
        assert float(cx.eigsh(operator, k=1).eigenvalues[0]) > 0
        assert operator.plan.peak < _free_memory.free_bytes()
