"""The package as installed: import cost, entry points from the checkout, one OpenMP runtime."""

import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import pytest
import torch

import catapult_ext as cx

ROOT = Path(__file__).resolve().parent.parent


def python(*arguments, cwd=None, env=None):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_import_is_light():
    """Only torch and numpy, so that `import catapult_ext` adds little to torch's own import."""
    heavy = "matplotlib rich typer sklearn scipy pytest pandas"
    code = f"""
import sys
import catapult_ext
loaded = [m for m in {heavy.split()!r} if m in sys.modules]
assert not loaded, loaded
"""
    python("-c", code, cwd="/")


def test_one_openmp_runtime_is_mapped():
    code = """
import catapult_ext
print(open("/proc/self/maps").read())
"""
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc/self/maps")
    maps = python("-c", code, cwd="/")
    runtimes = set(re.findall(r"\S*lib(?:g|i)?omp5?[.-]\S*", maps))
    assert len(runtimes) == 1, runtimes


def test_forced_isa_is_active(tmp_path):
    import os

    import catapult_ext as cx

    for isa in cx.build_info()["usable_isas"]:
        code = "import catapult_ext as cx; print(cx.build_info()['active_isa'])"
        out = python("-c", code, cwd=tmp_path, env={**os.environ, "CATAPULT_FORCE_ISA": isa})
        assert out.strip() == isa


def test_unknown_forced_isa_is_one_clear_error(tmp_path):
    import os

    done = subprocess.run(
        [sys.executable, "-c", "import catapult_ext"],
        cwd=tmp_path,
        env={**os.environ, "CATAPULT_FORCE_ISA": "avx9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "CATAPULT_FORCE_ISA must be one of (baseline" in done.stderr


OTHER = "_C.cpython-399-x86_64-linux-gnu.so"
NATIVE = f"_C{EXTENSION_SUFFIXES[0]}"


@pytest.mark.parametrize(
    ("binary", "checkout", "told"),
    [
        (None, True, r"is not built in the checkout .*pip install -e \.`.* in another folder"),
        (None, False, "is missing from .*: reinstall catapult_ext"),
        (OTHER, False, r"another Python \(_C.cpython-399.*reinstall catapult_ext"),
        (OTHER, True, r"another Python .*pip install -e \."),
        (NATIVE, False, r"there but does not load: reinstall catapult_ext \(_C"),
        (NATIVE, True, r"there but does not load: build it with `pip install -e \.`"),
    ],
)
def test_a_native_module_that_does_not_load_names_the_way_out(tmp_path, binary, checkout, told):
    package = tmp_path / "catapult_ext"
    package.mkdir()
    for name in ("__init__.py", "_native.py"):
        shutil.copy(Path(cx.__file__).parent / name, package)
    (package / "__init__.py").write_text("")
    (tmp_path / "torch.py").write_text("")  # not what is looked at, and slow to import
    if binary:
        (package / binary).write_bytes(b"no library")
    if checkout:
        (tmp_path / "csrc").mkdir()
    code = "import catapult_ext._native"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert re.fullmatch(f"ImportError: catapult_ext._C, the native module, .*{told}.*", last), last


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "pytest", "-q", "python_tests/ops/test_tridiag_eigh.py", "-k", "special"],
        ["-m", "benchmarks", "--quick", "benchmarks/bench_tridiag_eigh.py"],
    ],
    ids=["pytest", "benchmarks"],
)
def test_entry_points_work_from_the_checkout(arguments):
    python(*arguments, cwd=ROOT)


def test_empty_arrays_of_numpy_are_empty_batches():
    """NumPy gives them strides of 0, which torch calls contiguous."""

    def empty(*shape):
        return torch.from_numpy(np.zeros(shape))

    ops = cx.ops
    assert ops.lanczos_dense(empty(0, 4, 4)).eigenvalues.shape == (0, 1)
    assert ops.tridiag_eigh(empty(0, 4), empty(0, 3))[0].shape == (0, 4)
    assert ops.toy_scalar(empty(0), empty(0), 3).h.shape == (0,)
    assert ops.gram([empty(0, 3)], [empty(0, 2, 5)], scale=[1.0], bias=[0.0]).shape == (0, 0)
    ops.lanczos_step(empty(0, 3, 4), empty(0, 2), empty(0, 2), empty(0, 4), 0)
