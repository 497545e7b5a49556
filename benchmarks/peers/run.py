"""`python benchmarks/peers/run.py [ROW...]`: race this package against its peers.

Each row's answers are checked against a float64 oracle, then all contenders are timed in turn.
Records are merged into the JSON file row by row; `--table` writes the Markdown table from it.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
PINNED = ("torch", "scipy", "curvlinops-for-pytorch", "hessian-eigenthings", "pyhessian")
PINNED += ("nngeometry", "scikit-learn", "gpytorch")


def versions() -> dict[str, str]:
    """Of every peer in this environment."""
    found = {}
    for name in PINNED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Processor, threads, build and versions."""
    import catapult_ext as cx

    try:
        with open("/proc/cpuinfo") as lines:
            processor = next(s.split(":")[1].strip() for s in lines if "model name" in s)
    except (OSError, StopIteration):
        processor = "unknown"
    return {"processor": processor, **cx.build_info(), **versions()}


def main() -> None:
    """See the module."""
    import table

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help="default: all")
    parser.add_argument("--json", type=Path, default=RESULTS / "peers.json")
    parser.add_argument("--seconds", type=float, default=60.0, help="a row, about")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--check", action="store_true", help="answers only, no timing")
    parser.add_argument("--table", type=Path, help="write the Markdown table into this page")
    parser.add_argument("--only", default="", help="contenders whose name holds this, no record")
    options = parser.parse_args()
    if options.table is not None:
        table.write(options.table, json.loads(options.json.read_text()))
        return
    import torch

    torch.set_num_threads(options.threads)
    import eigen
    import kernels
    import solves
    import timing
    import toy

    known = {**kernels.ROWS, **eigen.ROWS, **toy.ROWS, **solves.ROWS}
    for name in options.rows or known:
        print(name, flush=True)
        record = timing.race(known[name](), options.seconds, options.check, options.only)
        whole = json.loads(options.json.read_text()) if options.json.exists() else {"rows": {}}
        whole["machine"] = machine()
        if not options.check and not options.only:
            whole["rows"][name] = record
            ordered = {k: whole["rows"][k] for k in known if k in whole["rows"]}
            whole["rows"] = ordered
            options.json.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
