#!/usr/bin/env python3
"""Everything there is to do on a GPU, in one command and nine minutes: tools/gpu_check.py.

From a plain checkout with an installed torch and no network: builds the module for this GPU (cmake,
ninja and nvcc must be there; torch's own pybind11 headers serve where the package is missing), runs
every test that uses the GPU (ops, and operators, eigsh, tracker, sweep and simulate on CUDA
tensors), watches each op under compute-sanitizer, whose tools must first find a planted fault,
measures the ops, and writes one JSON file and a table. A stage that fails does not stop the next
ones; each has its share of the time (``PLAN``), and what it leaves is the next one's.

``--emulated`` proves the script itself without a GPU: the same stages on the emulated back end, the
sanitizers of the compiler in the place of compute-sanitizer. Its times mean nothing.

Exit status: 0 all well, 1 something is not, 3 no GPU here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ["memcheck", "racecheck", "synccheck", "initcheck"]
ZOO = "python_tests/emulation/test_zoo.py"
# Faults that the compiler's sanitizers must find in the emulated build.
PLANTED = {"address": "test_bad_address", "thread": "test_race"}
# Seconds of each stage out of nine minutes, on 16 cores and one GPU; half a minute is in reserve.
PLAN = {"environment": 10, "build": 150, "suite": 140, "sanitizers": 120, "benchmarks": 90}


class Check:
    """The stages, their shared paths and the clock."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.emulated = options.emulated
        self.scale = options.minutes / 9.0
        self.deadline = time.monotonic() + self.scale * sum(PLAN.values())
        self.stage_end = self.deadline
        self.work = ROOT / "build" / ("gpu_check_emulated" if self.emulated else "gpu_check")
        self.site = self.work / "site"
        self.out = options.out
        self.tests = options.tests
        self.record: dict[str, Any] = {"stages": {}, "emulated": self.emulated}
        self.backend = "emulated" if self.emulated else "cuda"

    def left(self, share: float = 1.0) -> float:
        """Seconds a command may take: a share of what is left of its stage."""
        return max(0.0, share * (self.stage_end - time.monotonic()))

    def run(self, command: list[str], seconds: float, **extra: str) -> tuple[int, str]:
        """Exit status and output of a command; 124 where it ran out of time.

        It is stopped with all that it has started, as a program that a sanitizer leaves behind
        would keep the GPU.
        """
        environment = dict(os.environ, PYTHONPATH=str(self.site), PYTHONSAFEPATH="1", **extra)
        environment["CATAPULT_CSRC"] = str(ROOT / "csrc")
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                said, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                said, _ = process.communicate()
                return 124, f"{said}\nstopped after {seconds:.0f} s"
        return process.returncode, said

    def stage(self, name: str, function: Callable[[], dict[str, Any]]) -> None:
        """Run one stage whatever the earlier ones did, and save what is known so far."""
        start = time.monotonic()
        later = list(PLAN)[list(PLAN).index(name) + 1 :]
        self.stage_end = self.deadline - self.scale * sum(PLAN[other] for other in later)
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
            status, said = self.run(command, self.left())
            if status:
                return {"status": "failed", "why": f"{command[:3]}", "output": said[-4000:]}
        load = "import catapult_ext, json; print(json.dumps(catapult_ext.build_info()))"
        if self.emulated:
            load += "; from catapult_ext.testing import emulated; emulated.emulated_module()"
        status, said = self.run([sys.executable, "-c", load], self.left())
        if status:
            return {"status": "failed", "why": "the module does not load", "output": said[-4000:]}
        return {"status": "ok", "build_info": json.loads(said.splitlines()[0])}

    def suite(self) -> dict[str, Any]:
        """Every test marked for this back end; counts and the names of what failed."""
        report = self.work / "tests.xml"
        report.unlink(missing_ok=True)
        chosen = "emulated or on_device" if self.emulated else "gpu"
        command = [sys.executable, "-m", "pytest", "-q", "-m", chosen, "--tb=short", "-p"]
        command += ["no:cacheprovider", "--continue-on-collection-errors", f"--junitxml={report}"]
        command += self.tests
        status, said = self.run(command, self.left())
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
        """Each tool over a planted fault, which it must find, then over every op once, small."""
        if not self.emulated and shutil.which("compute-sanitizer") is None:
            return {"status": "skipped", "why": "compute-sanitizer is not installed"}
        tools = list(PLANTED) if self.emulated else TOOLS
        faults = self.work / "faults"
        if not self.emulated:
            source = str(ROOT / "tools" / "gpu_control" / "faults.cu")
            status, said = self.run(
                ["nvcc", "-arch=native", "-o", str(faults), source], self.left(0.2)
            )
            if status:
                return {
                    "status": "failed",
                    "why": "the planted faults do not compile",
                    "output": said,
                }
        smoke = [sys.executable, str(ROOT / "tools" / "gpu_smoke.py"), self.backend]
        results: dict[str, Any] = {}
        bad = []
        for i, tool in enumerate(tools):
            watch = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
            control = [*watch, str(faults), tool]
            if self.emulated:
                watch = [str(ROOT / "tools" / "with_sanitizer"), tool]
                control = [sys.executable, "-m", "pytest", "-q", f"{ZOO}::{PLANTED[tool]}"]
            share = 1.0 / (len(tools) - i)
            found = self.run(control, self.left(0.3 * share))
            # Without torch's caching, every tensor has an end that memcheck can see.
            clean = self.run([*watch, *smoke], self.left(share), PYTORCH_NO_CUDA_MEMORY_CACHING="1")
            why = [] if fault_found(*found, self.emulated) else ["its planted fault was not found"]
            why += [] if is_clean(*clean, self.emulated) else ["not clean"]
            output = "".join(said[-3000:] for _, said in (found, clean)) if why else ""
            results[tool] = {"exit": clean[0], "why": why, "output": output}
            bad += [f"{tool}: {', '.join(why)}"] if why else []
        why = "; ".join(bad) or f"clean, planted faults found: {', '.join(tools)}"
        return {"status": "failed" if bad else "ok", "why": why, "tools": results}

    def benchmarks(self) -> dict[str, Any]:
        """Times, rates and shares of the machine's limits."""
        table = self.work / "bench.json"
        table.unlink(missing_ok=True)
        seconds = self.left()
        script = [sys.executable, str(ROOT / "tools" / "gpu_bench.py"), self.backend, str(table)]
        status, said = self.run([*script, f"{0.8 * seconds:.0f}"], seconds)
        result = json.loads(table.read_text()) if table.exists() else {}
        extra = {"output": said[-3000:], "why": f"exit {status}"} if status else {}
        return {"status": "failed" if status else "ok", **result, **extra}


