#!/usr/bin/env python3
"""Everything there is to do on a GPU, in one command and nine minutes: tools/gpu_check.py.

From a plain checkout with an installed torch and no network: builds the module for this GPU (cmake,
ninja and nvcc must be there; torch's own pybind11 headers serve where the package is missing), runs
every test of the `cuda` back end, watches a short list under compute-sanitizer, measures the ops,
and writes one JSON file and a table. A stage that fails does not stop the next ones.

``--emulated`` proves the script itself without a GPU: the same stages on the emulated back end, the
sanitizers of the compiler in the place of compute-sanitizer. Its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ["memcheck", "racecheck", "synccheck", "initcheck"]


class Check:
    """The stages, their shared paths and the clock."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.emulated = options.emulated
        self.deadline = time.monotonic() + 60 * options.minutes
        self.work = ROOT / "build" / ("gpu_check_emulated" if self.emulated else "gpu_check")
        self.site = self.work / "site"
        self.out = options.out
        self.tests = options.tests
        self.record: dict[str, Any] = {"stages": {}, "emulated": self.emulated}
        self.backend = "emulated" if self.emulated else "cuda"

    def left(self, share: float = 1.0, keep: float = 0.0) -> float:
        """Seconds a command may take: a share of what is left, less what later stages need."""
        return max(5.0, share * (self.deadline - time.monotonic() - keep))

    def run(self, command: list[str], seconds: float, **extra: str) -> tuple[int, str]:
        """Exit status and output of a command; 124 where it ran out of time."""
        environment = dict(os.environ, PYTHONPATH=str(self.site), PYTHONSAFEPATH="1", **extra)
        environment["CATAPULT_CSRC"] = str(ROOT / "csrc")
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                timeout=seconds,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        except subprocess.TimeoutExpired as expired:
            said = expired.stdout or b""
            text = said.decode(errors="replace") if isinstance(said, bytes) else said
            return 124, f"{text}\nstopped after {seconds:.0f} s"
        return done.returncode, done.stdout

    def stage(self, name: str, function: Callable[[], dict[str, Any]]) -> None:
        """Run one stage whatever the earlier ones did, and save what is known so far."""
        start = time.monotonic()
        try:
            result = function()
        except Exception as error:
            result = {"status": "failed", "why": f"{type(error).__name__}: {error}"}
        result["seconds"] = round(time.monotonic() - start, 1)
        self.record["stages"][name] = result
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.record, indent=1))
        why = f"  {result['why']}" if "why" in result else ""
        print(f"{name:12s} {result['status']:8s} {result['seconds']:6.1f} s{why}", flush=True)

    # --- stages ----------------------------------------------------------------------------------
    def environment(self) -> dict[str, Any]:
        """Machine, versions, commit."""
        import torch

        found: dict[str, Any] = {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "cores": os.cpu_count(),
            "commit": self.run(["git", "rev-parse", "HEAD"], 10)[1].strip(),
        }
        if shutil.which("nvcc"):
            found["nvcc"] = self.run(["nvcc", "--version"], 20)[1].splitlines()[-2]
        if not self.emulated:
            if not torch.cuda.is_available():
                return {"status": "failed", "why": "torch sees no CUDA device", **found}
            found["gpu"] = torch.cuda.get_device_name()
            found["capability"] = "".join(map(str, torch.cuda.get_device_capability()))
            query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv"]
            if shutil.which("nvidia-smi"):
                found["nvidia_smi"] = self.run(query, 20)[1].splitlines()[-1]
        return {"status": "ok", **found}

    def build(self) -> dict[str, Any]:
        """The package and its module in a folder of their own; the checkout is left alone."""
        package = self.site / "catapult_ext"
        shutil.rmtree(package, ignore_errors=True)
        hidden = shutil.ignore_patterns("_C*.so", "__pycache__")
        shutil.copytree(ROOT / "catapult_ext", package, ignore=hidden)
        capability = self.record["stages"]["environment"].get("capability", "90")
        version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
        build = self.work / "cmake"
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        configure = ["cmake", *generator, "-S", str(ROOT), "-B", str(build)]
        configure += [f"-DCMAKE_INSTALL_PREFIX={package}", f"-DPython_EXECUTABLE={sys.executable}"]
        configure += [f"-DCATAPULT_VERSION={version.group(1) if version else '0'}"]
        configure += [f"-DCATAPULT_CUDA={'OFF' if self.emulated else 'ON'}"]
        configure += [f"-DCMAKE_CUDA_ARCHITECTURES={capability}", *pybind11_options()]
        jobs = str(os.cpu_count() or 1)
        for command in (
            configure,
            ["cmake", "--build", str(build), "-j", jobs],
            ["cmake", "--install", str(build)],
        ):
            status, said = self.run(command, self.left(keep=60))
            if status:
                return {"status": "failed", "why": f"{command[:3]}", "output": said[-4000:]}
        load = "import catapult_ext, json; print(json.dumps(catapult_ext.build_info()))"
        if self.emulated:
            load += "; from catapult_ext.testing import emulated; emulated.emulated_module()"
        status, said = self.run([sys.executable, "-c", load], self.left(keep=30))
        if status:
            return {"status": "failed", "why": "the module does not load", "output": said[-4000:]}
        return {"status": "ok", "build_info": json.loads(said.splitlines()[0])}

    def suite(self) -> dict[str, Any]:
        """The whole test suite on this back end; counts and the names of what failed."""
        report = self.work / "tests.xml"
        report.unlink(missing_ok=True)
        chosen = "cuda_emulated" if self.emulated else "cuda and not emulated"
        command = [sys.executable, "-m", "pytest", "-q", "-k", chosen, "--tb=short", "-p"]
        command += ["no:cacheprovider", "--continue-on-collection-errors", f"--junitxml={report}"]
        command += self.tests
        status, said = self.run(command, self.left(0.5, keep=60))
        if not report.exists():
            return {"status": "failed", "why": said.strip()[-300:], "output": said[-4000:]}
        result: dict[str, Any] = dict.fromkeys(("passed", "failed", "skipped"), 0)
        names = []
        for case in ElementTree.parse(report).iter("testcase"):
            kinds = {child.tag for child in case}
            if kinds & {"failure", "error"}:
                names.append(f"{case.get('classname')}::{case.get('name')}")
                result["failed"] += 1
            else:
                result["skipped" if "skipped" in kinds else "passed"] += 1
        counts = ", ".join(f"{n} {what}" for what, n in result.items())
        good = status == 0 and result["passed"] > 0
        extra = {} if good else {"output": said[-6000:]}
        return {
            "status": "ok" if good else "failed",
            "why": counts,
            "names_failed": names,
            **result,
            **extra,
        }

    def sanitizers(self) -> dict[str, Any]:
        """Each tool over every op once, small."""
        smoke = [sys.executable, str(ROOT / "tools" / "gpu_smoke.py"), self.backend]
        results = {}
        tools = ["address", "thread"] if self.emulated else TOOLS
        if not self.emulated and shutil.which("compute-sanitizer") is None:
            return {"status": "skipped", "why": "compute-sanitizer is not installed"}
        for i, tool in enumerate(tools):
            if self.emulated:
                command = [str(ROOT / "tools" / "with_sanitizer"), tool, *smoke]
            else:
                command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *smoke]
            share = 0.6 / (len(tools) - i)
            # Without torch's caching, every tensor has an end that memcheck can see.
            status, said = self.run(command, self.left(share), PYTORCH_NO_CUDA_MEMORY_CACHING="1")
            results[tool] = {"exit": status, "output": said[-3000:] if status else ""}
        bad = [tool for tool, result in results.items() if result["exit"]]
        why = f"not clean: {', '.join(bad)}" if bad else f"clean: {', '.join(tools)}"
        return {"status": "failed" if bad else "ok", "why": why, "tools": results}

    def benchmarks(self) -> dict[str, Any]:
        """Times, rates and shares of the machine's limits."""
        table = self.work / "bench.json"
        table.unlink(missing_ok=True)
        seconds = self.left(0.9)
        script = [sys.executable, str(ROOT / "tools" / "gpu_bench.py"), self.backend, str(table)]
        status, said = self.run([*script, f"{0.8 * seconds:.0f}"], seconds)
        result = json.loads(table.read_text()) if table.exists() else {}
        extra = {"output": said[-3000:], "why": f"exit {status}"} if status else {}
        return {"status": "failed" if status else "ok", **result, **extra}


