"""Operations whose derivatives are missing: right products all the same, or a clear error."""

import numpy as np
import pytest
import torch
from torch import nn

import catapult_ext as cx


def jacobian(model, *x, outputs=None):
    """J by plain backward passes, one a row: the ground truth."""
    out = model(*x) if outputs is None else outputs(model)
    params = list(model.parameters())
    rows = []
    for value in out.flatten():
        grads = torch.autograd.grad(value, params, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).to_dense().flatten()
                    for g, p in zip(grads, params, strict=True)
                ]
            )
        )
    return torch.stack(rows)


def random(*shape, seed=3):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def check_products(model, x, targets, tol=1e-9, **options):
    """J, J', NTK and GGN products, dense kernel and eigenvalue against J row by row."""
    j = jacobian(model, x)
    u, t = random(j.shape[0], 2).to(j), random(j.shape[1], 2).to(j)
    operator = cx.Jacobian(model, x, **options)
    assert (operator @ t - j @ t).norm() <= tol * (j @ t).norm()
    assert (operator.T @ u - j.T @ u).norm() <= tol * (j.T @ u).norm()
    kernel = cx.NTK(model, x, **options)
    right = j @ j.T
    assert (kernel @ u - right @ u).norm() <= tol * (right @ u).norm()
    assert (kernel.dense() - right).norm() <= tol * right.norm()
    ggn = cx.GGN(model, "half_mse", (x, targets), **options)
    assert (ggn @ t - j.T @ (j @ t) / len(x)).norm() <= tol * (ggn @ t).norm()
    found, top = cx.eigsh(kernel), torch.linalg.eigvalsh(right)[-1]
    assert (found.eigenvalues - top).abs().item() <= max(found.errors.item(), 1e-6 * top.item())
    return j


class Sandwich(nn.Module):
    """Two linear layers around a function."""

    def __init__(self, function, inputs=3, hidden=5, outputs=2):
        super().__init__()
        self.a, self.b, self.function = (
            nn.Linear(inputs, hidden),
            nn.Linear(hidden, outputs),
            function,
        )

    def forward(self, x):
        return self.b(self.function(self.a(x)))


class NumpySine(torch.autograd.Function):
    """A right backward without a graph, as of numpy or a kernel of another package."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(g.detach().numpy() * np.cos(x.detach().numpy()))


class DetachedScale(torch.autograd.Function):
    """Multiplies by a weight; the backward pass runs under no_grad."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, g):
        with torch.no_grad():
            x, w = ctx.saved_tensors
            return g * w, (g * x).sum(0)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -1.0, 2.0, 1.5, 0.3]))

    def forward(self, x):
        return DetachedScale.apply(torch.tanh(x), self.w)


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh().square())


class HalfGraph(torch.autograd.Function):
    """x + sin x, of whose gradient the second term has no graph."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x + x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g + (g.detach() * x.detach().cos())


WITHOUT_GRAPH = {
    "numpy": lambda: Sandwich(NumpySine.apply),
    "no_grad": lambda: Sandwich(Scaled()),
    "once_differentiable": lambda: Sandwich(OnceOnly.apply),
    "half a graph": lambda: Sandwich(HalfGraph.apply),
    "beside a trunk": lambda: Sandwich(lambda h: torch.tanh(h) + 1e-2 * NumpySine.apply(h)),
}


@pytest.mark.parametrize("engine", [None, "autograd"])
@pytest.mark.parametrize("name", WITHOUT_GRAPH)
def test_backward_without_a_graph(name, engine):
    torch.manual_seed(0)
    model, x = WITHOUT_GRAPH[name]().double(), random(6, 3)
    check_products(model, x, torch.zeros(6, 2, dtype=torch.float64), engine=engine)


@pytest.mark.parametrize("name", ["numpy", "no_grad"])
def test_backward_without_a_graph_in_chunks(name):
    torch.manual_seed(0)
    model, x = WITHOUT_GRAPH[name]().double(), random(6, 3)
    check_products(model, x, torch.zeros(6, 2, dtype=torch.float64), samples_at_once=2)


def test_window_with_a_backward_without_a_graph():
    torch.manual_seed(0)
    model, x = WITHOUT_GRAPH["numpy"]().double(), random(6, 3)
    j = jacobian(model, x)
    window = cx.learning_rate_window(model, "half_mse", (x, torch.zeros(6, 2).double()))
    assert window.eta_crit == pytest.approx(12 / torch.linalg.eigvalsh(j @ j.T)[-1].item())


class Equilibrium(nn.Module):
    """A fixed point without a graph; a hook on its gradient solves the adjoint equation."""

    def __init__(self):
        super().__init__()
        self.w, self.u, self.o = nn.Linear(4, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def step(self, z, x):
        return torch.tanh(0.4 * self.w(z) + self.u(x))

    def forward(self, x):
        with torch.no_grad():
            z = x.new_zeros(len(x), 4)
            for _ in range(80):
                z = self.step(z, x)
        if not torch.is_grad_enabled():
            return self.o(z)
        z = self.step(z, x)
        start = z.detach().requires_grad_()
        again = self.step(start, x)

        def hook(g):
            total = g
            for _ in range(80):
                total = torch.autograd.grad(again, start, total, retain_graph=True)[0] + g
            return total

        z.register_hook(hook)
        return self.o(z)


def test_implicit_layer_with_a_gradient_hook():
    torch.manual_seed(0)
    model, x = Equilibrium().double(), random(5, 3)
    j = check_products(model, x, torch.zeros(5, 2, dtype=torch.float64))
    step, params = 1e-6, list(model.parameters())
    t = random(j.shape[1])  # the hook is right: J is the derivative of the outputs
    moved = []
    for sign in (1, -1):
        at = nn.utils.parameters_to_vector(params).detach()
        nn.utils.vector_to_parameters(at + sign * step * t, params)
        with torch.no_grad():
            moved.append(model(x))
        nn.utils.vector_to_parameters(at, params)
    difference = ((moved[0] - moved[1]) / (2 * step)).flatten()
    assert (j @ t - difference).norm() <= 1e-7 * difference.norm()


class Swish(torch.autograd.Function):
    """The memory-saving one of the EfficientNet packages, twice differentiable."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return g * (s * (1 + x * (1 - s)))


