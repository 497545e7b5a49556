"""The emulation itself: sound kernels run right, and each planted fault is found by its tool."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from catapult_ext.testing import emulated, emulated_build

ZOO = Path(__file__).resolve().parent / "zoo"
SOUND = ["dot", "gram", "warp", "cooperative", "flags", "pipeline", "mma"]
ORDERS = ["forward", "reverse", "random"]

pytestmark = pytest.mark.skipif(
    bool(emulated.why_unavailable()), reason=emulated.why_unavailable() or "available"
)


def build(sanitize=""):
    csrc = emulated.sources()
    files = [ZOO / "sound.cu", ZOO / "faulty.cu", ZOO / "main.cpp"]
    files += sorted(csrc.glob("emulation/*.cpp"))
    units = [emulated_build.Unit(csrc, [f], sanitize, [f"-I{ZOO}"]) for f in files]
    return emulated_build.link(units, "zoo", sanitize, ["-pthread", "-rdynamic"])


@pytest.fixture(scope="module")
def plain():
    return build()


@pytest.fixture(scope="module")
def address():
    return build("address")


@pytest.fixture(scope="module")
def thread():
    if shutil.which("setarch") is None:
        pytest.skip("ThreadSanitizer needs setarch here")
    return build("thread")


def run(program, *names, order="forward", skip=""):
    """Standard output and error of the zoo."""
    command = [str(program), *names]
    if shutil.which("setarch"):  # ThreadSanitizer wants the addresses it knows
        command = ["setarch", "-R", *command]
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("CATAPULT_EMU", "LD_PRELOAD"))},
        "CATAPULT_EMU_ORDER": order,
        "CATAPULT_EMU_SKIP": skip,
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.stdout, done.stderr


def line_of(text, file="faulty.cu"):
    lines = (ZOO / file).read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if text in line)


@pytest.mark.parametrize("order", ORDERS)
def test_sound_kernels(plain, order):
    out, _ = run(plain, *SOUND, order=order)
    assert out.split("\n")[:-1] == [f"{name} ok" for name in SOUND]


@pytest.mark.parametrize("order", ["reverse"])
def test_sound_kernels_under_address_sanitizer(address, order):
    out, err = run(address, *SOUND, order=order)
    assert out.split("\n")[:-1] == [f"{name} ok" for name in SOUND], err


@pytest.mark.parametrize("order", ["random"])
def test_sound_kernels_have_no_race(thread, order):
    out, err = run(thread, *SOUND, order=order)
    assert out.split("\n")[:-1] == [f"{name} ok" for name in SOUND], err


@pytest.mark.parametrize("name", ["missing_barrier", "missing_wait", "uninitialised"])
@pytest.mark.parametrize("order", ORDERS)
def test_wrong_result(plain, name, order):
    out, _ = run(plain, name, order=order)
    assert out == f"{name} wrong\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("divergent_barrier", ["divergent barrier", "block (0,0,0) thread (32,0,0)", "faulty.cu:"]),
        (
            "barrier_against_shuffle",
            ["deadlock", "block (1,0,0)", "32 threads wait at __shfl_sync", "thread (0,0,0)"],
        ),
        ("divergent_shuffle", ["__shfl_sync while other lanes", "thread (1,0,0)"]),
        ("grid_sync_not_cooperative", ["not cooperative", "thread (0,0,0)"]),
        (
            "grid_sync_with_exit",
            ["deadlock", "31 threads wait at grid_sync", "1 threads have ended"],
        ),
        ("cooperative_too_large", ["500 blocks is more than can be resident"]),
        ("too_much_shared", ["invalid launch", "307200 bytes"]),
        ("misaligned", ["misaligned access of 16 bytes", "thread (0,0,0)"]),
        ("polls_for_ever", ["deadlock", "a polling loop"]),
    ],
)
def test_report(plain, name, words):
    out, _ = run(plain, name)
    assert out.startswith(f"{name} error: catapult_ext.zoo: ")
    assert all(word in out for word in words), out


@pytest.mark.parametrize(
    ("name", "what", "line"),
    [
        ("out_of_bounds_global", "heap-buffer-overflow", "p.x[threadIdx.x + 1] = 1.0f"),
        ("out_of_bounds_dynamic", "heap-buffer-overflow", "shared[threadIdx.x + 1] = 1.0f"),
        ("out_of_bounds_static", "out of bounds for type", "shared[threadIdx.x + p.n"),
    ],
)
def test_bad_address(address, name, what, line):
    out, err = run(address, name)
    assert out == ""
    assert what in err
    assert f"faulty.cu:{line_of(line)}" in err


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("missing_barrier", "= shared[kThreads - 1 - threadIdx.x];"),
        ("missing_syncwarp", "shared[threadIdx.x ^ 1] - other"),
        ("race_between_blocks", "p.x[0] += 1.0f"),
        ("missing_grid_sync", "+= p.x[(1 - blockIdx.x) * 32 + 5]"),
        ("race_same_thread", "race_same_thread_kernel(Data p) {"),
    ],
)
@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_race(thread, name, line, order):
    out, err = run(thread, name, order=order)
    assert out == ""
    assert "data race" in err
    assert f"faulty.cu:{line_of(line)}" in err


def test_skipping_a_barrier_by_its_line(plain):
    lines = (ZOO / "sound.cu").read_text().splitlines()
    barriers = [i for i, line in enumerate(lines, 1) if "__syncthreads();" in line][:2]
    for line in barriers:
        assert run(plain, "gram", skip=f"sound.cu:{line}")[0] == "gram wrong\n"
    assert run(plain, "gram", skip="elsewhere.cu:26")[0] == "gram ok\n"
    assert run(plain, "gram", skip=f"ound.cu:{barriers[0]}")[0] == "gram ok\n"
    assert "must be file:line" in run(plain, "gram", skip="sound.cu")[0]
    assert "must be forward, reverse or random" in run(plain, "gram", order="sideways")[0]


def test_skipping_a_bounds_check(address):
    line = line_of("if (in_bounds(row < p.n && col < p.n))", "sound.cu")
    assert "heap-buffer-overflow" in run(address, "gram", skip=f"sound.cu:{line}")[1]
