#!/usr/bin/env python3
"""Run every native op once, small, against its oracle, for compute-sanitizer to watch.

Usage: tools/gpu_smoke.py cuda|emulated [OP ...]. Prints one line per op; exit status 1 where
a result is wrong.
"""

from __future__ import annotations

import sys

import torch

from catapult_ext.testing import backends, max_error
from catapult_ext.testing.op_cases import op_cases


def main(arguments: list[str]) -> int:
    """Run the named cases, or all, on one back end."""
    name = {"cuda": "cuda", "emulated": "cuda_emulated"}[arguments[0]]
    backend = next(b for b in backends() if b.name == name)
    if backend.unavailable:
        print(f"{name} cannot run here: {backend.unavailable}")
        return 1
    wrong, cases = 0, op_cases()
    for op in arguments[1:] or cases:
        if op not in cases:
            print(f"{op}: no such op; there are {', '.join(cases)}")
            return 1
        case = cases[op]
        with backend.active():
            try:
                got = case.call(*(t.to(backend.device) for t in case.make()))
            except RuntimeError as error:
                print(f"{op}: {error}", flush=True)
                wrong += 1
                continue
            got = [t.cpu() for t in got]
        errors = [
            max_error(one, other) / (float(other.abs().max()) or 1.0)
            for one, other in zip(got, case.oracle(*case.make()), strict=True)
        ]
        good = max(errors) <= case.tolerance
        wrong += not good
        print(f"{op}: {'ok' if good else 'WRONG'} (relative error {max(errors):.1e})", flush=True)
    if backend.device == "cuda":
        torch.cuda.synchronize()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