def pybind11_options() -> list[str]:
    """Where the headers are: the package, or the copy that every torch carries."""
    try:
        import pybind11
    except ImportError:
        import torch

        return [f"-DCATAPULT_PYBIND11_INCLUDE={Path(torch.__file__).parent / 'include'}"]
    return [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]


def print_table(record: dict[str, Any]) -> None:
    """The measured rows, for people."""
    stage = record["stages"].get("benchmarks", {})
    if "peaks" not in stage:
        return
    print("\nmachine: " + ", ".join(f"{k} {v:.0f}" for k, v in stage["peaks"].items()))
    print(
        f"{'case':16s} {'ms':>10s} {'us/step':>9s} {'GF/s':>9s} {'GEMM':>6s} {'GB/s':>8s} "
        f"{'copy':>6s} {'torch':>8s}  goal"
    )
    for name, row in stage["rows"].items():
        if "error" in row:
            print(f"{name:16s} {row['error'][:100]}")
            continue
        speedup = f"{row['speedup']:7.1f}x" if "speedup" in row else f"{'':8s}"
        print(
            f"{name:16s} {row['ours']['seconds'] * 1e3:10.3f} {row['microseconds_per_step']:9.2f} "
            f"{row['gflops']:9.0f} {row['share_of_gemm']:6.1%} {row['gbytes_per_second']:8.0f} "
            f"{row['share_of_copy']:6.1%} {speedup}  {row['goal']}"
        )


def main() -> int:
    """Run the stages in order; exit status 0 where all are ok."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emulated", action="store_true", help="prove the script without a GPU")
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit of everything")
    parser.add_argument("--out", type=Path, help="JSON file; default benchmarks/results/<gpu>.json")
    parser.add_argument("tests", nargs="*", default=["python_tests"], help="tests to run")
    options = parser.parse_args()
    folder = ROOT / "benchmarks" / "results"
    options.out = (options.out or folder / "gpu_check.json").resolve()
    if options.emulated and options.out.parent == folder:
        options.out = ROOT / "build" / "gpu_check_emulated.json"  # no times to be kept
    check = Check(options)
    for name in ("environment", "build", "suite", "sanitizers", "benchmarks"):
        check.stage(name, getattr(check, name))
    print_table(check.record)
    print(f"\nwritten: {options.out}")
    for name, found in check.record["stages"].items():
        if found["status"] == "skipped":
            print(f"NOT CHECKED: {name} ({found['why']})")
    return 0 if all(s["status"] != "failed" for s in check.record["stages"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
