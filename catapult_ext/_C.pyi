from typing import Any

from torch import Tensor

def build_info() -> dict[str, Any]: ...
def force_isa(name: str) -> None: ...
def gram(
    a: list[Tensor],
    g: list[Tensor],
    a2: list[Tensor],
    g2: list[Tensor],
    scale: list[float],
    bias: list[float],
    outputs: int,
    precision: int,
    out: Tensor,
    device: int,
    stream: int,
    threads: int,
) -> None: ...
def gram_cpu_tile(rows: int, cols: int, symmetric: bool, bytes: int, threads: int) -> int: ...
def lanczos_dense_workspace(a: Tensor, k: int, device: int, stream: int, threads: int) -> int: ...
def lanczos_dense(
    a: Tensor,
    v0: Tensor | None,
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    errors: Tensor,
    steps: Tensor,
    workspace: Tensor,
    tol: float,
    maxiter: int,
    seed: int,
    device: int,
    stream: int,
    threads: int,
) -> None: ...
def certified_top_workspace(a: Tensor, device: int, stream: int, threads: int) -> int: ...
def certified_top(
    a: Tensor,
    vectors: Tensor,
    numbers: Tensor,
    products: Tensor,
    workspace: Tensor,
    tol: float,
    maxiter: int,
    seed: int,
    device: int,
    stream: int,
    threads: int,
) -> None: ...
def lanczos_step_workspace(
    replicas: int, n: int, rows: int, device: int, stream: int, threads: int
) -> int: ...
def lanczos_step(
    basis: Tensor,
    alpha: Tensor,
    beta: Tensor,
    w: Tensor,
    coefficients: Tensor | None,
    workspace: Tensor,
    step: int,
    rows: int,
    breakdown: float,
    device: int,
    stream: int,
    threads: int,
) -> None: ...
def toy_gd_workspace(
    U: Tensor, samples: int, curvatures: int, linear: bool, device: int, stream: int, threads: int
) -> int: ...
def toy_gd(
    U: Tensor,
    v: Tensor,
    x: Tensor,
    y: Tensor,
    eta: Tensor,
    loss: Tensor,
    weight_norm: Tensor,
    diverged_at: Tensor,
    curvature: Tensor,
    workspace: Tensor,
    steps: int,
    record_every: int,
    curvature_every: int,
    activation: int,
    slope: float,
    device: int,
    stream: int,
    threads: int,
) -> None: ...
def toy_gd_reduced_workspace(
    w: Tensor, samples: int, curvatures: int, device: int, stream: int, threads: int
) -> int: ...
def toy_gd_reduced(
    w: Tensor,
    S: Tensor,
    q: Tensor,
    x: Tensor,
    y: Tensor,
    eta: Tensor,
    loss: Tensor,
    weight_norm: Tensor,
    diverged_at: Tensor,
    curvature: Tensor,
    workspace: Tensor,
    width: float,
    steps: int,
    record_every: int,
    curvature_every: int,
    device: int,
    stream: int,
    threads: int,
) -> None: ...
def ntk_matvec(
    v: Tensor,
    weights: list[Tensor],
    inputs: list[Tensor],
    slopes: list[Tensor],
    grams: list[Tensor],
    scale: list[float],
    bias: list[float],
    workspace: Tensor,
    out: Tensor,
    device: int,
    stream: int,
    threads: int,
) -> None: ...
def ntk_matvec_workspace(
    samples: int,
    p: list[int],
    d: list[int],
    in_sample_space: list[int],
    device: int,
    stream: int,
    threads: int,
) -> int: ...
def toy_lyapunov(
    mean: Tensor,
    deviation: Tensor,
    beta: Tensor,
    growth: Tensor,
    steps: int,
    burn_in: int,
    first_path: int,
    seed: int,
    noise: int,
    device: int,
    stream: int,
    threads: int,
) -> None: ...
def toy_scalar(
    h: Tensor,
    k: Tensor,
    b: Tensor,
    beta: Tensor | None,
    peak: Tensor,
    peak_step: Tensor,
    diverged_at: Tensor,
    record_a: Tensor,
    record_v: Tensor,
    steps: int,
    record_every: int,
    early_exit: bool,
    device: int,
    stream: int,
    threads: int,
) -> None: ...
def tridiag_eigh(
    alpha: Tensor,
    beta: Tensor,
    eigenvalues: Tensor,
    first: Tensor,
    last: Tensor,
    device: int,
    stream: int,
    threads: int,
) -> None: ...
def int16_product_is_fast(device: int, stream: int, threads: int) -> bool: ...
def int16_side_size(
    left: bool, free: int, depth: int, device: int, stream: int, threads: int
) -> int: ...
def int16_pack(
    matrix: Tensor, left: bool, packed: Tensor, device: int, stream: int, threads: int
) -> None: ...
def int16_product(
    a: Tensor,
    b: Tensor,
    mask: Tensor | None,
    out: Tensor,
    workspace: Tensor,
    depth: int,
    add: bool,
    device: int,
    stream: int,
    threads: int,
) -> None: ...
