"""Losses that see parameters, draw random numbers, keep state, or meet targets of another shape."""

import random as python_random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import catapult_ext as cx


def random(*shape, seed=3):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(o=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, o)).double()


X, Y = random(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])


def dense_hessian(value, params):
    grads = torch.autograd.grad(value, params, create_graph=True, allow_unused=True)
    pairs = zip(grads, params, strict=True)
    flat = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
    rows = []
    for g in flat:
        row = torch.autograd.grad(g, params, retain_graph=True, allow_unused=True)
        pairs = zip(row, params, strict=True)
        rows.append(
            torch.cat([(torch.zeros_like(p) if r is None else r).flatten() for r, p in pairs])
        )
    return torch.stack(rows)


def close(got, exact, tol=1e-9):
    assert got.shape == exact.shape
    assert (got - exact).norm() <= tol * exact.norm()


def check_hessian(model, loss, y, **options):
    params = [p for p in model.parameters() if p.requires_grad]
    exact = dense_hessian(loss(model(X), y), params)
    eye = torch.eye(len(exact)).double()
    operator = cx.Hessian(model, loss, (X, y), **options)
    close(operator @ eye, exact)
    grads = torch.autograd.grad(loss(model(X), y), params)
    close(operator.gradient, torch.cat([g.flatten() for g in grads]))
    close(cx.Hessian(model, loss, (X, y), hvp="forward", **options) @ eye, exact)
    if not options:
        found = cx.eigsh(operator, tol=1e-9).eigenvalues[0]
        assert found == pytest.approx(torch.linalg.eigvalsh(exact)[-1].item(), rel=1e-7)
        streamed = cx.StreamedHessian(model, loss, [(X, y)], reduction="mean")
        close(streamed @ eye, exact)


class Tied(nn.Module):
    """Features of an embedding whose table the loss uses as output layer."""

    def __init__(self):
        super().__init__()
        self.table, self.mix = nn.Parameter(random(4, 5, seed=1)), nn.Linear(3, 5)

    def forward(self, x):
        return torch.tanh(self.mix(x) @ self.table.T @ self.table)


def penalty_by_closure(model):
    return lambda f, y: (
        F.cross_entropy(f, y) + 0.1 * sum(p.square().sum() for p in model.parameters())
    )


def penalty_by_list(model):
    weights = [p for p in model.parameters() if p.dim() > 1]
    return lambda f, y, ws=weights: (
        F.cross_entropy(f, y) + 0.01 * sum(w.abs().pow(3).sum() for w in ws)
    )


