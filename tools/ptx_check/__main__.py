"""Runs the tests of every operation on nvcc's PTX: ``python tools/ptx_check [pytest arguments]``.

nvcc compiles every ``csrc/ops/*/*.cu`` to PTX. The tests of the back end ``cuda_emulated`` then
run, but each kernel launch goes to an interpreter of that PTX: wrong numbers fail a test, and so
does an access outside the tensors of the call, a misaligned one, or a race (two threads, one word,
a write, and no barrier between). Instructions issued, sectors a request and passes over shared
memory are counted for each kernel and printed.

Exit status: 0 all right, 1 a test failed or a kernel never ran, 2 the PTX holds what the
interpreter does not know (named with its line), 77 no nvcc here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOOLS))

from ptx_check import report, sources  # noqa: E402
from ptx_check.interpreter import Interpreter, Unknown  # noqa: E402


def run_tests(csrc: Path, ops: list[str] | None, arguments: list[str], counts: Path) -> int:
    """Status of pytest, whose counts are left in that file."""
    environment = {**os.environ, "PTX_CHECK_CSRC": str(csrc), "PTX_CHECK_COUNTS": str(counts)}
    environment["PTX_CHECK_OPS"] = " ".join(ops or [])
    environment["PYTHONSAFEPATH"] = "1"  # an unbuilt checkout must not hide the installed package
    paths = [str(TOOLS), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "ptx_check.plugin", *arguments]
    return subprocess.run(command, env=environment, cwd=sources.ROOT).returncode


def main() -> int:
    """Run the tests on the PTX and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csrc", type=Path, default=sources.CSRC, help="where the sources are")
    parser.add_argument("--op", action="append", help="this op only; may be given several times")
    parser.add_argument("--json", type=Path, help="leave the counts in this file")
    options, arguments = parser.parse_known_args()
    if shutil.which("nvcc") is None:
        print("ptx_check: skipped, no nvcc here")
        return 77
    # where an installed package finds the sources of the host code
    os.environ.setdefault("CATAPULT_CSRC", str(sources.CSRC))
    try:
        Interpreter(sources.all_ptx(options.csrc.resolve(), options.op))
    except Unknown as unknown:
        print(f"ptx_check: the interpreter does not know\n{unknown}", end="")
        return 2
    whole = not arguments and not options.op
    with tempfile.TemporaryDirectory() as folder:
        counts = options.json or Path(folder) / "counts.json"
        status = run_tests(
            options.csrc.resolve(),
            options.op,
            arguments or ["-k", "cuda_emulated", "python_tests/ops"],
            counts.resolve(),
        )
        kernels = json.loads(counts.read_text())
    print(report.table(kernels))
    never = [name for name, k in kernels.items() if k["entry"] and not k["launches"]]
    for name in never if whole else []:
        print(f"FAILED {name} never ran")
    print(f"ptx_check: {sum(k['entry'] for k in kernels.values())} kernels, tests: {status}")
    return 1 if status or (whole and never) else 0


if __name__ == "__main__":
    sys.exit(main())
