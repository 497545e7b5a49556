#!/usr/bin/env python3
"""Does a test notice when a barrier or a bounds check is missing? tools/mutation_check.py [--help].

Every ``__syncthreads``, ``__syncwarp``, ``grid_sync`` and ``in_bounds`` of the CUDA code is left
out in turn (CATAPULT_EMU_SKIP: one build serves all) while the op tests that pass through it run on
the emulated back end: first under AddressSanitizer in three thread orders, then, for those still
not noticed, under ThreadSanitizer. A fault is caught if a test fails with it and the same test
passes without it. At least 95 % must be caught. ``--seeded N`` tries only N of them, the same ones
every time, for a quick gate. ``--only TEXT ...`` keeps the sites whose place contains one of the
texts.

Memory fences are out of reach: fibers share one memory order. They are listed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOAL = 0.95
TEST_SECONDS = 20.0  # of tests for each mutant, by their time without a fault
# A mutant hangs, which is one way to be caught, after PATIENCE seconds and SLOWER times the time
# that its tests took without a fault on the same machine. ThreadSanitizer is ten times slower.
PATIENCE, SLOWER = 60.0, 30.0
SITE = re.compile(r"\b(__syncthreads|__syncwarp|grid_sync|in_bounds)\s*\(")
FENCE = re.compile(r"\b(__threadfence\w*|store_release|load_acquire|add_acq_rel)\s*\(")


def device_files() -> list[Path]:
    """The sources that hold device code."""
    csrc = ROOT / "csrc"
    found = [*csrc.glob("ops/*/*.cu"), *csrc.glob("ops/*/*.cuh"), *csrc.glob("core/cuda/*.cuh")]
    found += csrc.glob("toy/*.cuh")
    return sorted(found)


def find(pattern: re.Pattern[str]) -> list[str]:
    """``kind file:line`` of each use; definitions and comments do not count."""
    found = []
    for path in device_files():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = line.split("//")[0]
            if "__device__" in code or "inline" in code:
                continue
            for match in pattern.finditer(code):
                entry = f"{match.group(1)} {path.relative_to(ROOT)}:{number}"
                if entry not in found:
                    found.append(entry)
    return found


# --- inside the instrumented process ---------------------------------------------------------
class Recorder:
    """pytest plugin: which sites each passing test goes through, and how long it takes."""

    def __init__(self) -> None:
        self.reach: dict[str, list[tuple[float, str]]] = {}
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report) -> None:
        """Collect the sites after each call."""
        from catapult_ext.testing import emulated

        if report.when != "call":
            return
        sites = emulated.sites()
        if report.failed:
            self.failed.append(report.nodeid)
        for site in sites:
            self.reach.setdefault(site, []).append((report.duration, report.nodeid))


def run_tests(arguments: list[str], plugins: list[object]) -> int:
    """Run pytest on the emulated back end, quietly."""
    import pytest

    base = ["-q", "-p", "no:cacheprovider", "--tb=no", "--no-header", "-W", "ignore"]
    return int(pytest.main([*base, *arguments], plugins=plugins))


def worker(task_file: str) -> int:
    """Trace the tests once, then fork one child per mutant; the results go to the task's file."""
    task = json.loads(Path(task_file).read_text())
    os.chdir(ROOT)
    os.environ["CATAPULT_EMU_ORDER"] = task["orders"][0]
    if "reach" not in task:
        os.environ["CATAPULT_EMU_TRACE"] = "1"
        recorder = Recorder()
        status = run_tests(["-k", "cuda_emulated", *task["tests"]], [recorder])
        if status not in (0, 1):
            sys.exit(f"pytest ended with status {status}: is catapult_ext installed?")
        del os.environ["CATAPULT_EMU_TRACE"]
        task["reach"] = {site: sorted(tests) for site, tests in recorder.reach.items()}
        task["failed"] = recorder.failed
        Path(task_file).write_text(json.dumps(task))
    else:
        from catapult_ext.testing.emulated import emulated_module

        emulated_module()
    caught = task.setdefault("caught", {})
    task["broken"] = []
    mutants = [s for s in task["sites"] if s in task["reach"] and s not in caught]
    if not task["failed"]:
        jobs = [
            Job(site, order, *few(task["reach"][site]))
            for site in mutants
            for order in task["orders"]
        ]
        run_forked(jobs, task, caught)
    Path(task_file).write_text(json.dumps(task))
    return 0


@dataclass
class Job:
    """Some tests in a forked process, with the fault at ``site`` or, to confirm, without it."""

    site: str
    order: str
    tests: list[str]
    seconds: float  # that the tests take without a fault
    found: str = ""  # how the fault was noticed, where this job confirms it


def few(tests: list[tuple[float, str]]) -> tuple[list[str], float]:
    """The first tests that take TEST_SECONDS together, and the seconds that they take."""
    names, seconds = [], 0.0
    for duration, name in tests:
        if names and seconds > TEST_SECONDS:
            break
        names.append(name)
        seconds += duration
    return names, seconds