class PenaltyModule(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inside = (model[0],)  # in a tuple, so that it is no part of this module

    def penalty(self):
        return self.inside[0].weight.pow(4).sum()

    def forward(self, f, y):
        return F.cross_entropy(f, y) + 0.1 * self.penalty()


SCRIPT_MODEL = network()


def of_a_script():
    return sum(p.square().sum() for p in SCRIPT_MODEL.parameters())


# PyHessian #24, how-do-vits-work #12
@pytest.mark.parametrize("make", [penalty_by_closure, penalty_by_list, PenaltyModule])
@pytest.mark.parametrize("engine", [None, "autograd"])
def test_penalties_in_the_criterion(make, engine):
    model = network()
    check_hessian(model, make(model), Y, **({} if engine is None else {"engine": engine}))


def test_penalty_of_a_global_model_by_a_function_that_the_loss_calls():
    check_hessian(SCRIPT_MODEL, lambda f, y: F.cross_entropy(f, y) + 0.1 * of_a_script(), Y)


def test_output_layer_tied_inside_the_loss():
    torch.manual_seed(0)
    model = Tied().double()
    check_hessian(model, lambda f, y: F.cross_entropy(f @ model.table.T, y), Y)


def test_a_loss_that_layers_leave_in_an_attribute():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.o, self.extra = nn.Linear(3, 4), nn.Linear(4, 2), None

        def forward(self, x):
            h = torch.tanh(self.a(x))
            self.extra = h.square().mean(0).square().sum()  # as load balancing of experts
            return self.o(h)

    torch.manual_seed(0)
    model = Routed().double()
    check_hessian(model, lambda f, y: F.cross_entropy(f, y) + 0.3 * model.extra, Y)


def test_parameters_of_the_loss_itself_are_constants():
    torch.manual_seed(0)
    model, head = network(), nn.Linear(2, 2).double()
    check_hessian(model, lambda f, y: F.cross_entropy(head(f), y), Y)


SEES = r"through the outputs alone.*got a loss that sees 0\.weight"


def test_what_cannot_hold_the_penalty_says_so():
    model = network()
    loss, data = penalty_by_closure(model), (X, Y)
    with pytest.raises(ValueError, match=rf"GGN.*take cx\.Hessian.*{SEES[30:]}"):
        cx.GGN(model, loss, data)
    with pytest.raises(ValueError, match=SEES):
        cx.Hessian(model, loss, data, samples_at_once=2)
    with pytest.raises(ValueError, match=SEES):
        cx.Hessian(model, loss, data, engine="dense-chain")
    with pytest.raises(ValueError, match=r"cx\.Hessian"):
        cx.learning_rate_window(model, loss, data)
    with pytest.raises(ValueError, match=r"cx\.Hessian"):
        cx.CurvatureTracker(model, loss, data).start()


def test_a_penalty_past_every_copy_is_named():
    model = network()

    class Global:
        held = model

    loss = lambda f, y: F.cross_entropy(f, y) + Global.held[0].weight.square().sum()  # noqa: E731
    for call in (
        lambda: cx.Hessian(model, loss, (X, Y)),
        lambda: cx.GGN(model, loss, (X, Y)),
        lambda: cx.StreamedHessian(model, loss, [(X, Y)], reduction="mean"),
    ):
        with pytest.raises(ValueError, match=r"a loss must reach.*got 0\.weight of another"):
            call()


def sampled(f, y):
    kept = torch.randperm(6)[:3]
    return F.cross_entropy(f[kept], y[kept])


def dropped(f, y):
    return F.cross_entropy(F.dropout(f, 0.5), y)


def drawn_in_python(f, y):
    return F.cross_entropy(f * python_random.random(), y)


RANDOM = {"sampled": sampled, "dropped": dropped, "python": drawn_in_python}


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("operator", ["GGN", "Hessian"])
def test_random_losses_are_refused(operator, name):
    text = "must not draw random numbers" if name != "python" else "the same value twice"
    python_random.seed(0)  # two draws that happen to be close give one value
    with pytest.raises(ValueError, match=text):
        getattr(cx, operator)(network(), RANDOM[name], (X, Y))


@pytest.mark.parametrize("operator", ["GGN", "Hessian"])
def test_random_losses_with_one_fixed_draw(operator):
    model = network()

    def product():
        a = getattr(cx, operator)(model, sampled, (X, Y), dropout="fixed", seed=5)
        return a @ torch.eye(a.shape[0]).double()

    torch.manual_seed(5)
    kept = torch.randperm(6)[:3]
    fixed = lambda f, y: F.cross_entropy(f[kept], y[kept])  # noqa: E731
    exact = getattr(cx, operator)(model, fixed, (X, Y))
    close(product(), exact @ torch.eye(exact.shape[0]).double())
    close(product(), product())


class Dino(nn.Module):
    """A running centre, as self-supervised losses keep."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(2).double())

    def forward(self, f, y):
        self.centre = 0.9 * self.centre + 0.1 * f.detach().mean(0)
        return F.cross_entropy((f - self.centre) / 0.1, y)


class Counted:
    """The same kind without a module: an object, and a list in a closure."""

    def __init__(self):
        self.calls = 0

    def __call__(self, f, y):
        self.calls += 1
        return F.cross_entropy(f * self.calls, y)


def listed():
    calls = []

    def loss(f, y):
        calls.append(1)
        return F.cross_entropy(f * len(calls), y)

    return loss


@pytest.mark.parametrize("make", [Dino, Counted, listed])
@pytest.mark.parametrize("hvp", [None, "reverse", "forward"])
def test_stateful_losses_start_from_their_present_state(make, hvp):
    model, loss = network(), make()
    exact = dense_hessian(make()(model(X), Y), list(model.parameters()))
    eye = torch.eye(len(exact)).double()
    for _ in range(2):
        close(cx.Hessian(model, loss, (X, Y), hvp=hvp) @ eye, exact)
    first, second = (cx.GGN(model, loss, (X, Y)) @ eye for _ in range(2))
    close(first, second)
    if isinstance(loss, Dino):
        assert loss.centre.abs().max() == 0
    if isinstance(loss, Counted):
        assert loss.calls == 0


SHAPES = [
    (nn.Flatten(0), (6, 1), r"\(6,\).*got \(6, 1\)"),
    (nn.Identity(), (6,), r"\(6, 1\).*got \(6,\)"),
]


# torch warns and broadcasts (N,) against (N, 1) to (N, N)
@pytest.mark.parametrize(("last", "shape", "text"), SHAPES)
@pytest.mark.parametrize("loss", ["half_mse", nn.MSELoss(), nn.BCEWithLogitsLoss()])
def test_vectors_and_columns_are_never_matched_in_silence(loss, last, shape, text):
    model, y = nn.Sequential(*network(1), last), torch.rand(shape).double()
    data = (X, y)
    for call in (
        lambda: cx.GGN(model, loss, data),
        lambda: cx.Hessian(model, loss, data),
        lambda: cx.EmpiricalFisher(model, loss, data),
        lambda: cx.StreamedGGN(model, loss, [data]),
        lambda: cx.learning_rate_window(model, loss, data),
        lambda: cx.CurvatureTracker(model, loss, data).start(),
    ):
        with pytest.raises(ValueError, match=text):
            call()
    right = (X, y.view(6) if isinstance(last, nn.Flatten) else y.view(6, 1))
    exact = dense_hessian(
        cx.losses.resolve(loss)(model(X).view(6, 1), y.view(6, 1)), list(model.parameters())
    )
    close(cx.Hessian(model, loss, right) @ torch.eye(len(exact)).double(), exact)