class Branch(nn.Module):
    """A small residual branch through an autograd Function."""

    def __init__(self, width, scale, function=Swish.apply):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(width, width) for _ in range(3))
        self.o, self.scale, self.function = nn.Linear(width, 3), scale, function

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.o(h + self.scale * self.c(self.function(self.b(h))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-5])
@pytest.mark.parametrize("width", [16, 128])
def test_a_small_branch_through_a_function(width, scale, dtype):
    torch.manual_seed(0)
    model, x = Branch(width, scale).to(dtype), random(4, width).to(dtype)
    j = jacobian(model, x)
    t = torch.cat(
        [
            torch.randn(p.numel(), dtype=dtype) * name.startswith("b.")
            for name, p in model.named_parameters()
        ]
    )
    right = j @ t
    operator = cx.Jacobian(model, x)
    assert (operator @ t - right).norm() <= 300 * torch.finfo(dtype).eps * right.norm()


@pytest.mark.parametrize("function", [NumpySine.apply, OnceOnly.apply])
def test_a_small_branch_without_a_graph(function):
    torch.manual_seed(0)
    model, x = Branch(16, 1e-3, function), random(4, 16).float()
    j = jacobian(model, x)
    assert (cx.Jacobian(model, x) @ j.T - j @ j.T).norm() <= 1e-5 * (j @ j.T).norm()
    lower = [n.startswith("b.") for n, p in model.named_parameters() for _ in range(p.numel())]
    t = torch.where(torch.tensor(lower), random(j.shape[1]).float(), 0.0)
    assert (cx.Jacobian(model, x) @ t - j @ t).norm() <= 1e-4 * (j @ t).norm()