def run_forked(jobs: list[Job], task: dict, caught: dict[str, str]) -> None:
    """Run as many children at a time as there are processors.

    A fault counts as caught if the test that was running when it was noticed passes without it.
    """
    running: dict[int, tuple[Job, float]] = {}
    hanging: set[int] = set()
    jobs = jobs[::-1]
    with tempfile.TemporaryDirectory() as folder:
        while jobs or running:
            while jobs and len(running) < (os.cpu_count() or 1):
                job = jobs.pop()
                if job.site in caught:
                    continue
                pid = os.fork()
                if pid == 0:
                    child(job, Path(folder))
                running[pid] = (job, time.monotonic())
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                for other, (job, since) in running.items():
                    if time.monotonic() - since > PATIENCE + SLOWER * job.seconds:
                        hanging.add(other)
                        os.kill(other, signal.SIGKILL)
                time.sleep(0.02)
                continue
            job, _ = running.pop(pid)
            how = "hangs" if pid in hanging else fate(os.waitstatus_to_exitcode(status))
            if not how:
                if job.found and job.site not in caught:
                    caught[job.site] = f"{job.found}, {task['sanitizer']} sanitizer, {job.order}"
                continue
            last = Path(folder) / str(pid)
            test = last.read_text() if last.exists() else ""
            if job.found or how == "broken" or not test:
                fault = "without a fault" if job.found else f"with {job.site}"
                task["broken"].append(f"{how}, {fault}, {job.order}: {test or job.tests}")
            else:
                jobs.append(Job(job.site, job.order, [test], job.seconds, how))


def fate(code: int) -> str:
    """How a child noticed its fault by its exit status: empty for not at all."""
    if code < 0:
        return "crashes"
    # 1 is a failed test or AddressSanitizer, 66 is ThreadSanitizer. pytest has other numbers for
    # tests that it does not find and for errors of its own: those say nothing about the fault.
    return {0: "", 1: "caught", 66: "caught"}.get(code, "broken")


class LastTest:
    """pytest plugin that writes the name of the running test to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Overwrite the name of the test before."""
        self.path.write_text(nodeid)


def child(job: Job, folder: Path) -> None:
    """Run the tests of a job in this forked process, which ends here with pytest's exit status."""
    status = 70
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        if not job.found:
            os.environ["CATAPULT_EMU_SKIP"] = job.site.split(" ")[1]
        os.environ["CATAPULT_EMU_ORDER"] = job.order
        status = run_tests(["-x", *job.tests], [LastTest(folder / str(os.getpid()))])
    finally:
        os._exit(status)


# --- the driver -------------------------------------------------------------------------------
def stage(task: dict, sanitizer: str, orders: list[str]) -> dict:
    """Run the worker under one sanitizer and return the task with what it found."""
    task = {**task, "sanitizer": sanitizer, "orders": orders}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "task.json"
        file.write_text(json.dumps(task))
        command = [str(ROOT / "tools" / "with_sanitizer"), sanitizer, sys.executable, __file__]
        environment = dict(os.environ, CATAPULT_CSRC=str(ROOT / "csrc"))
        done = subprocess.run(
            [*command, "--worker", str(file)], env=environment, capture_output=True, text=True
        )
        result = json.loads(file.read_text())
    if "reach" not in result:
        sys.exit(f"mutation_check: the tests did not run:\n{done.stdout}\n{done.stderr}")
    if result["failed"]:
        sys.exit(f"mutation_check: these tests fail without any fault: {result['failed']}")
    if result["broken"]:
        sys.exit("mutation_check: these tests say nothing:\n" + "\n".join(result["broken"]))
    return result


def choose(sites: list[str], count: int) -> list[str]:
    """``count`` sites spread evenly over the list, always the same ones."""
    return [sites[(2 * i + 1) * len(sites) // (2 * count)] for i in range(min(count, len(sites)))]


def main() -> int:
    """Run the stages and print every site with its fate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker")
    parser.add_argument("--seeded", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--tests", nargs="*", default=["python_tests/ops"])
    options = parser.parse_args()
    if options.worker:
        return worker(options.worker)
    if options.seeded < 0:
        parser.error("--seeded must be at least 0")
    start = time.monotonic()
    sites = [site for site in find(SITE) if any(text in site for text in options.only)]
    if options.seeded:
        sites = choose(sites, options.seeded)
    task = stage({"sites": sites, "tests": options.tests}, "address", ["forward"])
    for sanitizer, orders in [("address", ["reverse", "random"]), ("thread", ["forward"])]:
        if any(site in task["reach"] and site not in task["caught"] for site in sites):
            task = stage(task, sanitizer, orders)
    caught = task["caught"]
    for site in sites:
        fate = caught.get(site, "NOT NOTICED" if site in task["reach"] else "NOT REACHED by a test")
        print(f"{site:70s} {fate}")
    for fence in find(FENCE):
        print(f"{fence:70s} fence, not visible to the emulation")
    share = len(caught) / max(1, len(sites))
    seconds = time.monotonic() - start
    print(f"mutation_check: {len(caught)} of {len(sites)} caught ({share:.1%}), {seconds:.0f} s")
    return 0 if share >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
