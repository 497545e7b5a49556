"""lanczos_step against the same step composed of torch calls (Gram-Schmidt twice)."""

import pytest
import torch
from harness import Case

from catapult_ext import ops, reference

SHAPES = [(1, 5120, 20), (1, 1_000_000, 20), (64, 512, 20)]


def composed(basis, alpha, beta, w, step):
    """What a plain torch Lanczos does per step: batched GEMVs, two passes."""
    q, rest = basis[:, : step + 1], w
    for _ in range(2):
        part = torch.bmm(q, rest[..., None])
        rest = rest - torch.bmm(q.mT, part)[..., 0]
        if _ == 0:
            alpha[:, step] = part[:, step, 0]
    beta[:, step] = rest.norm(dim=1)
    basis[:, step + 1] = rest / beta[:, step, None]


@pytest.mark.parametrize(("replicas", "n", "rows"), SHAPES)
def test_lanczos_step(measure, replicas, n, rows):
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(replicas, n, rows, generator=generator)).Q.mT
    basis = torch.cat([q, torch.zeros(replicas, 1, n)], 1)
    alpha, beta = torch.ones(replicas, rows), torch.ones(replicas, rows)
    w = torch.randn(replicas, n, generator=generator)

    def check():
        expected = [basis.clone(), alpha.clone(), beta.clone()]
        reference.lanczos_step(*expected, w, rows - 1)
        ops.lanczos_step(basis, alpha, beta, w, rows - 1)
        assert (basis - expected[0]).abs().max() < 1e-5

    measure(
        Case(
            ours=lambda: ops.lanczos_step(basis, alpha, beta, w, rows - 1),
            baselines={"torch composition": lambda: composed(basis, alpha, beta, w, rows - 1)},
            check=check,
            flops=8.0 * replicas * rows * n,
            bytes=4.0 * replicas * n * (2 * rows + 4),
        )
    )
