"""Models that are sure of their classes: curvature of 1e-177 is as good as the outputs it is of."""

import pytest
import torch

import catapult_ext as cx
from catapult_ext import losses
from catapult_ext.linops.stacked.loss import StackedLoss

DOUBLE = {"dtype": torch.float64}
CASES = [("cross_entropy", torch.zeros(6, dtype=torch.long)), ("bce", torch.ones(6, 3, **DOUBLE))]


def resolved(loss):
    return losses.resolve(torch.nn.BCEWithLogitsLoss() if loss == "bce" else loss)


@pytest.mark.parametrize(("loss", "y"), CASES, ids=["softmax", "logistic"])
def test_of_equal_outputs_the_curvature_is_equal(loss, y):
    """exp(-407) is 1e-177: nothing underflows, and no digit is lost."""
    g = torch.Generator().manual_seed(0)
    f = 407 * torch.randn(4, 6, 3, generator=g, **DOUBLE).sign() + torch.randn(
        4, 6, 3, generator=g, **DOUBLE
    )
    u = torch.randn(4, 18, 2, generator=g, **DOUBLE)
    known = resolved(loss)
    found = StackedLoss(known, f, y).hessian(u)
    for r in range(4):
        alone = known.output_hessian(f[r], y).hessian(u[r].reshape(6, 3, 2)).reshape(18, 2)
        torch.testing.assert_close(found[r], alone, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("loss", "y"), CASES, ids=["softmax", "logistic"])
def test_matrices_differ_by_what_rounding_moves_the_outputs(loss, y):
    """p = exp(-f) is off by the relative amount that f is off by absolutely: |f| eps and more.

    So batched and single matrices of about 1e-177, whose forward passes round differently, agree
    to a thousandth of the digits that those of about 1 agree to, and neither is the better one.
    """
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), **DOUBLE)
    nets = [cx.models.fully_connected(5, 3, width=8, depth=2, seed=s, **DOUBLE) for s in range(3)]
    with torch.no_grad():
        for net in nets:
            f = net(x)
            least = f.abs().min() if loss == "bce" else f.diff(dim=1).abs().min()
            net[-1].weight.mul_(407 / least)
        moved = max(4 * 8 * 2.3e-16 * float(net(x).abs().max()) for net in nets)
    together = cx.GGN(nets, resolved(loss), (x, y)).dense()
    for matrix, net in zip(together, nets, strict=True):
        alone = cx.GGN(net, resolved(loss), (x, y)).dense()
        assert 0 < alone.abs().max() < 1e-30
        assert (matrix - alone).abs().max() <= moved * alone.abs().max()
