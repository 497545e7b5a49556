"""Symmetric matrices with prescribed spectra, and those of small networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from catapult_ext import linops, models

_CLUSTERS = {
    "cluster_1e-2": [0.97, 0.98, 0.99, 1.0],
    "cluster_1e-4": [1 - 2e-4, 1 - 1e-4, 1.0],
    "cluster_1e-7": [1 - 2e-7, 1 - 1e-7, 1.0],
    "double": [1.0, 1.0],
    "triple": [1.0, 1.0, 1.0],
    "two_pairs": [0.9, 0.9, 1.0, 1.0],
    "near_double": [0.998, 1.0],
}
SPECTRA = (
    *_CLUSTERS,
    *("flat", "geometric", "indefinite", "negative", "rank_deficient", "zero", "identity"),
    *("tiny", "huge"),
)
_NETS: dict[str, Callable[[], torch.nn.Module]] = {
    "relu": lambda: models.fully_connected(12, 3, width=16, depth=2, seed=1),
    "tanh": lambda: models.fully_connected(
        12, 3, width=10, depth=3, activation_name="tanh", seed=2
    ),
    "conv": lambda: models.small_cnn(6, 3, channels=4, seed=3),
}


def spectrum(name: str, n: int) -> Tensor:
    """Eigenvalues (n,) float64 of the prescribed spectrum ``name``."""
    if name in _CLUSTERS:
        e = torch.linspace(0, 0.5, n, dtype=torch.float64, device="cpu")
        tops = torch.tensor(_CLUSTERS[name], dtype=torch.float64, device="cpu")
        e[-len(tops) :] = tops
        return e
    g = torch.Generator().manual_seed(7)
    uniform = torch.rand(n, dtype=torch.float64, generator=g, device="cpu")
    low_rank = torch.zeros(n, dtype=torch.float64, device="cpu")
    low_rank[:4] = torch.tensor([3.0, 2.0, 2.0, 1.0], dtype=torch.float64, device="cpu")
    return {
        "flat": uniform,
        "geometric": 0.7 ** torch.arange(n, dtype=torch.float64, device="cpu"),
        "indefinite": torch.linspace(-1, 0.98, n, dtype=torch.float64, device="cpu"),
        "negative": -uniform - 0.5,
        "rank_deficient": low_rank,
        "zero": torch.zeros(n, dtype=torch.float64, device="cpu"),
        "identity": torch.ones(n, dtype=torch.float64, device="cpu"),
        "tiny": uniform * 1e-20,
        "huge": uniform * 1e20,
    }[name]


def matrix(name: str, dtype: torch.dtype, n: int, seed: int = 0) -> Tensor:
    """Symmetric (n, n) with that spectrum and random eigenvectors."""
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=g, device="cpu"))[0]
    a = (q * spectrum(name, n)) @ q.T
    return ((a + a.T) / 2).to(dtype)


class Wrapped:
    """A matrix that shows only shape, dtype and @."""

    def __init__(self, a: Tensor) -> None:
        self._a, self.shape, self.dtype = a, a.shape, a.dtype

    def __matmul__(self, x: Tensor) -> Tensor:
        return self._a @ x


def collection(dtype: torch.dtype) -> dict[str, Tensor]:
    """Forty-one symmetric matrices: spectra at two sizes, NTK, GGN and Hessian of small nets."""
    found = {f"{name}-60": matrix(name, dtype, 60) for name in SPECTRA}
    found |= {f"{name}-150": matrix(name, dtype, 150, seed=1) for name in SPECTRA}
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 12, generator=g, dtype=torch.float64, device="cpu")
    images = torch.randn(20, 1, 6, 6, generator=g, dtype=torch.float64, device="cpu")
    y = torch.randn(20, 3, generator=g, dtype=torch.float64, device="cpu")
    for name, make in _NETS.items():
        net, inputs = make().double(), images if name == "conv" else x
        for kind, operator in (
            ("ntk", linops.NTK(net, inputs)),
            ("ggn", linops.GGN(net, "half_mse", (inputs, y))),
            ("hessian", linops.Hessian(net, "half_mse", (inputs, y))),
        ):
            a = operator.dense()
            found[f"{name}_{kind}"] = ((a + a.T) / 2).to(dtype)
    return found
