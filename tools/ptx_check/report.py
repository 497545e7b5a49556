"""What the counts say of each kernel: instructions, sectors and bank passes a request."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from cuda_budget import readable

from .interpreter import Function, Instruction


def opcode(text: str) -> str:
    """The base opcode of an instruction: ``fma`` of ``@%p1 fma.rn.f32 ...``."""
    words = text.split()
    return words[1 if words[0].startswith("@") else 0].split(".")[0]


def _kind(instruction: Instruction) -> str:
    """``ld.shared 16``: what is moved, where, and the bytes of a lane."""
    words = instruction.text.split()
    parts = words[1 if words[0].startswith("@") else 0].split(".")
    if parts[0] == "cp":
        return f"cp.async {instruction.text.split(',')[-2].strip()}"
    space = next((p for p in parts if p in ("shared", "global")), "generic")
    width = int(parts[-1][1:]) // 8 * int(next((p[1] for p in parts if p in ("v2", "v4")), 1))
    return f"{parts[0]}.{space} {width}"


def summary(functions: list[Function]) -> dict[str, dict[str, Any]]:
    """Kernel -> file, launches, warps, issued, and what each kind of access took.

    ``accesses`` of a kind are requests, 32-byte sectors (global) or passes over the banks (shared),
    and the least there could be.
    """
    names = readable([f.name for f in functions])
    result = {}
    for f in functions:
        accesses: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        opcodes: dict[str, int] = defaultdict(int)
        for i in f.instructions:
            opcodes[opcode(i.text)] += i.issued
            if i.requests:
                for k, n in enumerate((i.requests, i.units, i.least)):
                    accesses[_kind(i)][k] += n
        result[names[f.name]] = {
            "file": f.file,
            "entry": f.entry,
            "launches": f.launches,
            "warps": f.warps,
            "issued": f.issued,
            "opcodes": dict(opcodes),
            "accesses": dict(accesses),
        }
    return result


def table(kernels: dict[str, dict[str, Any]]) -> str:
    """A line for each kernel, and below it one for each kind of access."""
    lines = []
    for name, k in sorted(kernels.items()):
        if not k["entry"]:
            continue
        lines.append(f"{name}: {k['launches']} launches, {k['issued']} instructions issued")
        for kind, (requests, units, least) in sorted(k["accesses"].items()):
            what = "passes" if "shared" in kind else "sectors"
            lines.append(
                f"    {kind:18s} {requests:10d} requests, {units / requests:6.2f} {what} each"
                f" (least {least / requests:.2f})"
            )
    return "\n".join(lines)
