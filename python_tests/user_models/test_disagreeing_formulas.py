"""Derivatives that say different things: found out, and named with the way out."""

import pytest
import torch
from torch import nn

import catapult_ext as cx


def random(*shape, seed=3):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def hessian_by_differences(model, loss, x, y, step=1e-5):
    """H from central differences of the gradient: the ground truth where torch errs."""
    params = list(model.parameters())
    at = nn.utils.parameters_to_vector(params).detach().clone()

    def gradient(theta):
        nn.utils.vector_to_parameters(theta, params)
        grads = torch.autograd.grad(loss(model(x), y), params)
        return torch.cat([g.reshape(-1) for g in grads])

    columns = []
    for unit in torch.eye(len(at), dtype=at.dtype):
        columns.append((gradient(at + step * unit) - gradient(at - step * unit)) / (2 * step))
    nn.utils.vector_to_parameters(at, params)
    h = torch.stack(columns, 1)
    return (h + h.T) / 2


def jacobian(model, x):
    params, out = list(model.parameters()), model(x).flatten()
    grads = [torch.autograd.grad(a, params, retain_graph=True) for a in out]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in grads])


class Of(nn.Module):
    def __init__(self, function, inputs=3, hidden=5, outputs=2):
        super().__init__()
        self.a, self.b = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        self.function = function

    def forward(self, x):
        return self.b(self.function(self.a(x)))


def model_of(function, **sizes):
    torch.manual_seed(0)
    return Of(function, **sizes).double()


X, LABELS = 2 * random(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
CE = nn.CrossEntropyLoss()


class KeptSigmoid(torch.autograd.Function):
    """Its derivative is computed in forward and kept: right once, lost the second time."""

    @staticmethod
    def forward(ctx, x):
        s = torch.sigmoid(x)
        ctx.save_for_backward(s * (1 - s))
        return s

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


class KeptSine(torch.autograd.Function):
    """The same with an attribute of ctx."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = x.cos()
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


class DetachedTanh(torch.autograd.Function):
    """A graph for the cotangent, none for what was saved."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.detach().tanh().square())


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return g * (s * (1 + x * (1 - s)))


KEPT = [KeptSigmoid, KeptSine, DetachedTanh]


@pytest.mark.parametrize("function", KEPT)
@pytest.mark.parametrize("share", [1.0, 1e-2])
def test_a_kept_derivative_is_named_by_the_hessian(function, share):
    model = model_of(lambda h: torch.tanh(h) + share * function.apply(h))
    for options in ({}, {"samples_at_once": 2}):
        with pytest.raises(RuntimeError, match=f"Hessian: .*autograd Function {function.__name__}"):
            cx.Hessian(model, CE, (X, LABELS), **options)
    j = jacobian(model, X)
    kernel = cx.NTK(model, X)
    assert (kernel.dense() - j @ j.T).norm() <= 1e-10 * (j @ j.T).norm()
    assert (kernel @ random(12) - j @ j.T @ random(12)).norm() <= 1e-10 * (j @ j.T).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"samples_at_once": 2}])
def test_a_function_with_all_its_derivatives_is_right(dtype, options):
    model = model_of(Swish.apply)
    right = hessian_by_differences(model, CE, X, LABELS)
    hessian = cx.Hessian(model.to(dtype), CE, (X.to(dtype), LABELS), **options)
    tol = 1e-7 if dtype == torch.float64 else 1e-4
    assert (hessian.dense() - right).norm() <= tol * right.norm()


class KeptLoss(torch.autograd.Function):
    """A squared error whose gradient is kept in ctx."""

    @staticmethod
    def forward(ctx, f, y):
        ctx.save_for_backward(2 * (f - y) * (f - y).square())
        return (f - y).square().square().sum() / 2

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None


def test_a_kept_derivative_in_the_loss_is_named():
    model, y = model_of(torch.tanh), random(6, 2)
    for options in ({}, {"engine": "autograd"}):
        with pytest.raises((RuntimeError, ValueError), match="Function KeptLoss"):
            cx.Hessian(model, KeptLoss.apply, (X, y), **options)
    with pytest.raises((RuntimeError, ValueError), match="Function KeptLoss"):
        cx.GGN(model, KeptLoss.apply, (X, y))


