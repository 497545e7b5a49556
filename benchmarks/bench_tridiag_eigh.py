"""tridiag_eigh against dense eigvalsh of the assembled matrices."""

import pytest
import torch
from harness import Case

from catapult_ext import ops, reference


@pytest.mark.parametrize(("replicas", "m"), [(64, 32), (64, 128)])
def test_tridiag_eigh(measure, replicas, m):
    generator = torch.Generator().manual_seed(0)
    alpha = torch.randn(replicas, m, generator=generator)
    beta = torch.randn(replicas, m - 1, generator=generator)
    matrix = reference.tridiag_eigh(alpha.double(), beta.double())

    def check():
        assert (ops.tridiag_eigh(alpha, beta)[0] - matrix[0]).abs().max() < 1e-5

    dense = torch.diag_embed(alpha)
    dense += torch.diag_embed(beta, offset=1) + torch.diag_embed(beta, offset=-1)
    measure(
        Case(
            ours=lambda: ops.tridiag_eigh(alpha, beta),
            baselines={"torch.linalg.eigvalsh": lambda: torch.linalg.eigvalsh(dense)},
            check=check,
            unit=("problems", replicas),
        )
    )