class Rbf(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.o = nn.Parameter(torch.randn(4, 3)), nn.Linear(4, 2)

    def forward(self, x):
        return self.o(torch.exp(-torch.cdist(x, self.c)))


class Bag(nn.Module):
    """An EmbeddingBag with offsets or weights."""

    def __init__(self, mode, weighted):
        super().__init__()
        self.e, self.o, self.weighted = nn.EmbeddingBag(6, 3, mode=mode), nn.Linear(3, 2), weighted
        self.w = nn.Parameter(torch.rand(6))

    def forward(self, ids):
        if self.weighted:
            return self.o(torch.tanh(self.e(ids, per_sample_weights=self.w[ids])))
        return self.o(torch.tanh(self.e(ids)) + self.w[ids].sum(1, keepdim=True))


IDS = torch.tensor([[0, 1], [2, 2], [3, 5], [1, 4]])
ONE_SIDED = {
    "cdist": (Rbf, random(4, 3)),
    "EmbeddingBag": (lambda: nn.Sequential(nn.EmbeddingBag(6, 3), nn.Linear(3, 2)), IDS),
    "EmbeddingBag max": (lambda: Bag("max", False), IDS),
    "EmbeddingBag weighted": (lambda: Bag("sum", True), IDS),
    "pdist": (
        lambda: Sandwich(lambda h: h * nn.functional.pdist(h).mean()),
        random(4, 3),
    ),
    "logcumsumexp": (lambda: Sandwich(lambda h: torch.logcumsumexp(300 * h, 1)), random(4, 3)),
}


@pytest.mark.parametrize("name", ONE_SIDED)
def test_operations_without_a_second_derivative(name):
    make, x = ONE_SIDED[name]
    torch.manual_seed(0)
    check_products(make().double(), x, torch.zeros(4, 2, dtype=torch.float64))


class TwoPasses(torch.autograd.Function):
    """A scan that works in place on what it has saved, as selective state spaces do."""

    @staticmethod
    def forward(ctx, a, x):
        out = x.clone()
        for t in range(1, x.shape[1]):
            out[:, t] += a[:, t] * out[:, t - 1]
        ctx.save_for_backward(a, out)
        return out

    @staticmethod
    def backward(ctx, g):
        a, out = ctx.saved_tensors
        g = g.clone()
        for t in range(a.shape[1] - 2, -1, -1):
            g[:, t] += a[:, t + 1] * g[:, t + 1]
        da = torch.zeros_like(a)
        da[:, 1:] = g[:, 1:] * out[:, :-1]
        return da, g


class Scan(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.o = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.o(TwoPasses.apply(torch.sigmoid(self.a(x)), self.b(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scan_in_place(dtype):
    torch.manual_seed(0)
    tol = 1e-4 if dtype == torch.float32 else 1e-9
    check_products(Scan().to(dtype), random(4, 6).to(dtype), torch.zeros(4, 2, dtype=dtype), tol)


def proofs_of(monkeypatch):
    """Counts the proofs that run from now on."""
    from catapult_ext.linops.engines import autograd

    ran, plain = [], autograd.mismatch
    monkeypatch.setattr(autograd, "mismatch", lambda *a: (ran.append(1), plain(*a))[1])
    return ran


def test_a_proof_serves_later_passes_of_a_model(monkeypatch):
    ran = proofs_of(monkeypatch)
    model, x, u = Sandwich(lambda h: h.square().tanh()).double(), random(4, 3), random(8)
    for _ in range(3):
        cx.NTK(model, x, engine="autograd") @ u
        with torch.no_grad():
            model.a.weight += 0.1
    assert len(ran) == 1
    cx.NTK(model, x[:3], engine="autograd") @ u[:6]  # other shapes
    model.function = lambda h: h.sin()  # other operations
    cx.NTK(model, x, engine="autograd") @ u
    assert len(ran) == 3


def test_no_proof_of_a_branch_that_was_closed(monkeypatch):
    """A gate at zero hides what lies behind it, and Python code may hide anything."""
    ran = proofs_of(monkeypatch)
    torch.manual_seed(0)
    model, x = Branch(6, nn.Parameter(torch.zeros(1)), lambda h: h.sin()).double(), random(4, 6)
    t = random(sum(p.numel() for p in model.parameters()))
    cx.Jacobian(model, x) @ t
    with torch.no_grad():
        model.scale += 0.5
    j = jacobian(model, x)
    assert (cx.Jacobian(model, x) @ t - j @ t).norm() <= 1e-10 * (j @ t).norm()
    assert len(ran) == 2
    model.function = Swish.apply
    for _ in range(2):
        cx.Jacobian(model, x) @ t
    assert len(ran) > 3


class Approximate(torch.autograd.Function):
    """tanh, whose backward pass is right to the tolerance of a solver."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            return 1.0005 * g * (1 - x.tanh().square())


class Adjoint(torch.autograd.Function):
    """An integrated vector field; backward integrates the adjoint, by the module itself."""

    @staticmethod
    def forward(ctx, field, steps, z, *params):
        ctx.field, ctx.steps, ctx.params = field, steps, params
        with torch.no_grad():
            for _ in range(steps):
                middle = z + field(z) / (2 * steps)
                z = z + field(middle) / steps
        ctx.save_for_backward(z)
        return z

    @staticmethod
    def backward(ctx, g):
        (z,), steps = ctx.saved_tensors, ctx.steps
        total = [torch.zeros_like(p) for p in ctx.params]

        def field(z, a):
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                out = ctx.field(z)
                return out.detach(), torch.autograd.grad(out, (z, *ctx.params), a)

        for _ in range(steps):
            out, (back, *_) = field(z, g)
            middle, slope = z - out / (2 * steps), g + back / (2 * steps)
            out, (back, *rest) = field(middle, slope)
            z, g = z - out / steps, g + back / steps
            total = [t + r / steps for t, r in zip(total, rest, strict=True)]
        return None, None, g, *total


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.field = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        self.o = nn.Linear(3, 2)

    def forward(self, x):
        return self.o(Adjoint.apply(self.field, 20, x, *self.field.parameters()))


@pytest.mark.parametrize("make", [Flow, lambda: Sandwich(Approximate.apply)])
def test_adjoints_that_are_right_to_a_tolerance(make):
    torch.manual_seed(0)
    model, x = make().double(), random(4, 3)
    check_products(model, x, torch.zeros(4, 2, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"Hessian: .*(Adjoint|Approximate|second derivative)"):
        cx.Hessian(model, nn.CrossEntropyLoss(), (x, torch.tensor([0, 1, 0, 1])))
