"""lanczos_dense, top-1, against the full spectrum by torch.linalg.eigvalsh (LAPACK)."""

import pytest
import torch
from harness import Case

from catapult_ext import ops

TARGETS = {"digits_ntk": 20.0, "wishart": 4.0}


def digits_ntk(replicas, n):
    """Kernels of one-hidden-layer ReLU networks (width 512, one output, no bias) on digits.

    One network per seed and replica; NTK parameterisation with sigma_w^2 = 2, so that
    Theta = (2 / D) X X' o (S S') + (2 / W) phi phi' with S = phi'(z) v sqrt(2 / W).
    """
    from sklearn.datasets import load_digits

    x = torch.tensor(load_digits().data[:n], dtype=torch.float32)
    x = (x - x.mean()) / x.std()
    kernels = []
    for seed in range(replicas):
        generator = torch.Generator().manual_seed(seed)
        u = torch.randn(512, x.shape[1], generator=generator)
        v = torch.randn(512, generator=generator)
        z = x @ u.T * (2 / x.shape[1]) ** 0.5
        slope = (z > 0) * v * (2 / 512) ** 0.5
        hidden = z.relu() * (2 / 512) ** 0.5
        kernels.append((2 / x.shape[1]) * (x @ x.T) * (slope @ slope.T) + hidden @ hidden.T)
    return torch.stack(kernels)


def wishart(replicas, n):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(replicas, n, 4 * n, generator=generator)
    return x @ x.mT / (4 * n)


@pytest.mark.parametrize("spectrum", ["digits_ntk", "wishart"])
def test_lanczos_dense(measure, quick, spectrum):
    replicas, n = (4, 128) if quick else (64, 512)
    a = globals()[spectrum](replicas, n)
    result = ops.lanczos_dense(a)

    def check():
        exact = torch.linalg.eigvalsh(a[:8].double())[:, -1:]
        error = (result.eigenvalues[:8].double() - exact).abs()
        assert (error <= result.errors[:8]).all()
        assert (result.errors <= 1e-5 * result.eigenvalues).all()

    def one_thread():
        """LAPACK's threads hinder each other on small matrices: the fairer baseline."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        torch.linalg.eigvalsh(a)
        torch.set_num_threads(threads)

    info = measure(
        Case(
            ours=lambda: ops.lanczos_dense(a),
            baselines={
                "torch.linalg.eigvalsh": lambda: torch.linalg.eigvalsh(a),
                "eigvalsh, one thread": one_thread,
            },
            check=check,
            flops=float(result.steps.sum()) * 2.0 * n * n,
            bytes=float(result.steps.sum()) * 2.0 * n * n,  # half of the float32 matrix a product
            unit=("matrices", replicas),
            target={"torch.linalg.eigvalsh": TARGETS[spectrum]},
        )
    )
    info["steps"] = float(result.steps.double().mean())
    info["reported_relative_error"] = float((result.errors / result.eigenvalues).max())