def summary(said: str) -> int | None:
    """Errors or hazards that compute-sanitizer counted; None where it attached to nothing."""
    found = re.findall(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (\d+)", said, re.MULTILINE)
    return sum(map(int, found)) if found else None


def fault_found(status: int, said: str, emulated: bool) -> bool:
    """Did a tool find what was planted for it?"""
    if emulated:  # the tests assert what the sanitizer says
        return status == 0 and re.search(r"\d+ passed", said) is not None and "skipped" not in said
    return status == 9 and (summary(said) or 0) > 0


def is_clean(status: int, said: str, emulated: bool) -> bool:
    """Did every op run, and right, under a tool that watched and had nothing to say?"""
    watched = emulated or summary(said) == 0
    return status == 0 and watched and re.search(r"^\w+: ok", said, re.MULTILINE) is not None


def why_no_gpu() -> str:
    """Why no stage can run here; empty where one can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a driver that is too old: one line is enough
        try:
            import torch
        except ImportError:
            return "torch is not installed"
        return "" if torch.cuda.is_available() else "torch sees no CUDA device"


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
        f"{'case':16s} {'ms':>10s} {'us/step':>9s} {'host ms':>8s} {'GF/s':>9s} {'GEMM':>13s} "
        f"{'GB/s':>8s} {'copy':>6s}  faster than; goal"
    )
    for name, row in stage["rows"].items():
        if "error" in row:
            print(f"{name:16s} {row['error'][:100]}")
            continue
        ours, gemm = row["ours"], f"{row['share_of_gemm']:.1%} {row['gemm'][:7]}"
        others = ", ".join(f"{ratio:.1f}x {other}" for other, ratio in row["speedup"].items())
        print(
            f"{name:16s} {ours['seconds'] * 1e3:10.3f} {row['microseconds_per_step']:9.2f} "
            f"{ours['host_seconds'] * 1e3:8.3f} {row['gflops']:9.0f} {gemm:>13s} "
            f"{row['gbytes_per_second']:8.0f} {row['share_of_copy']:6.1%}  {others}; {row['goal']}"
            f"{'' if ours['kernels_alone'] or record['emulated'] else ' (HOST TIME INCLUDED)'}"
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
    missing = "" if options.emulated else why_no_gpu()
    if missing:
        print(f"gpu_check: {missing}; --emulated runs every stage without a GPU")
        return 3
    check = Check(options)
    for name in PLAN:
        check.stage(name, getattr(check, name))
    print_table(check.record)
    print(f"\nwritten: {options.out}")
    for name, found in check.record["stages"].items():
        if found["status"] == "skipped":
            print(f"NOT CHECKED: {name} ({found['why']})")
    return 0 if all(s["status"] != "failed" for s in check.record["stages"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
