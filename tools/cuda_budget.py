#!/usr/bin/env python3
"""Static gates of the CUDA code, without a GPU: tools/cuda_budget.py [--update] [FILE.cu ...].

nvcc compiles every ``csrc/ops/*/*.cu`` for each architecture with warnings as errors. Registers,
static shared memory, stack and spills of each kernel, as ptxas reports them, are held against
``tools/cuda_budget.json``: none may spill, none may exceed its budget, and a kernel without an
entry is an error. A line ``// PTX: mma.sync, cp.async.cg`` in a .cu file lists instructions that
must be found in its PTX. For sm_90 (with ``--whole`` for each architecture) nvdisasm, from PyPI's
``nvidia-cuda-nvdisasm``, shows the machine code: the length of each hot loop, its multiply-adds and
the widths of the loads (``tools/sass.py``) are held against ``tools/sass_budget.json``.
``--update`` writes what was measured into the files.

Exit status: 0 all within budget, 1 something is not, 77 no nvcc here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import sass  # noqa: E402

BUDGET = ROOT / "tools" / "cuda_budget.json"
SASS_BUDGET = ROOT / "tools" / "sass_budget.json"
ARCHITECTURES = ["80", "90", "100", "120"]
FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-Werror", "all-warnings", f"-I{ROOT / 'csrc'}"]


def sources() -> list[Path]:
    """Every CUDA source of the library."""
    return sorted((ROOT / "csrc" / "ops").glob("*/*.cu"))


def claims(path: Path) -> list[str]:
    """Instructions the file says its PTX holds."""
    found = re.findall(r"^// PTX: (.+)$", path.read_text(), re.MULTILINE)
    return [word.strip() for line in found for word in line.split(",")]


def parse_ptxas(text: str) -> dict[str, dict[str, int]]:
    """Mangled kernel name -> registers, shared, stack, spills from ``ptxas -v`` output."""
    kernels: dict[str, dict[str, int]] = {}
    name = ""
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name = match.group(1)
            kernels[name] = {"registers": 0, "shared": 0, "stack": 0, "spills": 0}
        elif match := re.search(r"Function properties for (\w+)", line):
            inside = match.group(1)
            name = inside if inside in kernels else name
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
            kernels[name]["stack"] = max(kernels[name]["stack"], int(match.group(1)))
            kernels[name]["spills"] += int(match.group(2))
        elif match := re.search(r"Used (\d+) registers", line):
            kernels[name]["registers"] = int(match.group(1))
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[name]["shared"] = int(shared.group(1)) if shared else 0
    return kernels


def readable(names: list[str]) -> dict[str, str]:
    """Mangled -> ``kernel<float, 16>``: the name without its namespaces and its parameters."""
    if not names:
        return {}
    out = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    result = {}
    for mangled, line in zip(names, out.stdout.splitlines(), strict=True):
        line = re.sub(r"catapult::device::|\(anonymous namespace\)::|catapult::", "", line)
        match = re.match(r"(?:void )?([^(]*?(?:<.*>)?)\(", line)
        result[mangled] = match.group(1) if match else line
    return result


def hot_file(path: Path) -> str:
    """The file of the hot loop, where the source names one."""
    found = re.search(r"^// hot loop: (\S+)$", path.read_text(), re.MULTILINE)
    return found.group(1) if found else ""


def compile_one(job: tuple[Path, str, str | None]) -> tuple[dict[str, dict], str]:
    """Resources of one file on one architecture, and nvcc's message where it fails.

    With a disassembler each kernel has its ``sass`` as well.
    """
    path, arch, disassembler = job
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", *FLAGS, f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas", "-v"]
        command += ["-lineinfo", "-cubin", "-o", f"{folder}/out.cubin", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        code = {}
        if done.returncode == 0 and disassembler:
            code = sass.parse(sass.disassemble(disassembler, Path(folder) / "out.cubin"))
    if done.returncode != 0:
        return {}, f"{path.relative_to(ROOT)} for sm_{arch} does not compile:\n{done.stderr}"
    kernels = parse_ptxas(done.stderr)
    names = readable(list(kernels))
    if len(set(names.values())) != len(names):
        return (
            {},
            f"{path.relative_to(ROOT)}: two kernels have the same name: {sorted(names.values())}",
        )
    for kernel, listing in code.items():
        kernels[kernel]["sass"] = sass.measure(listing, hot_file(path))
    return {names[k]: v for k, v in kernels.items()}, ""


def missing_instructions(path: Path) -> list[str]:
    """Claimed instructions that the PTX does not hold."""
    wanted = claims(path)
    if not wanted:
        return []
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.ptx"
        command = ["nvcc", *FLAGS, "-arch=compute_90", "-ptx", "-o", str(target), str(path)]
        subprocess.run(command, check=True, capture_output=True)
        ptx = target.read_text()
    return [
        f"{path.relative_to(ROOT)}: '{word}' is not in the PTX"
        for word in wanted
        if word not in ptx
    ]


def compare(measured: dict, budget: dict, whole: bool) -> list[str]:
    """What exceeds its budget, lacks an entry, or (``whole``) has an entry without a kernel."""
    wrong = []
    for kernel, archs in sorted(measured.items()):
        for arch, now in archs.items():
            allowed = budget.get(kernel, {}).get(arch)
            if now["spills"]:
                wrong.append(f"{kernel} on {arch} spills {now['spills']} bytes")
            if allowed is None:
                wrong.append(f"{kernel} on {arch} has no budget: run tools/cuda_budget.py --update")
                continue
            for what in ("registers", "shared", "stack"):
                if now[what] > allowed.get(what, 0):
                    wrong.append(
                        f"{kernel} on {arch}: {now[what]} {what}, budget {allowed.get(what, 0)}"
                    )
    if whole:
        wrong += [
            f"{kernel} has a budget but does not exist" for kernel in budget.keys() - measured
        ]
    return wrong


def compare_sass(measured: dict, budget: dict, whole: bool) -> list[str]:
    """What the machine code does worse than its budget; ``whole``: entries without a kernel."""
    wrong = []
    for kernel, archs in sorted(measured.items()):
        for arch, now in archs.items():
            if "sass" in now:
                allowed = budget.get(kernel, {}).get(arch)
                wrong += sass.compare(f"{kernel} on {arch}", now["sass"], allowed)
    if whole:
        gone = sorted(budget.keys() - measured)
        wrong += [f"{kernel} has a SASS budget but does not exist" for kernel in gone]
    return wrong


def read(path: Path) -> dict:
    """A budget file; empty where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, budget: dict) -> None:
    """A line for each kernel, architectures in their order."""
    lines = []
    for kernel, archs in sorted(budget.items()):
        ordered = dict(sorted(archs.items(), key=lambda item: int(item[0][3:])))
        lines.append(f"  {json.dumps(kernel)}: {json.dumps(ordered)}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def write_budgets(measured: dict, whole: bool) -> None:
    """Store the measured resources; entries of zero are left out."""
    budget, code = read(BUDGET), read(SASS_BUDGET)
    if whole:
        budget = {}
        code = {kernel: archs for kernel, archs in code.items() if kernel in measured}
    for kernel, archs in measured.items():
        budget[kernel] = {
            arch: {k: v for k, v in now.items() if v and k not in ("spills", "sass")}
            for arch, now in archs.items()
        }
        found = {arch: now["sass"] for arch, now in archs.items() if "sass" in now}
        code[kernel] = {**code.get(kernel, {}), **found}
    write(BUDGET, budget)
    write(SASS_BUDGET, code)


def main() -> int:
    """Run the gates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--whole", action="store_true", help="machine code of each architecture")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    if shutil.which("nvcc") is None:
        print("cuda_budget: skipped, no nvcc here")
        return 77
    files = [p.resolve() for p in options.files] or sources()
    whole = not options.files
    if not files:
        parser.error(f"no .cu file below {ROOT / 'csrc' / 'ops'}")
    program = sass.nvdisasm()
    shown = ARCHITECTURES if options.whole else ["90"]
    jobs = [
        (path, arch, program if arch in shown else None) for path in files for arch in ARCHITECTURES
    ]
    measured: dict[str, dict[str, dict[str, int]]] = {}
    wrong = [] if program else ["no nvdisasm here: pip install nvidia-cuda-nvdisasm"]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for (_, arch, _), (kernels, error) in zip(jobs, pool.map(compile_one, jobs), strict=True):
            wrong += [error] if error else []
            for kernel, now in kernels.items():
                measured.setdefault(kernel, {})[f"sm_{arch}"] = now
        wrong += [line for lines in pool.map(missing_instructions, files) for line in lines]
    if options.update and not wrong:
        write_budgets(measured, whole)
    wrong += compare(measured, read(BUDGET), whole)
    wrong += compare_sass(measured, read(SASS_BUDGET), whole)
    for kernel, archs in sorted(measured.items()):
        uses = "  ".join(f"{a}: {v['registers']}r {v['shared']}B" for a, v in archs.items())
        print(f"{kernel:60s} {uses}")
    for line in wrong:
        print(f"FAILED {line}")
    print(f"cuda_budget: {len(measured)} kernels, {len(files)} files, {len(wrong)} failures")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
