"""One call of every native op, small or as large as a GPU wants it.

Used wherever all ops are treated alike: stream and device tests, CUDA graphs, compute-sanitizer,
and the GPU benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from catapult_ext import ops, reference
from catapult_ext.ops.gram import Precision
from catapult_ext.testing.baselines import matmul_precision, symmetric_eigenvalues
from catapult_ext.testing.toy_cases import ToyProblem, lean_torch_gd, reduced_state, toy_problem


@dataclass
class OpCase:
    """A call, its oracle, and what it is measured against.

    Attributes:
        op: name of the op.
        make: fresh arguments on the CPU (some ops mutate theirs).
        call: arguments on any device -> the tensors to compare, mutated ones included.
        oracle: the same through ``catapult_ext.reference``.
        tolerance: largest relative difference of the two, per tensor.
        baselines: name -> the same work another way.
        gemm: precision of the GEMM whose rate is the limit: "float32", "tf32" or "float64".
        flops: useful operations of one call. ``bytes``: the least it must move.
        steps: sequential steps inside a call (a time per step is reported), or 1.
        goal: what the project asks of the measured case, in words.
    """

    op: str
    make: Callable[[], tuple]
    call: Callable[..., tuple[Tensor, ...]]
    oracle: Callable[..., tuple[Tensor, ...]]
    tolerance: float = 1e-4
    baselines: dict[str, Callable[..., Any]] = field(default_factory=dict)
    gemm: str = "float32"
    flops: float = 0.0
    bytes: float = 0.0
    steps: int = 1
    goal: str = ""


def op_cases(full: bool = False) -> dict[str, OpCase]:
    """One case per name; ``full`` gives the sizes that are measured on a GPU."""
    found = [_gram, _gram_tf32, _ntk_matvec, _toy_gd, _toy_gd_many, _toy_activated, _toy_gd_reduced]
    found += [_toy_scalar, _toy_lyapunov, _lanczos_dense, _lanczos_step, _tridiag_eigh]
    return {make.__name__.lstrip("_"): make(full) for make in found}


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype, device="cpu")


def _gram(full: bool, precision: Precision = "full") -> OpCase:
    samples, width = (8192, 1024) if full else (19, 12)
    scale, bias, tf32 = [1.0 / width], [1.0], precision == "tf32"

    def matmul(a: Tensor, g: Tensor) -> Tensor:
        with matmul_precision("tf32" if tf32 else "ieee"):
            return (a @ a.T).mul_(scale[0]).add_(bias[0]).mul_(g[:, 0] @ g[:, 0].T)

    share = "35 % of torch's TF32" if tf32 else "60 % of torch's float32"
    return OpCase(
        "gram",
        lambda: (_random(samples, width), _random(samples, 1, width, seed=1)),
        lambda a, g: (ops.gram([a], [g], scale=scale, bias=bias, precision=precision),),
        lambda a, g: (reference.gram([a], [g], scale=scale, bias=bias),),
        tolerance=5e-3 if tf32 else 1e-5,
        baselines={"torch.matmul": matmul},
        gemm="tf32" if tf32 else "float32",
        flops=2.0 * samples**2 * width,
        bytes=4.0 * (samples**2 + 2 * samples * width),
        goal=f"useful flops per second at least {share} GEMM rate",
    )


def _gram_tf32(full: bool) -> OpCase:
    return _gram(full, "tf32")


def _ntk_matvec(full: bool) -> OpCase:
    widths, samples = ((784, 1024, 1024, 1024, 10), 512) if full else ((5, 9, 7, 3), 6)
    scale, bias = [2.0 / d for d in widths[:-1]], [0.5] * (len(widths) - 1)
    layers = len(scale)

    def make() -> tuple:
        weights = [_random(1, p, d, seed=p + d) for d, p in pairwise(widths)]
        x, inputs, slopes = _random(1, samples, widths[0]), [], []
        for w, s in zip(weights, scale, strict=True):
            inputs.append(x)
            z = x @ w.mT * math.sqrt(s)
            slopes.append((z > 0).float())
            x = z.relu()
        v = _random(1, samples * widths[-1], 1, seed=7)
        return (v, *weights, *inputs, *slopes[:-1])

    def split(tensors: tuple[Tensor, ...]) -> dict[str, Any]:
        return {
            "weights": list(tensors[:layers]),
            "inputs": list(tensors[layers : 2 * layers]),
            "slopes": list(tensors[2 * layers :]),
            "scale": scale,
            "bias": bias,
        }

    weights = sum(d * p for d, p in pairwise(widths))
    return OpCase(
        "ntk_matvec",
        make,
        lambda v, *rest: (ops.ntk_matvec(v, **split(rest)),),
        lambda v, *rest: (reference.ntk_matvec(v, **split(rest)),),
        baselines={"torch.matmul": lambda v, *rest: reference.ntk_matvec(v, **split(rest))},
        flops=8.0 * samples * weights,
        bytes=4.0 * 2 * (weights + samples * sum(widths)),
    )


def _toy(full: bool, replicas: int, steps: int, goal: str, activation: str = "linear") -> OpCase:
    width, inputs, samples = (1024, 16, 32) if full else (40, 5, 7)
    linear = activation == "linear"
    c = torch.linspace(
        0.5, 3.5 if linear else 1.75, replicas, device="cpu"
    )  # over the linear curvature
    products = 6.0 * inputs + 4.0 * samples * inputs / width if linear else 6.0 * samples * inputs
    problem = toy_problem(c, width=width, inputs=inputs, samples=samples, dtype=torch.float32)

    def run(op: Callable[..., Any], *mine: Tensor) -> tuple[Tensor, ...]:
        return (op(*mine, steps, activation=activation)[0], mine[0], mine[1])

    return OpCase(
        "toy_gd",
        lambda: tuple(t.clone() for t in problem),
        lambda *mine: run(ops.toy_gd, *mine),
        lambda *mine: run(reference.toy_gd, *mine),
        tolerance=5e-3,
        baselines={"lean torch": lambda *mine: lean_torch_gd(ToyProblem(*mine), steps, activation)},
        flops=replicas * steps * width * products,
        bytes=2.0 * 4 * replicas * width * (inputs + 1),
        steps=steps,
        goal=goal,
    )


def _toy_gd(full: bool) -> OpCase:
    goal = "at most 3 microseconds a step"
    return _toy(full, 64 if full else 3, 1000 if full else 10, goal)


def _toy_gd_many(full: bool) -> OpCase:
    return _toy(full, 4096 if full else 5, 100 if full else 4, "at least 15 x lean torch")


def _toy_activated(full: bool) -> OpCase:
    replicas, steps = (1024, 100) if full else (3, 6)
    return _toy(full, replicas, steps, "at least 5 x lean torch", "tanh")


def _toy_gd_reduced(full: bool) -> OpCase:
    replicas, inputs, samples, steps = (65536, 16, 32, 200) if full else (5, 3, 7, 10)
    base = toy_problem(
        torch.linspace(0.5, 3.5, min(replicas, 64), device="cpu"),
        width=64,
        inputs=inputs,
        samples=samples,
        dtype=torch.float32,
    )
    state = reduced_state(base)
    repeat = -(-replicas // 64)

    def make() -> tuple:
        w, S, q, x, y, eta = (t.clone() for t in state)
        many = [t.repeat(repeat, *[1] * (t.dim() - 1)) for t in (w, S, q, eta)]
        return (*many[:3], x, y, many[3])

    def run(op: Callable[..., Any], *mine: Tensor) -> tuple[Tensor, ...]:
        loss = op(*mine, 64.0, steps, record_every=steps)[0]
        return (loss, *mine[:3])

    return OpCase(
        "toy_gd_reduced",
        make,
        lambda *mine: run(ops.toy_gd_reduced, *mine),
        lambda *mine: run(reference.toy_gd_reduced, *mine),
        tolerance=5e-3,
        flops=replicas * steps * (6.0 * inputs**2 + 4.0 * samples * inputs),
        bytes=2.0 * 4 * replicas * (inputs + 1) ** 2,
        steps=steps,
    )


def _toy_scalar(full: bool) -> OpCase:
    lanes, steps = (1 << 22, 500) if full else (70, 20)

    def run(op: Callable[..., Any], h: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        result = op(h, k, steps)
        return (result[0], result[1])

    return OpCase(
        "toy_scalar",
        lambda: (_random(lanes).abs() * 0.5, _random(lanes, seed=1).abs() * 0.5),
        lambda h, k: run(ops.toy_scalar, h, k),
        lambda h, k: run(reference.toy_scalar, h, k),
        tolerance=1e-2,
        flops=8.0 * lanes * steps,
        bytes=4.0 * 7 * lanes,
        steps=steps,
    )


def _toy_lyapunov(full: bool) -> OpCase:
    cases, paths, steps = (1 << 14, 64, 1000) if full else (7, 5, 21)

    def make() -> tuple:
        ones = torch.ones(cases, dtype=torch.float64, device="cpu")
        return (2.5 * ones, torch.linspace(0.1, 3.0, cases, device="cpu").double(), 0.9 * ones)

    return OpCase(
        "toy_lyapunov",
        make,
        lambda m, d, b: (ops.toy_lyapunov(m, d, b, steps, paths=paths, burn_in=2),),
        lambda m, d, b: (reference.toy_lyapunov(m, d, b, steps, paths=paths, burn_in=2),),
        tolerance=1e-10,
        gemm="float64",
        flops=5.0 * cases * paths * steps,
        bytes=8.0 * (3 + paths) * cases,
        steps=steps,
    )


def _lanczos_dense(full: bool) -> OpCase:
    replicas, n = (64, 512) if full else (2, 40)

    def make() -> tuple:
        x = _random(replicas, n, n)
        decay = torch.linspace(0, 3, n, device="cpu").neg().exp()
        return ((x * decay) @ x.mT / n,)

    return OpCase(
        "lanczos_dense",
        make,
        lambda a: (ops.lanczos_dense(a).eigenvalues,),
        lambda a: (reference.lanczos_dense(a)[0],),
        baselines=dict(symmetric_eigenvalues()),
        bytes=4.0 * replicas * n * n / 2,
        goal="at least 20 x torch.linalg.eigvalsh",
    )


def _lanczos_step(full: bool) -> OpCase:
    replicas, n, step = (4, 1 << 20, 31) if full else (2, 70, 4)
    rows = step + 1

    def make() -> tuple:
        # Orthogonal by construction, as a QR of this size would take longer than the op.
        basis = torch.zeros(replicas, rows + 1, n, device="cpu")
        chunk = n // rows
        for i in range(rows):
            basis[:, i, i * chunk : (i + 1) * chunk] = 1.0 / math.sqrt(chunk)
        alpha, beta = (
            torch.ones(replicas, rows, device="cpu"),
            torch.full((replicas, rows), 0.5, device="cpu"),
        )
        return basis, alpha, beta, _random(replicas, n)

    def run(op: Callable[..., Any], *mine: Tensor) -> tuple[Tensor, ...]:
        op(*mine, step)
        return mine[:3]

    def composed(basis: Tensor, alpha: Tensor, beta: Tensor, w: Tensor) -> None:
        q, rest = basis[:, :rows], w[:, :, None]
        for _ in range(2):
            rest = rest - q.mT @ (q @ rest)
        basis[:, rows] = rest[:, :, 0] / rest.norm(dim=1)

    return OpCase(
        "lanczos_step",
        make,
        lambda *mine: run(ops.lanczos_step, *mine),
        lambda *mine: run(reference.lanczos_step, *mine),
        baselines={"torch.matmul": composed},
        flops=8.0 * replicas * rows * n,
        bytes=4.0 * replicas * n * (2 * rows + 3),
        goal="at least 75 % of the copy bandwidth",
    )


def _tridiag_eigh(full: bool) -> OpCase:
    replicas, m = (4096, 64) if full else (3, 9)

    def dense(solve: Callable[[Tensor], Any]) -> Callable[..., Any]:
        def solved(alpha: Tensor, beta: Tensor) -> Any:
            diagonals = [torch.diag_embed(alpha)]
            diagonals += [torch.diag_embed(beta, side) for side in (-1, 1)]
            return solve(torch.stack(diagonals).sum(0))

        return solved

    return OpCase(
        "tridiag_eigh",
        lambda: (_random(replicas, m), _random(replicas, m - 1, seed=1)),
        lambda alpha, beta: (ops.tridiag_eigh(alpha, beta)[0],),
        lambda alpha, beta: (reference.tridiag_eigh(alpha, beta)[0],),
        baselines={name: dense(solve) for name, solve in symmetric_eigenvalues().items()},
        flops=40.0 * replicas * m * m,
        bytes=4.0 * 5 * replicas * m,
    )
