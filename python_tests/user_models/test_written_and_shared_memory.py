"""Parameters written by the forward pass, and values whose elements share memory."""

import copy

import pytest
import torch
from torch import nn

import catapult_ext as cx


class Rescaled(nn.Module):
    """Rescales a weight in its first pass only, and remembers that it has (RWKV)."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.done = nn.Linear(3, 4), nn.Linear(4, 2), False

    def forward(self, x):
        if not self.done:
            with torch.no_grad():
                self.two.weight.div_(2)
            self.done = True
        return self.two(torch.tanh(self.one(x)))


class HalvedInEveryPass(Rescaled):
    """Divides a weight and a frozen one before they are used, in every pass."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 3.0), requires_grad=False)

    def forward(self, x):
        with torch.no_grad():
            self.two.weight.div_(4)
            self.scale.div_(2)
        return self.two(torch.tanh(self.one(x)) * self.scale)


class Bounded(nn.Module):
    """An embedding that bounds the norms of the rows it reads."""

    def __init__(self):
        super().__init__()
        self.embed, self.last = nn.Embedding(5, 4, max_norm=0.5), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.embed((x[:, 0] > 0).long())) + x.mean(1, keepdim=True))


class ClassToken(nn.Module):
    """A token for all samples, expanded and normalised before it meets the data."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 3))
        self.norm, self.act, self.last = nn.LayerNorm(3), nn.SiLU(), nn.Linear(3, 2)

    def forward(self, x):
        token = self.token.expand(len(x), 2, 3)
        token = self.act(self.norm(token)).softmax(1) * torch.sigmoid(token)
        return self.last(torch.cat([token, x[:, None]], 1).prod(1))


class Windows(nn.Module):
    """Overlapping windows of a parameter and of activations, through formulas of torch."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6))
        self.one, self.last = nn.Linear(3, 6), nn.Linear(4, 2)

    def forward(self, x):
        h = self.one(x).unfold(1, 3, 1)
        w = self.kernel.unfold(0, 3, 1)
        return self.last(
            (torch.exp(w) * torch.atan(h * w) + torch.logsumexp(h, 2)[..., None]).sum(2)
        )


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return g @ b.T, a.T @ g


class Adapter(nn.Module):
    """Trains factors alone, which only an autograd Function takes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 2)), nn.Parameter(torch.randn(2, 3))
        self.base = nn.Linear(3, 2)
        self.base.requires_grad_(False)

    def forward(self, x):
        return self.base(x) + torch.tanh(x @ Product.apply(self.a, self.b).T)


def flat(grads, params):
    pairs = zip(grads, params, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs])


def exact(model, x, y):
    """J and the Hessian of half the mean squared error, of passes of new copies."""
    copied = copy.deepcopy(model)
    params = [p for p in copied.parameters() if p.requires_grad]
    f = copied(x)
    j = torch.stack(
        [
            flat(torch.autograd.grad(o, params, retain_graph=True, allow_unused=True), params)
            for o in f.reshape(-1)
        ]
    )
    loss = (f - y).square().sum() / (2 * len(x))
    first = flat(torch.autograd.grad(loss, params, create_graph=True), params)
    rows = [
        flat(torch.autograd.grad(g, params, retain_graph=True, allow_unused=True), params)
        for g in first
    ]
    return j, torch.stack(rows)


def close(got, right, tol=1e-10):
    assert got.shape == right.shape
    assert (got - right).norm() <= tol * right.norm()


@pytest.mark.parametrize("engine", [None, "autograd"])
@pytest.mark.parametrize(
    "make", [Rescaled, HalvedInEveryPass, Bounded, ClassToken, Windows, Adapter]
)
def test_right_and_left_as_it_was(make, engine):
    torch.manual_seed(0)
    model = make().double()
    x, y = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    before = copy.deepcopy(model.state_dict())
    flags = {k: v for k, v in vars(model).items() if isinstance(v, bool)}
    j, h = exact(model, x, y)
    eye = torch.eye(j.shape[1]).double()
    kernel = cx.NTK(model, x, engine=engine)
    close(kernel @ torch.eye(10).double(), j @ j.T)
    close(kernel @ torch.eye(10).double(), j @ j.T)
    close(kernel.dense(), j @ j.T)
    close(kernel.diagonal(), (j @ j.T).diagonal())
    close(cx.NTK(model, x, samples_at_once=2) @ torch.eye(10).double(), j @ j.T)
    close(cx.GGN(model, "half_mse", (x, y), engine=engine) @ eye, j.T @ j / 5)
    close(cx.Hessian(model, "half_mse", (x, y)) @ eye, h)
    assert flags == {k: v for k, v in vars(model).items() if isinstance(v, bool)}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_model_that_writes_its_parameters_in_some_passes_alone_is_refused():
    class Late(Rescaled):
        passes = 0

        def forward(self, x):
            Late.passes += 1
            self.done = Late.passes < 2
            return super().forward(x)

    model, x = Late().double(), torch.randn(5, 3).double()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"in every pass or in none .*no_grad.*wrote two.weight"):
        cx.NTK(model, x, engine="autograd")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
