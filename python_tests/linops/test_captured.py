"""Products as CUDA graphs, on a pretended device: captured once, replayed, right for any vector."""

import copy

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.models import small_cnn
from catapult_ext.testing.pretended import moved, pretended_cuda, why_unavailable

pytestmark = pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable())


def net(kind):
    torch.manual_seed(0)
    if kind == "cnn":
        return small_cnn(4, 2, channels=3, seed=0).double(), torch.randn(3, 1, 4, 4).double()
    layers = [nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)]
    return nn.Sequential(*layers).double(), torch.randn(7, 5).double()


def operators(model, x, y, **options):
    return {
        "ntk": cx.NTK(model, x, **options),
        "jacobian": cx.Jacobian(model, x, **options),
        "ggn": cx.GGN(model, "cross_entropy", (x, y), **options),
        "hessian": cx.Hessian(model, "cross_entropy", (x, y), **options),
    }


@pytest.mark.parametrize("kind", ["chain", "cnn"])
def test_a_captured_product_is_one_launch_and_right(kind):
    model, x = net(kind)
    y = torch.randint(2, (len(x),))
    want = operators(model, x, y)
    with pretended_cuda() as device:
        for name, A in operators(moved(model), moved(x), moved(y), graphs=True).items():
            vectors = torch.randn(A.shape[1], 2, dtype=torch.float64)
            first = A @ moved(vectors)
            device.reset()
            again = A @ moved(-vectors)
            assert device.kernels["graph"] == (2 if A.columns == 1 else 1)
            assert not device.waits
            for got, sign in ((first, 1), (again, -1)):
                torch.testing.assert_close(got.cpu(), sign * (want[name] @ vectors))
            torch.testing.assert_close((A @ moved(vectors[:, 0])).cpu(), want[name] @ vectors[:, 0])


def test_copies_and_other_widths_have_their_own_graphs():
    model, x = net("chain")
    vectors = torch.randn(14, 6, dtype=torch.float64)
    want = cx.NTK(model, x) @ vectors
    with pretended_cuda("cpu"):
        A = cx.NTK(moved(model), moved(x), graphs=True)
        B = copy.copy(A)
        for columns in (1, 2, 3, 4, 5, 6, 1):
            for operator in (A, B):
                got = operator @ moved(vectors[:, :columns])
                torch.testing.assert_close(got.cpu(), want[:, :columns])


def test_eigenvalues_by_captured_products():
    model, x = net("cnn")
    want = cx.eigsh(cx.NTK(model, x), k=2).eigenvalues
    with pretended_cuda():
        got = cx.eigsh(cx.NTK(moved(model), moved(x), graphs=True), k=2).eigenvalues
        torch.testing.assert_close(got.cpu(), want)


def test_on_the_cpu_nothing_changes():
    model, x = net("chain")
    v = torch.ones(14, dtype=torch.float64)
    assert torch.equal(cx.NTK(model, x, graphs=True) @ v, cx.NTK(model, x) @ v)


def test_parameters_that_changed_are_refused_at_every_product():
    model, x = net("chain")
    with pretended_cuda():
        model, x = moved(model), moved(x)
        A = cx.NTK(model, x, graphs=True, copy=False)
        v = moved(torch.ones(14, dtype=torch.float64))
        A @ v
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
        with pytest.raises(RuntimeError, match="stay as they were"):
            A @ v


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"graphs": 1}, TypeError, "graphs must be True or False, got 1"),
        ({"graphs": True, "samples_at_once": 2}, ValueError, "graphs=True needs all samples"),
    ],
)
def test_refused(options, error, message):
    model, x = net("chain")
    for make in (
        lambda: cx.NTK(model, x, **options),
        lambda: cx.Hessian(model, "mse", (x, torch.zeros(7, 2).double()), **options),
    ):
        with pytest.raises(error, match=message):
            make()


def test_a_product_that_waits_is_named():
    class Waits(nn.Module):
        def forward(self, x):
            return Waiting.apply(self.weight * x)

    class Waiting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            g.sum().item()
            return g

    model = Waits()
    model.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    with pretended_cuda():
        model, x = moved(model), moved(torch.ones(4, 1, dtype=torch.float64))
        A = cx.NTK(model, x, graphs=True, check=False)
        with pytest.raises(RuntimeError, match="NTK: graphs=True: the product cannot be captured"):
            A @ moved(torch.ones(4, dtype=torch.float64))
