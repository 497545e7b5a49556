"""A pytest plugin for a system that does not tell its memory: `pytest -p bare_system`.

``BARE_SYSTEM=absent`` takes os.sysconf away; otherwise it raises, as it does on macOS for the
number of free pages. Neither /proc/meminfo nor control groups are there.
"""

import builtins
import os

from catapult_ext import _free_memory


def _refuse(name):
    raise ValueError(f"unrecognized configuration name {name}")


def _opened(path, *rest, **options):
    if str(path).startswith(("/proc/meminfo", "/sys/")):
        raise FileNotFoundError(path)
    return builtins.open(path, *rest, **options)


def pytest_sessionstart():
    """After the imports of pytest's own plugins, before the first test."""
    _free_memory.open = _opened
    if os.environ.get("BARE_SYSTEM") == "absent":
        del os.sysconf
    else:
        os.sysconf = _refuse
