"""Every native op once, small, against its oracle: what compute-sanitizer watches.

Usage: python tools/gpu_smoke.py cuda|emulated [OP ...]. Prints one line per op; exit status 1 where
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
    wrong = 0
    for op, case in op_cases().items():
        if arguments[1:] and op not in arguments[1:]:
            continue
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
