#!/usr/bin/env python3
"""What ptxas made of a kernel, its hot loop and loads: tools/sass.py FILE.cubin [HOT_LOOP_FILE].

The hot loop is the one, from a label to a branch back to it, where multiply-adds are dense and
many: those of the tensor cores where there are any. A line ``// hot loop: FILE`` in a .cu file asks
for the loop among those of which most instructions come from that file.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

TENSOR = ("HMMA", "DMMA")
MATH = ("FFMA", "DFMA", *TENSOR)
_SECTION = re.compile(r"^//-+ \.text\.(\S+) -+")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_PLACE = re.compile(r'^\s+//## File "([^"]+)"')
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")


def nvdisasm() -> str | None:
    """The disassembler: of the path, or of the package ``nvidia-cuda-nvdisasm``."""
    found = shutil.which("nvdisasm")
    if found:
        return found
    spec = importlib.util.find_spec("nvidia")
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        for path in sorted(Path(place).glob("*/bin/nvdisasm")):
            return str(path)
    return None


def disassemble(program: str, cubin: Path) -> str:
    """The text of every kernel."""
    return subprocess.run(
        [program, "-c", "-g", str(cubin)], capture_output=True, text=True, check=True
    ).stdout


@dataclass
class Instruction:
    """One instruction: where it is, ``LDG.E.128``, and its operands."""

    address: int
    opcode: str
    operands: str
    file: str = ""

    @property
    def base(self) -> str:
        """``LDG`` of ``LDG.E.128``."""
        return self.opcode.split(".")[0]

    @property
    def bytes(self) -> int:
        """Of a lane that a load or a store moves."""
        for part in self.opcode.split(".")[1:]:
            if part in ("64", "128", "256"):
                return int(part) // 8
            if part in ("U8", "S8", "U16", "S16"):
                return int(part[1:]) // 8
        return 4


@dataclass
class Kernel:
    """The instructions of one kernel, and the address of each label."""

    code: list[Instruction]
    labels: dict[str, int]

    def loops(self) -> list[tuple[int, int]]:
        """First and last address of each loop."""
        found = []
        for i in self.code:
            target = re.search(r"\((\.L_x_\d+)\)", i.operands)
            if i.base == "BRA" and target and self.labels.get(target.group(1), 1 << 60) < i.address:
                found.append((self.labels[target.group(1)], i.address))
        return found

    def between(self, first: int, last: int) -> list[Instruction]:
        """The instructions of a loop."""
        return [i for i in self.code if first <= i.address <= last]

    def hot_loop(self, file: str = "") -> list[Instruction]:
        """The loop with the largest (multiply-adds)^2 / instructions; empty where none has any.

        ``file``: of the loops of which more than half comes from it.
        """
        best: list[Instruction] = []
        best_score = 0.0
        kinds = TENSOR if any(i.base in TENSOR for i in self.code) else MATH
        for first, last in self.loops():
            body = self.between(first, last)
            if file and 2 * sum(i.file.endswith(file) for i in body) <= len(body):
                continue
            score = sum(i.base in kinds for i in body) ** 2 / len(body)
            if score > best_score:
                best, best_score = body, score
        return best


def parse(text: str) -> dict[str, Kernel]:
    """Mangled name -> kernel, of nvdisasm's output."""
    kernels: dict[str, Kernel] = {}
    waiting: list[str] = []
    kernel = None
    file = ""
    for line in text.splitlines():
        if match := _SECTION.match(line):
            kernel = kernels[match.group(1)] = Kernel([], {})
            waiting = []
        elif kernel is None:
            continue
        elif match := _PLACE.match(line):
            file = match.group(1)
        elif match := _LABEL.match(line):
            waiting.append(match.group(1))
        elif match := _INSTRUCTION.match(line):
            address = int(match.group(1), 16)
            kernel.labels.update(dict.fromkeys(waiting, address))
            waiting = []
            kernel.code.append(Instruction(address, match.group(2), match.group(3), file))
    return kernels


def measure(kernel: Kernel, file: str = "") -> dict[str, int]:
    """Instructions and multiply-adds of the hot loop, and the loads of the whole kernel.

    ``LDG.16``: loads of 16 bytes from global memory. LD is generic, LDL is local memory.
    """
    loop = kernel.hot_loop(file)
    result = {"loop": len(loop), "math": sum(i.base in MATH for i in loop)}
    loads = Counter(i.base for i in kernel.code if i.base in ("LD", "LDL"))
    loads += Counter(f"{i.base}.{i.bytes}" for i in kernel.code if i.base in ("LDG", "LDS"))
    result.update(sorted(loads.items()))
    result["R2UR in the loop"] = sum(i.base == "R2UR" for i in loop)
    return {key: value for key, value in result.items() if value}


def compare(name: str, now: dict[str, int], allowed: dict[str, int] | None) -> list[str]:
    """What is over budget: a longer loop, fewer multiply-adds in it, loads that became worse."""
    if allowed is None:
        return [f"{name} has no SASS budget: run tools/cuda_budget.py --update"]
    wrong = []
    for key in ("loop", "LD", "LDL", "LDG.1", "LDG.2", "LDG.4", "R2UR in the loop"):
        if now.get(key, 0) > allowed.get(key, 0):
            wrong.append(f"{name}: {now.get(key, 0)} {key}, budget {allowed.get(key, 0)}")
    if now.get("math", 0) * allowed.get("loop", 1) < allowed.get("math", 0) * now.get("loop", 1):
        wrong.append(
            f"{name}: {now.get('math', 0)} multiply-adds in a loop of {now.get('loop', 0)}, "
            f"budget {allowed.get('math', 0)} in {allowed.get('loop', 0)}"
        )
    return wrong


def main() -> int:
    """Print the measures of every kernel in a cubin."""
    program = nvdisasm()
    if program is None or len(sys.argv) < 2:
        print(__doc__ if program else "sass: no nvdisasm here: pip install nvidia-cuda-nvdisasm")
        return 1
    for name, kernel in parse(disassemble(program, Path(sys.argv[1]))).items():
        print(name, len(kernel.code), measure(kernel, *sys.argv[2:3]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
