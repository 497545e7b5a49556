"""A softmax that is sure of a class: its curvature is tiny, and keeps its digits."""

from __future__ import annotations

import pytest
import torch

import catapult_ext as cx
from catapult_ext import losses
from catapult_ext.losses import factors

F64 = torch.float64


def logits(gap, n=6, classes=5):
    draw = torch.Generator().manual_seed(0)
    f = torch.randn(n, classes, generator=draw)
    f[torch.arange(n), torch.arange(n) % classes] += gap
    return f


@pytest.mark.parametrize("gap", [0.0, 5.0, 20.0, 40.0, 70.0])
@pytest.mark.parametrize("tile", [1 << 18, 3])
def test_products_are_those_of_high_precision(gap, tile, monkeypatch):
    monkeypatch.setattr(factors, "TILE", tile)
    f = logits(gap)
    found = factors.SoftmaxFactor(torch.ones(6, 1), f)
    u = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(1))
    # of the exact probabilities, by sums over pairs: H u = sum_j p_i p_j (u_i - u_j)
    p = torch.softmax(f.double(), 1)
    apart = u.double()[:, :, None] - u.double()[:, None]
    exact = torch.einsum("ni,nj,nijk->nik", p, p, apart)
    size = exact.abs().amax((1, 2), keepdim=True)
    for product in (found.hessian(u), found.apply(found.apply_t(u))):
        assert ((product.double() - exact).abs() <= 2e-5 * size).all()


@pytest.mark.parametrize("gap", [20.0, 40.0])
def test_the_top_eigenvalue_of_a_sure_classifier(gap):
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 5)
    x, y = torch.randn(12, 8), torch.arange(12) % 5
    with torch.no_grad():
        model.weight.mul_(gap)
    found = cx.eigsh(cx.GGN(model, "cross_entropy", (x, y)), tol=1e-3)
    exact = torch.linalg.eigvalsh(cx.GGN(model.double(), "cross_entropy", (x.double(), y)).dense())
    assert (
        abs(found.eigenvalues.item() - exact[-1].item()) <= 1e-4 * exact[-1].item() + found.errors
    )


def test_a_softmax_of_one_class_has_no_curvature():
    data = cx.data.digits(train=64)
    loss = losses.resolve("cross_entropy")
    factor = loss.output_hessian(1e3 * data.y_train, data.y_train.argmax(1))
    u = torch.randn(64, 10, 2, generator=torch.Generator().manual_seed(0))
    for product in (factor.hessian(u), factor.apply(u), factor.apply_t(u)):
        assert not product.any()  # rounding of ones would leave 1e-8


def test_a_logistic_unit_that_is_sure_keeps_its_curvature():
    f = torch.tensor([[20.0, -20.0], [40.0, 0.0]])
    factor = losses.resolve("bce").output_hessian(f, torch.ones(2, 2))
    exact = torch.sigmoid(f.double()) * torch.sigmoid(-f.double())
    found = factor.hessian(torch.ones(2, 2, 1))[..., 0].double()
    ratio = found / exact
    torch.testing.assert_close(ratio, torch.full_like(ratio, ratio[1, 1].item()), rtol=1e-5, atol=0)
