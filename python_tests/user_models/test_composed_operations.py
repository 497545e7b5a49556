"""Hessians through operations whose higher derivatives torch lacks or has wrong."""

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.model import composed


def random(*shape, seed=3):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def joined(grads, params):
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, params, strict=True)]
    return torch.cat([g.reshape(-1) for g in filled])


def hessian_by_differences(model, value, step=1e-5):
    """H of ``value()`` from central differences of the gradient."""
    params = list(model.parameters())
    at = nn.utils.parameters_to_vector(params).detach().clone()

    def gradient(theta):
        nn.utils.vector_to_parameters(theta, params)
        grads = torch.autograd.grad(value(), params, allow_unused=True)
        return joined(grads, params)

    columns = [
        (gradient(at + step * unit) - gradient(at - step * unit)) / (2 * step)
        for unit in torch.eye(len(at), dtype=at.dtype)
    ]
    nn.utils.vector_to_parameters(at, params)
    h = torch.stack(columns, 1)
    return (h + h.T) / 2


def residual(model, x):
    """u_x of the network, as in PDE residuals and forces."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return g[:, :1]


def curvature(model, x):
    """u_xx: one derivative more, so that J is wrong as well in torch."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        (h,) = torch.autograd.grad(g[:, 0].sum(), x, create_graph=True)
    return h[:, :1]


def physics(affine=True):
    torch.manual_seed(0)
    norm = nn.LayerNorm(6, elementwise_affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
    return nn.Sequential(nn.Linear(2, 6), norm, nn.Tanh(), nn.Linear(6, 1)).double()


class Plain(nn.Module):
    """A layer norm from plain operations, whose derivatives are right, with shared parameters."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x):
        c = x - x.mean(-1, keepdim=True)
        out = c / (c.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return out if self.weight is None else out * self.weight + self.bias


X2 = torch.rand(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("forward", [residual, curvature])
def test_layer_norm_under_derivatives_by_the_inputs(forward, affine):
    model, y, loss = physics(affine), torch.zeros(5, 1).double(), nn.MSELoss()
    plain = nn.Sequential(model[0], Plain(model[1]), *model[2:])
    right = hessian_by_differences(plain, lambda: loss(forward(plain, X2), y))
    params = list(plain.parameters())
    rows = [
        torch.autograd.grad(a, params, retain_graph=True, allow_unused=True)
        for a in forward(plain, X2).flatten()
    ]
    j = torch.stack([joined(row, params) for row in rows])
    for options in ({}, {"samples_at_once": 2}):
        hessian = cx.Hessian(model, loss, (X2, y), forward=forward, **options)
        assert (hessian.dense() - right).norm() <= 1e-6 * right.norm()
    kernel = cx.NTK(model, X2, forward=forward)
    assert (kernel @ random(5) - j @ (j.T @ random(5))).norm() <= 1e-9 * (j @ j.T).norm()


class Rbf(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.c, self.o, self.p = nn.Parameter(torch.randn(4, 3)), nn.Linear(4, 2), p

    def forward(self, x):
        return self.o(torch.exp(-torch.cdist(x, self.c, self.p)))


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.a(x)
        return self.o(h * torch.pdist(h).mean())


def sequential(*layers):
    return lambda: nn.Sequential(*(make() for make in layers))


IDS = torch.tensor([[0, 1], [2, 2], [3, 5], [1, 4]])
ONCE = {
    "hardsigmoid chain": (
        sequential(lambda: nn.Linear(3, 4), nn.Hardsigmoid, lambda: nn.Linear(4, 2)),
        random(4, 3),
    ),
    "hardsigmoid images": (
        sequential(
            lambda: nn.Conv2d(1, 3, 2), nn.Hardsigmoid, nn.Flatten, lambda: nn.Linear(12, 2)
        ),
        random(4, 1, 3, 3),
    ),
    "cdist": (lambda: Rbf(2.0), random(4, 3)),
    "cdist p=3": (lambda: Rbf(3.0), random(4, 3)),
    "pdist": (Pairs, random(4, 3)),
    "bag mean": (sequential(lambda: nn.EmbeddingBag(6, 3), nn.Tanh, lambda: nn.Linear(3, 2)), IDS),
    "bag sum": (
        sequential(lambda: nn.EmbeddingBag(6, 3, mode="sum"), nn.Tanh, lambda: nn.Linear(3, 2)),
        IDS,
    ),
}


@pytest.mark.parametrize("name", ONCE)
def test_hessian_without_torchs_second_derivative(name):
    torch.manual_seed(0)
    make, x = ONCE[name]
    model, loss, y = make().double(), nn.CrossEntropyLoss(), torch.tensor([0, 1, 1, 0])
    right = hessian_by_differences(model, lambda: loss(model(x), y))
    for options in ({}, {"samples_at_once": 2}, {"hvp": "forward"}):
        if name == "pdist" and "samples_at_once" in options:
            continue  # its samples depend on each other
        found = cx.Hessian(model, loss, (x, y), **options).dense()
        assert (found - right).norm() <= 1e-6 * right.norm()


@pytest.mark.parametrize("dims", [1, 2])
def test_composed_layer_norm_is_torchs(dims):
    x, shape = random(3, 4, 5), (4, 5)[2 - dims :]
    weight, bias = random(*shape, seed=1), random(*shape, seed=2)
    for args in ((), (weight,), (weight, bias)):
        right = nn.functional.layer_norm(x, shape, *args)
        assert torch.allclose(composed.layer_norm(x, shape, *args), right, rtol=1e-12)
