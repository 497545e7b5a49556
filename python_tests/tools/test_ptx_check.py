"""The interpreter of nvcc's PTX: planted faults of the kernels are found, each by its name."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from catapult_ext import _native, ops
from catapult_ext.testing import emulated
from catapult_ext.testing.toy_cases import toy_problem

ROOT = Path(__file__).resolve().parents[2]
REASON = emulated.why_unavailable() or ("" if shutil.which("nvcc") else "no nvcc here")
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "available")

GEMM = "core/cuda/gemm_tile.cuh"
BARRIER = "    __syncthreads();  // the piece is there, and everybody has read the stage"
ROWS = "{at[0], at[8 * pitch], at[4], at[8 * pitch + 4]}"
WAIT = "copy_wait<kAhead - 1>"
BOUND = "in_bounds(i < from.count)"
# op, file, text, what it becomes, tests, what the report says
FAULTS = {
    "a dropped barrier": ("gram", GEMM, BARRIER, "    //", "reduced_precision and 37", "race"),
    "a wrong fragment row": (
        "gram",
        GEMM,
        ROWS,
        ROWS.replace("at[4], at[8 * pitch + 4]", "at[8 * pitch + 4], at[4]"),
        "reduced_precision and 37",
        "AssertionError",
    ),
    "a wait that is one too late": (
        "gram",
        GEMM,
        WAIT,
        WAIT.replace(" - 1", ""),
        "reduced_precision and 37",
        "was not waited for",
    ),
    "a missing bound": ("gram", GEMM, BOUND, "true", "reduced_precision and 37", "in none of the"),
    "a missing warp barrier": (
        "tridiag_eigh",
        "ops/tridiag_eigh/tridiag_eigh_kernel.cuh",
        "__syncwarp();",
        ";",
        "matches_dense_eigh",
        "race",
    ),
}


def check(csrc, op, tests):
    command = [sys.executable, str(ROOT / "tools" / "ptx_check"), "--csrc", str(csrc), "--op", op]
    command += ["-x", "-k", f"cuda_emulated and {tests}", f"python_tests/ops/test_{op}.py"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PTX_CHECK")}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def changed(folder, file, text, becomes):
    csrc = shutil.copytree(ROOT / "csrc", folder / "csrc")
    source = (csrc / file).read_text()
    assert text in source
    (csrc / file).write_text(source.replace(text, becomes))
    return csrc


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(tmp_path, fault):
    op, file, text, becomes, tests, said = FAULTS[fault]
    done = check(changed(tmp_path, file, text, becomes), op, tests)
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stdout


def test_sound_kernel_passes_and_is_counted():
    done = check(ROOT / "csrc", "tridiag_eigh", "matches_dense_eigh")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tridiag_eigh_kernel<double>: " in done.stdout
    assert " instructions issued" in done.stdout


def issued_a_step(monkeypatch, op, run, fewer, more):
    """Instructions that ``run(steps)`` issues for each step."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    from ptx_check import sources
    from ptx_check.interpreter import Interpreter

    interpreter = Interpreter(sources.all_ptx(ROOT / "csrc", [op]))

    def issued(steps):
        before = sum(interpreter.issued(name) for name in interpreter.bound)
        with _native.emulated(interpreter.proxy()):
            run(steps)
        return sum(interpreter.issued(name) for name in interpreter.bound) - before

    interpreter.take_over()
    try:
        return (issued(more) - issued(fewer)) / (more - fewer)
    finally:
        interpreter.hand_back()


@pytest.mark.parametrize(
    ("activation", "least", "most"), [("linear", 350, 430), ("relu", 17_000, 20_700)]
)
def test_instructions_of_a_step_of_toy_gd(monkeypatch, activation, least, most):
    """A warp's, at 1024 rows of 16 inputs, 32 samples; the first warp's own are included."""
    problem = toy_problem([0.5], width=1024, inputs=16, samples=32, dtype=torch.float32)

    def run(steps):
        copies = (t.clone() for t in problem)
        ops.toy_gd(*copies, steps, record_every=steps, activation=activation)

    warps = 8
    assert least <= issued_a_step(monkeypatch, "toy_gd", run, 2, 6) / warps <= most


def test_instructions_of_a_step_of_toy_lyapunov(monkeypatch):
    """A warp's: 32 paths of four cases, normal draws."""
    cases = torch.full((4,), 0.5, dtype=torch.float64)

    def run(steps):
        ops.toy_lyapunov(cases, 0.3 * cases, 0.8 * cases, steps, paths=32)

    assert 180 <= issued_a_step(monkeypatch, "toy_lyapunov", run, 16, 48) <= 225


def test_unknown_opcode_is_named_with_its_line(tmp_path):
    text = "  CATAPULT_DYNAMIC_SMEM(double, smem);\n"
    file = "ops/tridiag_eigh/tridiag_eigh_kernel.cuh"
    csrc = changed(tmp_path, file, text, text + '  asm volatile("nanosleep.u32 1;");\n')
    done = check(csrc, "tridiag_eigh", "matches_dense_eigh")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "unknown opcode nanosleep.u32" in done.stdout
    assert "tridiag_eigh_cuda.ptx:" in done.stdout
