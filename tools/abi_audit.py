#!/usr/bin/env python3
"""Is a built binary free of torch, Python and CUDA at link time, and what does it need?

Usage: tools/abi_audit.py FILE.so or WHEEL. It reads the dynamic section with binutils: needed
libraries, symbols taken from elsewhere, symbols offered. One binary has to serve every torch, so a
symbol of torch is an error, and so is a library that is not part of every Linux.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

SYSTEM = re.compile(
    r"(libgomp|libstdc\+\+|libm|libgcc_s|libc|libpthread|librt|libdl|ld-linux.*)\.so"
)
FOREIGN = re.compile(r"\b(at|c10|caffe2|torch)::|\bcu(da|blas|solver)?[A-Z]|\bTHP[A-Z]")
OFFERED = re.compile(r"PyInit_\w+|\.gomp_critical_user_\w+")
VERSION = re.compile(r"\b(GLIBC|GLIBCXX|CXXABI|GOMP|OMP|GCC)_(\d+(?:\.\d+)*)")


def audit(binary: Path) -> tuple[list[str], dict[str, str]]:
    """Faults of one shared object, and the newest version that it asks of each library."""
    dynamic = _read("readelf", "--dynamic", "--wide", str(binary))
    symbols = _read("nm", "--dynamic", "--demangle", str(binary)).splitlines()
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
    faults = [f"needs {name}" for name in needed if not SYSTEM.match(name)]
    for line in symbols:
        kind, name = line[17:18], line[19:]
        if kind == "U" and FOREIGN.search(name):
            faults.append(f"takes {name} from another library")
        # weak ones (V, W, u) are the compiler's copies of inline functions
        if kind in "TDBRG" and not OFFERED.fullmatch(name):
            faults.append(f"offers {name}: hide it")
    newest: dict[str, str] = {}
    for library, version in VERSION.findall(_read("readelf", "--version-info", str(binary))):
        newest[library] = max(newest.get(library, "0"), version, key=_numbers)
    return faults, newest


def _read(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def main(path: Path) -> int:
    """Print what every binary in ``path`` asks for; 1 where one has a fault."""
    with tempfile.TemporaryDirectory() as folder:
        binaries = [path]
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                names = [name for name in wheel.namelist() if name.endswith(".so")]
                binaries = [Path(wheel.extract(name, folder)) for name in names]
        found = [(binary.name, *audit(binary)) for binary in binaries]
    if not found:
        print(f"{path} holds no .so")
        return 1
    for name, faults, newest in found:
        asked = ", ".join(f"{library} {version}" for library, version in sorted(newest.items()))
        print(f"{name}: {asked}")
        for fault in faults:
            print(f"  FAULT: {fault}")
    return int(any(faults for _, faults, _ in found))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
