"""Which native op serves which device from which size on, and why: the one table.

The layers above ask :func:`serves`; ``docs/ops/index.md`` shows who reaches what, and a test runs
the public calls to see that both say the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Route:
    """One op on one kind of device.

    Attributes:
        op: its name.
        device: ``"cpu"`` or ``"cuda"``.
        least, most: sizes that it serves; beyond, torch's own operations do.
        unit: what a size counts.
        evidence: the benchmark that showed the limits, or the prediction where none could run.
    """

    op: str
    device: str
    evidence: str
    least: float = 0
    most: float = math.inf
    unit: str = ""


_PREDICTED = "predicted in docs/kernels.md, no GPU has run it"
ROUTES = (
    Route(
        "gram", "cpu", "benchmarks/bench_gram.py", most=1024, unit="rows, of whole kernels of rows"
    ),
    Route("gram", "cuda", f"{_PREDICTED}: 75 % of SGEMM on half the flops"),
    Route("ntk_matvec", "cpu", "benchmarks/bench_ntk_matvec.py"),
    Route(
        "ntk_matvec",
        "cuda",
        f"{_PREDICTED}: half the rate of torch's GEMMs, which take 30 microseconds of launches",
        most=1.5e8,
        unit="operations of the largest layer",
    ),
    Route(
        "lanczos_step", "cpu", "benchmarks/bench_lanczos_step.py", most=1, unit="vectors a block"
    ),
    Route("lanczos_step", "cuda", f"{_PREDICTED}: one launch a vector instead of a dozen, no wait"),
    Route(
        "lanczos_dense",
        "cpu",
        "benchmarks/bench_eigsh_dense.py",
        least=49,
        most=2048,
        unit="rows of one matrix; fewer are LAPACK's, more have no inertia check",
    ),
    Route(
        "lanczos_dense",
        "cuda",
        f"{_PREDICTED}: 3 ms for 64 matrices of 512, torch solves them one by one",
        most=2048,
        unit="rows of a matrix",
    ),
    Route("tridiag_eigh", "cpu", "benchmarks/bench_tridiag_eigh.py"),
    Route(
        "tridiag_eigh",
        "cuda",
        f"{_PREDICTED}: 1 ms for any batch up to thousands",
        most=7264,
        unit="rows: what fits the shared memory of a block",
    ),
    Route("toy_gd", "cpu", "benchmarks/bench_toy_gd.py"),
    Route("toy_gd", "cuda", _PREDICTED),
    Route("toy_gd_reduced", "cpu", "benchmarks/bench_toy_gd_reduced.py"),
    Route("toy_gd_reduced", "cuda", _PREDICTED),
    Route("toy_scalar", "cpu", "benchmarks/bench_toy_scalar.py"),
    Route("toy_scalar", "cuda", _PREDICTED),
    Route("toy_lyapunov", "cpu", "benchmarks/bench_toy_lyapunov.py"),
    Route("toy_lyapunov", "cuda", _PREDICTED),
)
_BY_NAME = {(route.op, route.device): route for route in ROUTES}


def serves(op: str, device: torch.device, size: float) -> bool:
    """Whether ``op`` is the choice on ``device`` at ``size``, in the unit of its route."""
    route = _BY_NAME.get((op, device.type))
    return route is not None and route.least <= size <= route.most
