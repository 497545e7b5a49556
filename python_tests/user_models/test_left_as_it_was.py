"""Model, optimizer, data and process after a public call: exactly as before, also after errors."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import catapult_ext as cx


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HERE = Path(__file__).parent
hard, zoo = load(HERE / "hard_models.py"), load(HERE.parent / "linops" / "zoo.py")
prints = load(HERE / "fingerprint.py")


def squared(f, y):
    return (f - y).square().mean()


def product(operator):
    return operator @ torch.ones(operator.shape[1], dtype=operator.dtype)


def ntk(model, x, y, optimizer):
    kernel = cx.NTK(model, x)
    return kernel.dense(), kernel.diagonal(), kernel.trace(), product(kernel)


def jacobian(model, x, y, optimizer):
    operator = cx.Jacobian(model, x)
    return operator.dense(), product(operator), product(operator.T)


def hessian(model, x, y, optimizer):
    operator = cx.Hessian(model, nn.MSELoss(), (x, y))
    return product(operator), operator.gradient


def forward_over_reverse(model, x, y, optimizer):
    return product(cx.Hessian(model, nn.MSELoss(), (x, y), hvp="forward"))


def callable_losses(model, x, y, optimizer):
    return cx.GGN(model, squared, (x, y)).dense(), product(cx.Hessian(model, squared, (x, y)))


def ggn(model, x, y, optimizer):
    operator = cx.GGN(model, "half_mse", (x, y))
    density = cx.spectral_density(operator, 4, 2)
    estimates = cx.hutchinson_trace(operator, 2), cx.hutchinson_diagonal(operator, 2)
    return cx.eigsh(operator), density, estimates


def fisher(model, x, y, optimizer):
    return product(cx.EmpiricalFisher(model, nn.MSELoss(), (x, y)))


def chunks(model, x, y, optimizer):
    return product(cx.GGN(model, "half_mse", (x, y), samples_at_once=2))


def streamed(model, x, y, optimizer):
    batches = [(x, y), (x[:2].clone(), y[:2].clone())]
    product(cx.StreamedNTK(model, [x for x, _ in batches]))
    product(cx.StreamedGGN(model, "half_mse", batches))
    return product(cx.StreamedHessian(model, squared, batches, reduction="mean"))


def window(model, x, y, optimizer):
    if hasattr(model, "cache"):  # nobody can train a model that caches graphs
        found = cx.learning_rate_window(model, "half_mse", (x, y))
        assert "a step of training fails" in found.advice()
        return found
    return cx.learning_rate_window(model, "half_mse", (x, y), measure=2)


def tracker(model, x, y, optimizer):
    for quantity in ("ggn", "hessian", "ntk"):
        options = {"quantity": quantity, "optimizer": optimizer, "every": 1}
        with cx.CurvatureTracker(model, "half_mse", (x, y), **options) as followed:
            followed.step(1.0)


CALLS = (
    ntk,
    jacobian,
    hessian,
    forward_over_reverse,
    callable_losses,
    ggn,
    fisher,
    chunks,
    streamed,
    window,
    tracker,
)


def trained(model, x, y):
    """An optimizer with state, and gradients on the parameters, as in a training loop."""
    moved = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(moved, lr=1e-3, momentum=0.9)
    given = zoo.cast(x, torch.float64)
    grads = torch.autograd.grad(zoo.call(model, given).square().mean(), moved, allow_unused=True)
    for p, g in zip(moved, grads, strict=True):
        p.grad = torch.zeros_like(p) if g is None else g
    optimizer.step()
    return optimizer


def copied(x):
    if isinstance(x, dict):
        return {k: copied(v) for k, v in x.items()}
    return tuple(map(copied, x)) if isinstance(x, tuple) else x.clone()


def unchanged(call, model, x, y, optimizer, fails=()):
    before = prints.fingerprint(model, x, y, optimizer)
    held = [p for p in model.parameters()]
    if fails:
        with pytest.raises(fails):
            call(model, x, y, optimizer)
    else:
        call(model, x, y, optimizer)
    assert prints.changes(before, prints.fingerprint(model, x, y, optimizer)) == []
    assert all(p is q for p, q in zip(held, model.parameters(), strict=True))


@pytest.mark.parametrize("call", CALLS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", hard.MODELS)
def test_hard_models(name, call):
    model, x = hard.MODELS[name]()
    y = torch.zeros(len(x), 2, dtype=x.dtype)
    optimizer = trained(model, x.clone(), y)
    if name == "cached_bias":
        model.cache.clear()  # a graph of the user's own pass, which is refused by name
    unchanged(call, model, x, y, optimizer)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_zoo(name):
    model, x = zoo.build(name)
    y = torch.zeros_like(zoo.call(model, copied(x)))
    optimizer = trained(model, copied(x), y)
    for call in (ntk, hessian, ggn, fisher):
        unchanged(call, model, x, y, optimizer)


class Breaks(nn.Module):
    """Writes all it can reach, and then fails, or gives outputs that are not numbers."""

    def __init__(self, how):
        super().__init__()
        self.a, self.o = nn.Linear(4, 4), nn.Linear(4, 2)
        self.how, self.log = how, []
        self.register_buffer("count", torch.zeros(()))
        self.a.register_forward_hook(lambda _, given, out: self.log.append(out))

    def forward(self, x):
        self.count += 1
        self.state = torch.tanh(self.a(x))
        x.mul_(2)
        if self.how == "raises":
            raise RuntimeError("no such luck")
        if self.how == "NaN":
            return self.o(self.state) / 0
        if self.how == "draws":
            return self.o(self.state) * torch.rand(())
        return self.o(self.state).detach()


@pytest.mark.parametrize("how", ["raises", "NaN", "draws", "detached"])
@pytest.mark.parametrize("call", CALLS, ids=lambda f: f.__name__)
def test_errors(call, how):
    torch.manual_seed(0)
    model, x = Breaks(how).double(), hard.vectors()
    y = torch.zeros(5, 2, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters())
    recorded = how == "NaN" and call is tracker  # as a row of the run, so that training goes on
    unchanged(call, model, x, y, optimizer, () if recorded else (ValueError, RuntimeError))


def test_a_loss_is_left_as_it_was():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("centre", torch.zeros(2, dtype=torch.float64))
            self.seen = []

        def forward(self, f, y):
            self.centre.lerp_(f.detach().mean(0), 0.1)
            self.seen.append(f)
            y.mul_(0.5)
            return (f - self.centre - y).square().mean()

    model, x = hard.MODELS["twice"]()
    y, loss = torch.ones(5, 2, dtype=torch.float64), Centred()
    before = prints.fingerprint(loss, y)
    product(cx.GGN(model, loss, (x, y)))
    product(cx.Hessian(model, loss, (x, y)))
    product(cx.Hessian(model, loss, (x, y), hvp="forward"))
    product(cx.StreamedHessian(model, loss, [(x, y)], reduction="mean"))
    assert prints.changes(before, prints.fingerprint(loss, y)) == []


def test_inside_cached_parametrizations():
    torch.manual_seed(0)
    layers = parametrizations.orthogonal(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 2)
    model, x = nn.Sequential(*layers).double(), hard.vectors()
    y = torch.zeros(5, 2, dtype=torch.float64)
    with parametrize.cached():
        model(x)
        for call in CALLS:
            unchanged(call, model, x, y, torch.optim.SGD(model.parameters(), lr=0.1))


def test_sweep(tmp_path):
    for name in ("twice", "keeps_used", "pruned_used", "weight_norm_used", "in_place"):
        model, x = hard.MODELS[name]()
        y = torch.ones(5, 2, dtype=torch.float64)
        unchanged(lambda m, x, y, o: cx.sweep(m, (x, y), c=[0.5, 1.0], steps=3), model, x, y, None)


def count_compiled():
    """A back end that counts the runs of compiled code, and the list it appends to."""
    runs = []

    def backend(graph, _):
        def run(*args):
            runs.append(1)
            return graph.forward(*args)

        return run

    return backend, runs


@pytest.mark.parametrize("how", ["model.compile()", "a compiled part", "compiled outermost"])
def test_compiled_models_stay_compiled(how):
    backend, runs = count_compiled()
    torch.manual_seed(0)
    x, y = hard.vectors(), torch.zeros(5, 2, dtype=torch.float64)
    model = hard.Twice().double()
    if how == "model.compile()":
        model.compile(backend=backend)
    elif how == "a compiled part":
        model.o = torch.compile(model.o, backend=backend)
    else:
        model = torch.compile(model, backend=backend)
    model(x)
    per_pass = len(runs)
    assert per_pass > 0
    for call in (ntk, ggn, hessian, tracker):
        del runs[:]
        call(model, x, y, torch.optim.SGD(model.parameters(), lr=0.1))
        assert not runs  # the copies run without it
        model(x)
        assert len(runs) == per_pass
