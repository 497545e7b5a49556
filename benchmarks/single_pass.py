"""The stand-alone single-pass loop of toy_gd (native/toy_gd_single_pass.cpp), through ctypes."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from catapult_ext.testing.toy_cases import ToyProblem

SOURCE = Path(__file__).resolve().parent / "native" / "toy_gd_single_pass.cpp"


@cache
def compiled(inputs: int, samples: int) -> Callable[[ToyProblem, int], Tensor] | None:
    """The loop for this problem size: (problem, steps) -> loss (R, steps + 1); None: no compiler.

    The width must be a multiple of 16, everything float32 and contiguous.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    library = Path(tempfile.mkdtemp(prefix="catapult-bench-")) / "single_pass.so"
    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC"]
    sizes = [f"-DINPUTS={inputs}", f"-DSAMPLES={samples}"]
    subprocess.run([compiler, *flags, *sizes, str(SOURCE), "-o", str(library)], check=True)
    call = ctypes.CDLL(str(library)).toy_gd_single_pass

    def loop(problem: ToyProblem, steps: int) -> Tensor:
        U, v, x, y, eta = problem
        assert x.shape == (samples, inputs)
        assert U.shape[1] % 16 == 0
        assert U.dtype == torch.float32
        loss = U.new_empty(len(U), steps + 1)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (U, v, x, y, eta)]
        sizes = [ctypes.c_int(n) for n in (*U.shape[:2], steps, torch.get_num_threads())]
        call(*pointers, *sizes, ctypes.c_void_p(loss.data_ptr()))
        return loss

    return loop
