"""Parameters reached otherwise than through the modules of a call: right, or refused by name."""

import copy
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import catapult_ext as cx


def random(*shape, seed=3):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def jacobian(outputs, params):
    rows = []
    for value in outputs.flatten():
        grads = torch.autograd.grad(value, params, retain_graph=True, allow_unused=True)
        pairs = zip(grads, params, strict=True)
        rows.append(
            torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
        )
    return torch.stack(rows)


def close(got, exact, tol=1e-9):
    assert got.shape == exact.shape
    assert (got - exact).norm() <= tol * exact.norm()


class Checkpoint(torch.autograd.Function):
    """Of diffusion U-Nets: runs the block again in its backward pass."""

    @staticmethod
    def forward(ctx, run, x, *parameters):
        ctx.run, ctx.x, ctx.parameters = run, x, parameters
        with torch.no_grad():
            return run(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.x.detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.run(x)
        return (None, *torch.autograd.grad(out, (x, *ctx.parameters), grad, allow_unused=True))


class Block(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.linear = nn.Linear(i, o)

    def forward(self, x):
        run = lambda x: torch.tanh(self.linear(x))  # noqa: E731
        return Checkpoint.apply(run, x, *self.parameters())


class Adjoint(torch.autograd.Function):
    """Euler steps of dz/dt = f(z) whose backward pass runs f again, as adjoint ODE solvers do."""

    @staticmethod
    def forward(ctx, f, z, *parameters):
        ctx.f, ctx.parameters = f, parameters
        path = [z]
        with torch.no_grad():
            for _ in range(5):
                path.append(path[-1] + 0.2 * f(path[-1]))
        ctx.path = path[:-1]
        return path[-1]

    @staticmethod
    def backward(ctx, grad):
        total = [torch.zeros_like(p) for p in ctx.parameters]
        for z in reversed(ctx.path):
            z = z.detach().requires_grad_()
            with torch.enable_grad():
                out = 0.2 * ctx.f(z)
            first, *rest = torch.autograd.grad(out, (z, *ctx.parameters), grad)
            total = [t + g for t, g in zip(total, rest, strict=True)]
            grad = grad + first
        return (None, grad, *total)


class Ode(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.o = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), nn.Linear(3, 2)

    def forward(self, x):
        return self.o(Adjoint.apply(self.f, x, *self.f.parameters()))


def recomputing():
    return nn.Sequential(Block(3, 5), Block(5, 4), nn.Linear(4, 2))


# guided-diffusion #144 (checkpoints of its own), torchdiffeq #119, #151 (adjoint ODEs)
@pytest.mark.parametrize("make", [recomputing, Ode])
def test_backward_passes_that_run_modules_again(make):
    torch.manual_seed(0)
    model, x = make().double(), random(6, 3)
    params = list(model.parameters())
    j = jacobian(model(x), params)
    close(cx.NTK(model, x).dense(), j @ j.T)
    close(cx.Jacobian(model, x).T @ random(12, 2), j.T @ random(12, 2))
    y = torch.zeros(6, 2).double()
    close(cx.NTK(model, x) @ torch.eye(12).double(), j @ j.T)
    top = cx.eigsh(cx.GGN(model, "half_mse", (x, y)), tol=1e-8).eigenvalues[0].item()
    assert top == pytest.approx(torch.linalg.eigvalsh(j.T @ j / 6)[-1].item(), rel=1e-6)
    window = cx.learning_rate_window(model, "half_mse", (x, y))
    assert window.eta_crit == pytest.approx(2 / top, rel=1e-3)
    with pytest.raises(RuntimeError, match="second derivative"):
        cx.Hessian(model, "half_mse_mean", (x, y)) @ torch.ones(j.shape[1]).double()


class Listed(nn.Module):
    """Parameters kept a second time in a plain list, and used from there."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 2)])
        self.ws = list(self.layers.parameters())

    def forward(self, x):
        for i in (0, 2):
            x = torch.tanh(F.linear(x, self.ws[i], self.ws[i + 1]))
        return self.layers[2](x)


class Closed(nn.Module):
    """Parameters used by functions made in ``__init__``, with defaults and by a bound method."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 2)
        weight, bias = self.a.weight, self.a.bias
        self.first = lambda x: torch.tanh(x @ weight.T + bias)
        self.steps = {"second": self.second, "third": lambda x, layer=self.c: layer(x)}

    def second(self, x):
        return torch.tanh(self.b(x))

    def forward(self, x):
        return self.steps["third"](self.steps["second"](self.first(x)))


class Holder:
    def __init__(self, layer):
        self.layer = layer


class Held(nn.Module):
    """Parameters used through an object that is no module."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)
        self.held = (Holder(self.a), {"b": [self.b]})

    def forward(self, x):
        return self.held[1]["b"][0](torch.tanh(self.held[0].layer(x)))


# functorch #904, pytorch #49171, #92295
@pytest.mark.parametrize("make", [Listed, Closed, Held])
def test_parameters_in_lists_closures_and_objects(make):
    torch.manual_seed(0)
    model, x, y = make().double(), random(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
    params = list(model.parameters())
    j = jacobian(model(x), params)
    kernel = cx.NTK(model, x)
    close(kernel.dense(), j @ j.T)
    close(kernel @ torch.eye(12).double(), j @ j.T)
    grads = torch.autograd.grad(F.cross_entropy(model(x), y), params, create_graph=True)
    ones = [torch.ones_like(p) for p in params]
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(grads, params, ones)])
    close(cx.Hessian(model, nn.CrossEntropyLoss(), (x, y)) @ torch.ones_like(exact), exact)


def local_class():
    """A class whose method closes over a parameter: no copy of the model reaches it."""
    weight = nn.Parameter(random(4, 3, seed=1))

    class Local(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.o = weight, nn.Linear(4, 2)

        def forward(self, x):
            return self.o(torch.tanh(x @ weight.T))

    return Local().double()


class Registered(nn.Module):
    """A parameter found in a table of the class."""

    table: ClassVar[dict] = {}

    def __init__(self):
        super().__init__()
        self.w, self.o = nn.Parameter(random(4, 3, seed=1)), nn.Linear(4, 2)
        self.table["w"] = self.w

    def forward(self, x):
        return self.o(torch.tanh(x @ self.table["w"].T))


OPERATORS = {
    "NTK": lambda m, x, y: cx.NTK(m, x),
    "GGN": lambda m, x, y: cx.GGN(m, "half_mse", (x, y)),
    "Hessian": lambda m, x, y: cx.Hessian(m, "half_mse", (x, y)),
    "EmpiricalFisher": lambda m, x, y: cx.EmpiricalFisher(m, "half_mse", (x, y)),
    "StreamedGGN": lambda m, x, y: cx.StreamedGGN(m, "half_mse", [(x, y)]),
    "window": lambda m, x, y: cx.learning_rate_window(m, "half_mse", (x, y)),
    "tracker": lambda m, x, y: cx.CurvatureTracker(m, "half_mse", (x, y)).start(),
}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("make", [local_class, lambda: Registered().double()])
def test_parameters_that_no_copy_reaches_are_named(make, operator):
    model, x, y = make(), random(6, 3), torch.zeros(6, 2).double()
    for _ in range(2):  # a proof that failed is not remembered as one
        with pytest.raises(ValueError, match=r"through the model that is called.*got w of another"):
            OPERATORS[operator](model, x, y)


def test_a_tensor_kept_with_its_graph_is_named():
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.o = nn.Parameter(random(4, 3, seed=1)), nn.Linear(4, 2)
            self.doubled = 2 * self.w

        def forward(self, x):
            return self.o(torch.tanh(x @ self.doubled.T))

    model = Kept().double()
    model.doubled = 2 * model.w
    with pytest.raises(ValueError, match=r"doubled.*reset it, or detach\(\) it.*got w of another"):
        cx.NTK(model, random(6, 3))
    model.doubled = model.doubled.detach()
    assert cx.NTK(model, random(6, 3)).diagonal().min() > 0


class Reversible(torch.autograd.Function):
    """Adds to ``.grad`` inside its backward pass, as reversible layers do."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        ctx.save_for_backward(x)
        with torch.no_grad():
            return x + torch.tanh(layer(x))

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            torch.autograd.backward(x + torch.tanh(ctx.layer(x)), grad)
        return x.grad, None


class Reformer(nn.Module):
    def __init__(self, layer=None):
        super().__init__()
        self.a, self.b, self.o = nn.Linear(3, 4), layer or nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.o(Reversible.apply(self.a(x), self.b))


GLOBAL = nn.Linear(4, 4).double()


class Elsewhere(Reformer):
    """The same with a layer that its Function takes from a global variable."""

    def __init__(self):
        super().__init__(GLOBAL)

    def forward(self, x):
        return self.o(Reversible.apply(self.a(x), GLOBAL))


class Recomputed(Reformer):
    """Gradients by the right parameters, of a block that is run with those of a global one."""

    def __init__(self):
        super().__init__(GLOBAL)

    def forward(self, x):
        return self.o(Checkpoint.apply(GLOBAL, self.a(x), *self.b.parameters()))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (Reformer, r"not add to their \.grad .*got \.grad of b\.weight, b\.bias"),
        (Elsewhere, r"not add to their \.grad .*got \.grad of b\.weight, b\.bias"),
        (Recomputed, r"other gradients by b\.weight, b\.bias"),
    ],
)
def test_gradients_past_the_returned_ones_are_named(make, text):
    torch.manual_seed(0)
    GLOBAL.zero_grad()
    model = make().double()
    before = torch.ones_like(model.b.weight)
    model.b.weight.grad = before
    hooked = []
    model.b.weight.register_hook(hooked.append)
    with pytest.raises(ValueError, match=text):
        cx.NTK(model, random(6, 3))
    assert model.b.weight.grad is before
    assert bool((before == 1).all())
    assert model.b.bias.grad is None
    assert not hooked
    model(random(6, 3)).sum().backward()
    assert hooked  # the user's own hook is back


