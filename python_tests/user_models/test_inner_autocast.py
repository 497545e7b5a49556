"""Models that switch autocast on themselves: products in the precision of their forward pass."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import catapult_ext as cx

CE = nn.CrossEntropyLoss()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 8) for _ in range(3))
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        h = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return self.out(self.norm(h).mean(1))


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(24, 16), nn.GELU(), nn.Linear(16, 3))


def cnn():
    parts = (nn.Unflatten(1, (1, 4)), nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(144, 3)).eval()


class InAutocast(nn.Module):
    """As accelerate's ``prepare`` makes it: bfloat16 inside, float32 outside."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x).float()


@pytest.fixture(params=[mlp, cnn, Attention], ids=lambda make: make.__name__)
def nets(request):
    torch.manual_seed(0)
    low = InAutocast(request.param())
    return low, copy.deepcopy(low.inner).double()


@pytest.fixture
def data():
    torch.manual_seed(1)
    return torch.randn(6, 4, 6), torch.randint(3, (6,))


OPERATORS = {
    "NTK": lambda m, x, y, **k: cx.NTK(m, x, **k),
    "GGN": lambda m, x, y, **k: cx.GGN(m, CE, (x, y), **k),
    "Hessian": lambda m, x, y, **k: cx.Hessian(m, CE, (x, y), **k),
    "chunks": lambda m, x, y, **k: cx.GGN(m, CE, (x, y), samples_at_once=2, **k),
    "streamed": lambda m, x, y, **k: cx.StreamedGGN(m, CE, [(x[:4], y[:4]), (x[4:], y[4:])], **k),
    "sum": lambda m, x, y, **k: 2 * cx.GGN(m, CE, (x, y), **k),
}


@pytest.mark.parametrize("kind", OPERATORS)
def test_errors_of_eigenvalues_hold_the_rounding_of_the_forward_pass(kind, nets, data):
    (low, exact), (x, y) = nets, data
    right = cx.eigsh(OPERATORS[kind](exact, x.double(), y), tol=1e-10)
    operator = OPERATORS[kind](low, x, y)
    assert operator.rounding_unit == torch.finfo(torch.bfloat16).eps
    top = cx.eigsh(operator)
    off = abs(top.eigenvalues.item() - right.eigenvalues.item())
    unit = torch.finfo(torch.bfloat16).eps * right.eigenvalues.item()
    assert top.converged
    assert off <= unit  # what the precision of the forward pass allows
    assert 2 * unit <= 1.05 * top.errors.item() <= 5 * unit


def test_dense_kernels_are_in_the_precision_of_the_forward_pass(nets, data):
    (low, exact), (x, _) = nets, data
    kernel, right = cx.NTK(low, x), cx.NTK(exact, x.double())
    for one, other in (
        (kernel.dense(), right.dense()),
        (kernel.diagonal(), right.diagonal()),
        (cx.Jacobian(low, x).dense(), cx.Jacobian(exact, x.double()).dense()),
    ):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= torch.finfo(torch.bfloat16).eps * other.norm()


def test_bfloat16_outputs(nets, data):
    (low, exact), (x, y) = nets, data

    def forward(model, x):
        return model(x).bfloat16()

    top = cx.eigsh(cx.GGN(low, CE, (x, y), forward=forward))
    right = cx.eigsh(cx.GGN(exact, CE, (x.double(), y)))
    assert abs(top.eigenvalues.item() - right.eigenvalues.item()) <= top.errors.item()
    assert (cx.NTK(low, x, forward=forward) @ torch.ones(18)).dtype == torch.float32


def test_casts_of_an_earlier_pass_are_not_taken(nets, data):
    """Each chunk replays a program of its own: the weights' casts are part of every pass."""
    (low, _), (x, _) = nets, data
    linearization = cx.NTK(low, x, samples_at_once=2).linearization
    v = torch.randn(linearization.n_params, 1)
    with torch.autocast("cpu", enabled=False):  # an autocast outside keeps the cache of one inside
        for samples in (slice(0, 2), slice(2, 4), slice(4, 6)):
            piece = linearization._piece(samples)
            whole = cx.NTK(low, x[samples])
            right = whole.linearization.jvp(v)
            assert (piece.jvp(v) - right).norm() <= 2 * whole.rounding_unit * right.norm()
            assert piece._program is not None


def test_full_precision_has_no_such_error(nets, data):
    _, exact = nets
    x, y = data
    operator = cx.GGN(exact, CE, (x.double(), y))
    assert operator.rounding_unit == torch.finfo(torch.float64).eps
    assert cx.eigsh(operator, tol=1e-10).errors.item() < 1e-9


class Hidden(torch.autograd.Function):
    """Computes in NumPy, where no program of tangents sees it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.cos()


class Routed(nn.Module):
    """Samples above zero, if a chunk holds any, pass a branch that others do not."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.tanh(self.a(x)).mean(1)  # no chain of dense layers
        up = (x[:, 0, 0] > 0).nonzero()[:, 0]
        if len(up):
            h = h.index_add(0, up, Hidden.apply(self.b(h[up])))
        return self.c(h)


def test_a_proof_of_one_chunk_is_none_of_another(data):
    torch.manual_seed(0)
    model, (x, y) = Routed().double(), data
    x = x.double()
    x[:, 0, 0] = torch.tensor([-1.0, -1, -1, 1, 1, -1])
    whole, chunks = cx.GGN(model, CE, (x, y)), cx.GGN(model, CE, (x, y), samples_at_once=2)
    v = torch.randn(whole.shape[0], dtype=torch.float64)
    assert torch.allclose(chunks @ v, whole @ v, rtol=1e-10, atol=1e-14)
    theta = cx.NTK(model, x).dense()
    u = torch.randn(len(theta), dtype=torch.float64)
    assert torch.allclose(cx.NTK(model, x, samples_at_once=2) @ u, theta @ u, rtol=1e-10)
