"""Matrices that are symmetric up to rounding of their own terms: an error bar, never a refusal."""

import numpy as np
import pytest
import torch
from torch import nn

import catapult_ext as cx


def diagonal(n=100):
    a = torch.diag(torch.linspace(0, 1, n, dtype=torch.float64))
    a[-1, -1] = 3
    return a


class Noisy:
    """A matrix whose products carry noise: drawn, or of rounding to another dtype."""

    def __init__(self, a, noise):
        self.a, self.noise = a, noise
        self.shape, self.dtype, self.device = a.shape, a.dtype, a.device
        self.generator = torch.Generator().manual_seed(1)

    def __matmul__(self, v):
        if isinstance(self.noise, torch.dtype):
            return (self.a.to(self.noise) @ v.to(self.noise)).to(v)
        draw = torch.randn(v.shape, dtype=v.dtype, generator=self.generator)
        return self.a @ v + self.noise * draw


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("tol", [1e-3, 1e-8, 1e-12])
@pytest.mark.parametrize("noise", [1e-12, 1e-10, 1e-9, 1e-7, 1e-5])
def test_drawn_noise_is_in_the_errors(noise, tol, k):
    found = cx.eigsh(Noisy(diagonal(), noise), k, tol=tol)
    true = diagonal().diagonal().sort(descending=True).values[:k]
    assert ((found.eigenvalues - true).abs() <= found.errors).all()
    assert found.errors.max() <= max(1e3 * noise, 3.1 * tol)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("inside", [torch.float32, torch.bfloat16])
def test_rounding_inside_is_in_the_errors(inside, k):
    q = torch.linalg.qr(
        torch.randn(80, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )[0]
    a = q @ diagonal(80) @ q.T
    found = cx.eigsh(Noisy((a + a.T) / 2, inside), k, tol=1e-8)
    right = torch.linalg.eigvalsh(a.to(inside).double()).flip(0)[:k]
    assert ((found.eigenvalues - right).abs() <= found.errors).all()
    assert found.errors.max() <= 0.3


def test_a_scipy_operator_in_float32_that_says_float64():
    from scipy.sparse.linalg import LinearOperator

    a = np.random.default_rng(0).normal(size=(60, 60))
    a = a + a.T
    low = a.astype(np.float32)
    operator = LinearOperator(
        a.shape,
        matvec=lambda v: (low @ v.astype(np.float32)).astype(np.float64),
        dtype=np.float64,
    )
    for k in (1, 3):
        found = cx.eigsh(operator, k, tol=1e-10)
        right = torch.from_numpy(np.linalg.eigvalsh(low.astype(np.float64))[::-1][:k].copy())
        assert ((found.eigenvalues - right).abs() <= found.errors).all()


@pytest.mark.parametrize("skew", [1e-6, 1e-4, 1e-2, 0.3])
def test_an_asymmetry_that_is_linear_is_refused(skew):
    b = torch.randn(100, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    class Wrapped(Noisy):
        def __matmul__(self, v):
            return self.a @ v

    for a in (diagonal() + skew * b, diagonal() + skew * (b - b.T)):
        with pytest.raises(ValueError, match=r"symmetric and repeatable .*likely causes"):
            cx.eigsh(Wrapped(a, 0), 2)


def test_products_of_noise_alone_are_refused():
    with pytest.raises(ValueError, match="symmetric and repeatable"):
        cx.eigsh(Noisy(diagonal(), 0.3), 2)


@pytest.mark.parametrize("skew", [1e-4, 0.3])
def test_a_skew_of_an_operator_known_to_be_symmetric_is_in_the_errors(skew):
    b = torch.randn(100, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    class Known(Noisy):
        skew_is_rounding = True

        def __matmul__(self, v):
            return self.a @ v

    a = diagonal() + skew * (b - b.T)
    found = cx.eigsh(Known(a, 0), 2)
    assert ((found.eigenvalues - torch.tensor([3.0, 98 / 99])).abs() <= found.errors).all()
    assert found.errors.min() > skew


def test_whose_skew_can_be_nothing_but_rounding():
    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 1.0 * x

        @staticmethod
        def backward(ctx, g):
            return 1.0 * g

    class Net(nn.Module):
        def __init__(self, odd):
            super().__init__()
            self.layer, self.odd = nn.Linear(3, 2), odd

        def forward(self, x):
            return Odd.apply(self.layer(x)) if self.odd else self.layer(x)

    data = torch.randn(5, 3), torch.randn(5, 2)
    plain = cx.Hessian(Net(False), "half_mse", data)
    assert plain.skew_is_rounding
    assert (2 * plain + plain.identity()).skew_is_rounding if hasattr(plain, "identity") else True
    assert not cx.Hessian(Net(True), "half_mse", data).skew_is_rounding
    assert not cx.Hessian(Net(False), "half_mse", data, check=False).skew_is_rounding
    own = cx.Hessian(Net(False), lambda f, y: (f - y).square().mean(), data)
    assert not own.skew_is_rounding
    assert not (plain + own).skew_is_rounding


def saturated(dtype, margin):
    """One unit alive, and a soft-max that knows its answer: the terms of H cancel."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    with torch.no_grad():
        model[0].weight.mul_(0.3)
        model[0].bias.fill_(-100.0)
        model[0].bias[0] = 3.0
        model[2].weight.mul_(0.3)
        model[2].bias.zero_()
        model[2].bias[0] = margin
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(4))
    return model.to(dtype), (x.to(dtype), torch.zeros(20, dtype=torch.long))


@pytest.mark.parametrize(("dtype", "margin"), [(torch.float32, 14.0), (torch.float64, 28.0)])
@pytest.mark.parametrize("hvp", [None, "reverse"])
def test_a_nearly_dead_net(dtype, margin, hvp):
    model, data = saturated(dtype, margin)
    operator = cx.Hessian(model, nn.CrossEntropyLoss(), data, hvp=hvp)
    found = cx.eigsh(operator)
    dense = operator.dense().double()
    right = torch.linalg.eigvalsh((dense + dense.T) / 2)[-1]
    assert (found.eigenvalues.double() - right).abs() <= found.errors
    assert found.errors < 0.2 * right
    tracker = cx.CurvatureTracker(model, nn.CrossEntropyLoss(), data, quantity="hessian")
    tracker.start()
    assert tracker.probes[0]["values"][0] == pytest.approx(right.item(), rel=0.05)


class NormInFloat32(nn.Module):
    """The norm of Llama and kin: in float32 whatever the model's dtype."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        h = x.to(torch.float32)
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)
        return self.weight * h.to(x.dtype)


class AttentionInFloat32(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        p = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1, dtype=torch.float32).to(q.dtype)
        return x + self.out(p @ v)


class Last(nn.Module):
    def forward(self, x):
        return x[:, -1]


def with_float32_inside(kind):
    torch.manual_seed(0)
    part = {"norm": NormInFloat32, "attention": AttentionInFloat32}
    layers = [part[k](8) for k in kind.split("+")]
    body = nn.Sequential(nn.Linear(5, 8), *layers, nn.Tanh(), Last(), nn.Linear(8, 3)).double()
    return body, torch.randn(4, 6, 5, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["norm", "attention", "norm+attention+norm"])
@pytest.mark.parametrize("operator", ["ntk", "ggn", "hessian"])
def test_float64_models_with_float32_inside(kind, operator):
    model, x = with_float32_inside(kind)
    y, loss = torch.tensor([0, 1, 2, 0]), nn.CrossEntropyLoss()
    make = {
        "ntk": lambda: cx.NTK(model, x),
        "ggn": lambda: cx.GGN(model, loss, (x, y)),
        "hessian": lambda: cx.Hessian(model, loss, (x, y)),
    }[operator]
    dense = make().dense()
    right = torch.linalg.eigvalsh((dense + dense.T) / 2).flip(0)[:2]
    for tol in (1e-3, 1e-10):
        found = cx.eigsh(make(), 2, tol=tol)
        assert ((found.eigenvalues - right).abs() <= found.errors + 1e-7 * right[0]).all()
        assert found.errors.max() <= max(3 * tol, 1e-4) * right[0]


class Autocast(nn.Module):
    """A model whose forward pass, or its first half, runs under autocast."""

    def __init__(self, body, whole, outputs):
        super().__init__()
        self.body, self.whole, self.outputs = body, whole, outputs

    def forward(self, x):
        half = len(self.body) if self.whole else len(self.body) // 2
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.body[:half](x)
        if not self.whole:
            x = self.body[half:](x.float())
        return x.to(self.outputs)


def mlp():
    return nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 2)), torch.randn(16, 3)