class Reversal(torch.autograd.Function):
    """The gradient-reversal layer of domain adaptation."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -0.5 * g


class Round(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx, x):
        return (x * 4).round() / 4

    @staticmethod
    def backward(ctx, g):
        return g


def hooked(h):
    if h.requires_grad:
        h.register_hook(lambda g: 0.1 * g)
    return torch.tanh(h)


class Halves(nn.Module):
    """A full backward hook of a module that halves gradients."""

    def __init__(self):
        super().__init__()
        self.act = nn.Tanh()
        self.act.register_full_backward_hook(lambda m, i, o: (i[0] / 2,))

    def forward(self, x):
        return self.act(x)


OTHER_GRADIENTS = {
    "reversal": (lambda: model_of(lambda h: torch.tanh(Reversal.apply(h))), "Reversal"),
    "reversal of a branch": (
        lambda: model_of(lambda h: torch.tanh(h) + 0.01 * Reversal.apply(h)),
        "Reversal",
    ),
    "straight through": (lambda: model_of(lambda h: Round.apply(torch.tanh(h))), "Round"),
    "hook": (lambda: model_of(hooked), "a gradient hook"),
    "module hook": (lambda: model_of(Halves()), "hook"),
}


@pytest.mark.parametrize("name", OTHER_GRADIENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_that_are_no_derivatives_are_named(name, dtype):
    make, text = OTHER_GRADIENTS[name]
    model, x = make().to(dtype), X.to(dtype)
    for build in (
        lambda: cx.NTK(model, x),
        lambda: cx.NTK(model, x, samples_at_once=2),
        lambda: cx.GGN(model, CE, (x, LABELS)),
        lambda: cx.Hessian(model, CE, (x, LABELS)),
        lambda: cx.learning_rate_window(model, CE, (x, LABELS)),
    ):
        with pytest.raises(ValueError, match=text):
            build()


@pytest.mark.parametrize("name", ["reversal", "straight through"])
def test_check_false_takes_the_gradients_of_training(name):
    model = OTHER_GRADIENTS[name][0]()
    j = jacobian(model, X)
    kernel = cx.NTK(model, X, check=False)
    u = random(12)
    assert (kernel @ u - j @ (j.T @ u)).norm() <= 1e-10 * (j @ (j.T @ u)).norm()
    assert (kernel.dense() - j @ j.T).norm() <= 1e-10 * (j @ j.T).norm()


IDS = torch.tensor([[0, 1, 1], [2, 2, 2], [3, 5, 0], [1, 4, 1]])


@pytest.mark.parametrize("bag", [False, True])
def test_gradients_divided_by_frequencies_are_named(bag):
    torch.manual_seed(0)
    table = nn.EmbeddingBag if bag else nn.Embedding
    layers = [table(6, 4, scale_grad_by_freq=True), *([] if bag else [nn.Flatten()])]
    model = nn.Sequential(*layers, nn.Linear(4 if bag else 12, 2)).double()
    with pytest.raises(ValueError, match="scale_grad_by_freq=True"):
        cx.NTK(model, IDS)
    once = torch.tensor([[0, 1, 2], [3, 4, 5]])  # every row once: nothing is divided
    kernel = cx.NTK(model, once)
    j = jacobian(model, once)
    assert (kernel @ random(4) - j @ j.T @ random(4)).norm() <= 1e-10 * (j @ j.T).norm()


class Products(nn.Module):
    """Outputs are products of features of a group."""

    def __init__(self, reduce="prod"):
        super().__init__()
        self.a, self.reduce = nn.Linear(3, 6), reduce
        self.index = torch.tensor([0, 0, 0, 1, 1, 1])

    def forward(self, x):
        h = self.a(x) + 1.5
        out = torch.ones(len(x), 2, dtype=h.dtype)
        return out.scatter_reduce(1, self.index.expand(len(x), -1), h, self.reduce)


def test_forward_mode_of_scatter_reduce():
    torch.manual_seed(0)
    model, y = Products().double(), random(6, 2)
    loss = nn.MSELoss()
    right = hessian_by_differences(model, loss, X, y)
    reverse = cx.Hessian(model, loss, (X, y))
    assert (reverse.dense() - right).norm() <= 1e-7 * right.norm()
    with pytest.raises(ValueError, match=r"hvp='forward' must give .* that of double"):
        cx.eigsh(cx.Hessian(model, loss, (X, y), hvp="forward"))
    kernel = cx.NTK(model, X)
    assert (
        kernel @ torch.eye(12).double() - kernel.dense()
    ).norm() <= 1e-10 * kernel.dense().norm()


class WrongTangent(torch.autograd.Function):
    """x^2 with a tangent of its own that is wrong, symmetric all the same."""

    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]

    @staticmethod
    def jvp(ctx, t):
        return t * 0


def test_forward_mode_of_a_function_with_a_wrong_tangent():
    model, y = model_of(lambda h: torch.tanh(h) + WrongTangent.apply(h)), random(6, 2)
    loss = nn.MSELoss()
    right = hessian_by_differences(model, loss, X, y)
    assert (cx.Hessian(model, loss, (X, y)).dense() - right).norm() <= 1e-7 * right.norm()
    with pytest.raises((ValueError, RuntimeError), match=r"hvp='forward'|WrongTangent"):
        cx.Hessian(model, loss, (X, y), hvp="forward").dense()


def test_forward_mode_that_is_right_is_taken():
    model, y = model_of(torch.sigmoid), random(6, 2)
    right = hessian_by_differences(model, nn.MSELoss(), X, y)
    for dtype, tol in ((torch.float64, 1e-7), (torch.float32, 1e-4)):
        data = X.to(dtype), y.to(dtype)
        found = cx.Hessian(model.to(dtype), nn.MSELoss(), data, hvp="forward").dense()
        assert (found - right).norm() <= tol * right.norm()
