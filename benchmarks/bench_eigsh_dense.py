"""eigsh of an explicit matrix for few and for all pairs, against torch.linalg.eigh (LAPACK)."""

import pytest
import torch
from harness import Case

import catapult_ext as cx

TARGETS = {1: 1.0, 1000: 1 / 3}  # all pairs: at most three times LAPACK, which solves them


def symmetric(n):
    x = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (x + x.T) / n**0.5


@pytest.mark.parametrize("k", [1, 1000])
def test_eigsh_of_a_matrix(measure, quick, k):
    n = 200 if quick else 1000
    k = min(k, n)
    a = symmetric(n)
    result = cx.eigsh(a, k)

    def check():
        exact = torch.linalg.eigh(a)[0].flip(0)[:k]  # eigvalsh errs by 40 eps |A|
        assert ((result.eigenvalues - exact).abs() <= result.errors).all()
        assert result.converged

    measure(
        Case(
            ours=lambda: cx.eigsh(a, k),
            baselines={"torch.linalg.eigh": lambda: torch.linalg.eigh(a)},
            check=check,
            flops=9.0 * n**3,  # tridiagonal form, QR with vectors, and back
            bytes=8.0 * n * n,
            unit=("matrices", 1),
            target={"torch.linalg.eigh": TARGETS[1 if k == 1 else 1000]},
        )
    )
