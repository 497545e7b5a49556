"""A pytest plugin: tests of the back end ``cuda_emulated`` run nvcc's PTX instead."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from catapult_ext.testing import emulated

from .interpreter import Interpreter
from .report import summary
from .sources import all_ptx

_running: list[Interpreter] = []


def pytest_configure(config: pytest.Config) -> None:
    """Load the PTX once, and let the back end find it."""
    interpreter = Interpreter(
        all_ptx(Path(os.environ["PTX_CHECK_CSRC"]), os.environ.get("PTX_CHECK_OPS", "").split())
    )
    interpreter.take_over()
    proxy = interpreter.proxy()
    emulated.emulated_module = lambda: proxy  # type: ignore[assignment]
    _running.append(interpreter)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave the counts where the caller wants them."""
    interpreter = _running.pop()
    interpreter.hand_back()
    target = os.environ.get("PTX_CHECK_COUNTS")
    if target:
        Path(target).write_text(json.dumps(summary(interpreter.counts())))