def cnn():
    body = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    return nn.Sequential(*body), torch.randn(8, 1, 4, 4)


@pytest.mark.parametrize("outputs", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("build", [mlp, cnn])
def test_autocast_inside_forward(build, whole, outputs):
    torch.manual_seed(0)
    body, x = build()
    y, loss = torch.arange(len(x)) % 2, nn.CrossEntropyLoss()
    model = Autocast(body, whole, outputs)
    right = cx.NTK(body, x).dense()
    kernel = cx.NTK(model, x)
    v = torch.randn(len(right))
    for found, exact in (
        (kernel.dense(), right),
        (kernel @ v, right @ v),
        (kernel.diagonal(), right.diagonal()),
    ):
        assert (found - exact).norm() <= 0.02 * exact.norm()
    operators = (
        lambda m: cx.NTK(m, x),
        lambda m: cx.GGN(m, loss, (x, y)),
        lambda m: cx.Hessian(m, loss, (x, y)),
    )
    for make in operators:
        found, exact = cx.eigsh(make(model)), cx.eigsh(make(body)).eigenvalues
        assert (found.eigenvalues - exact).abs() <= found.errors + 0.02 * exact
        assert found.errors <= 0.05 * exact
    window = cx.learning_rate_window(model, loss, (x, y)).eta_crit
    exact = cx.learning_rate_window(body, loss, (x, y)).eta_crit
    assert window == pytest.approx(exact, rel=0.03)
    tracker = cx.CurvatureTracker(model, loss, (x, y))
    tracker.start()
    assert tracker.probes[0]["values"][0] == pytest.approx(2 / exact, rel=0.03)