def test_hooks_that_change_gradients_are_named():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    seen = []
    model[2].register_full_backward_hook(lambda m, given, out: seen.append(out))
    assert cx.NTK(model, random(6, 3)).diagonal().min() > 0
    assert not seen
    model[2].register_full_backward_hook(lambda m, given, out: (2 * given[0],))
    with pytest.raises(ValueError, match=r"change gradients.*other gradients by 0\.weight"):
        cx.NTK(model, random(6, 3))


@pytest.mark.parametrize("operator", ["GGN", "Hessian"])
def test_forward_that_runs_another_model(operator):
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    other, data = copy.deepcopy(model), (random(6, 3).float(), torch.tensor([0, 1, 1, 0, 1, 0]))
    with pytest.raises(ValueError, match="depend on a trainable parameter of the model"):
        getattr(cx, operator)(model, nn.CrossEntropyLoss(), data, forward=lambda _, x: other(x))


def test_forward_that_closes_over_the_model_itself():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double(), random(6, 3)
    wrapped = torch.nn.DataParallel(model)
    j = jacobian(model(x), list(model.parameters()))
    for run in (lambda _, x: model(x), lambda _, x: wrapped(x), lambda m, x: m(x) + 0 * model(x)):
        close(cx.NTK(model, x, forward=run).dense(), j @ j.T)


def test_teachers_are_constants():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2).double(), random(6, 3)
    teacher = nn.Linear(3, 2).double()
    j = jacobian(model(x), list(model.parameters()))
    kernel = cx.NTK(model, x, forward=lambda m, x: m(x) - teacher(x))
    close(kernel.dense(), j @ j.T)


def test_gradients_are_compared_once_per_model(monkeypatch):
    from catapult_ext.linops.model.proof import Proof

    made, compare = [], Proof._compare_gradients
    monkeypatch.setattr(
        Proof, "_compare_gradients", lambda *a: made.append(1) or compare(*a)
    )  # the walk along the graph, less than 1 % of a freeze, is made each time
    model, x = recomputing().double(), random(6, 3)
    cx.NTK(model, x).dense()
    first = len(made)
    assert first > 0
    for _ in range(3):
        cx.NTK(model, x + 1)
    assert len(made) == first
    model.register_forward_hook(lambda *_: None)  # another function perhaps
    cx.NTK(model, x)
    assert len(made) > first
