"""Shared fixtures: `backend` runs a test on every way an op can be executed."""

import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _unshadow():
    """Keep the checkout, whose package may lack _C, from shadowing the installed package."""
    if not list((ROOT / "catapult_ext").glob("_C.*so")):
        sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]


_unshadow()
# Where an installed package finds the CUDA sources that the emulated back end compiles.
os.environ.setdefault("CATAPULT_CSRC", str(ROOT / "csrc"))

import pytest  # noqa: E402
import torch  # noqa: E402

from catapult_ext.testing import backends, pretended  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _outside_the_checkout(tmp_path_factory):
    """Subprocesses (`python -m catapult_ext`) start where no checkout shadows the package."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("cwd"))
    yield
    os.chdir(before)


@pytest.fixture(params=backends(), ids=lambda b: b.name)
def backend(request):
    """One test per back end; one that cannot run is skipped with its reason."""
    if request.param.unavailable:
        pytest.skip(request.param.unavailable)
    return request.param


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """The marks ``gpu`` and ``emulated`` follow the back end or the device of a test."""
    for item in items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        names = (getattr(given.get("backend"), "name", ""), given.get("device"))
        for name, mark in (("cuda", "gpu"), ("cuda_emulated", "emulated")):
            if name in names:
                item.add_marker(mark)


@pytest.fixture(params=["cpu", "pretended", "cuda"])
def device(request):
    """One test per device; the pretended one runs the emulated kernels and mixes no devices."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param != "pretended":
        yield torch.device(request.param)
        return
    if pretended.why_unavailable():
        pytest.skip(pretended.why_unavailable())
    with pretended.pretended_cuda():
        yield pretended.DEVICE


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def interruptible():
    """A shell starts background jobs with SIGINT ignored, and then Python installs no handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
