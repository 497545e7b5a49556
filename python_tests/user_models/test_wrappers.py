"""Models and optimizers inside the wrappers of other packages."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import catapult_ext as cx

CE = nn.CrossEntropyLoss()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.fixture
def data():
    torch.manual_seed(1)
    return torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 1, 0])


class GradSampleModule(nn.Module):
    """As opacus's: hooks on every layer, which keep activations for the backward pass."""

    __module__ = "opacus.grad_sample.grad_sample_module"

    def __init__(self, module):
        super().__init__()
        self._module = module
        for part in module.modules():
            part.activations = []
            part.register_forward_hook(self.keep)
            part.register_full_backward_hook(partial(self.take, scale=1.0))

    def keep(self, module, given, out):
        if module.training:
            module.activations.append(given[0].detach())

    def take(self, module, grad_in, grad_out, scale):
        module.activations.pop()

    def forward(self, x):
        return self._module(x)


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "opacus": GradSampleModule,
    "two": lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_operators_are_those_of_the_model_inside(name, data):
    plain, (x, y) = net(), data
    wrapped = WRAPPERS[name](copy.deepcopy(plain))
    for make in (
        lambda m, **k: cx.NTK(m, x, **k),
        lambda m, **k: cx.GGN(m, CE, (x, y), **k),
        lambda m, **k: cx.Hessian(m, CE, (x, y), **k),
        lambda m, **k: cx.StreamedHessian(m, CE, [(x[:2], y[:2]), (x[2:], y[2:])], **k),
        lambda m, **k: cx.NTK(m, x, forward=lambda m, x: m(x), **k),
    ):
        assert torch.allclose(make(wrapped).dense(), make(plain).dense(), rtol=1e-12, atol=1e-14)
    part = cx.GGN(wrapped, CE, (x, y), params="2.*")
    assert part.parameter_names == ("2.weight", "2.bias")
    assert torch.equal(part.dense(), cx.GGN(plain, CE, (x, y), params="2.*").dense())
    assert cx.learning_rate_window(wrapped, CE, (x, y)).eta_crit == pytest.approx(
        cx.learning_rate_window(plain, CE, (x, y)).eta_crit
    )
    cx.CurvatureTracker(wrapped, CE, (x, y)).start()


def test_hooks_of_opacus_see_no_pass_of_an_operator(data):
    x, y = data
    wrapped = GradSampleModule(net())
    CE(wrapped(x), y).backward()
    left = wrapped(x).sum()  # its activations wait for their backward pass
    cx.eigsh(cx.Hessian(wrapped, CE, (x, y)))
    assert [len(m.activations) for m in wrapped._module.modules()] == [1, 1, 1, 1]
    left.backward()
    assert wrapped._module[0]._forward_hooks


def test_opacus_itself(data):
    opacus = pytest.importorskip("opacus")
    plain, (x, y) = net(), data
    wrapped = opacus.GradSampleModule(copy.deepcopy(plain))
    CE(wrapped(x), y).backward()
    for operator in (cx.GGN, cx.Hessian):
        right = operator(plain, CE, (x, y)).dense()
        assert torch.allclose(operator(wrapped, CE, (x, y)).dense(), right)
    cx.CurvatureTracker(wrapped, CE, (x, y)).start()


class Accelerated(torch.optim.Optimizer):
    """As accelerate's ``AcceleratedOptimizer``, and so that of every Trainer."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)


class Private(torch.optim.Optimizer):
    """As opacus's ``DPOptimizer``."""

    def __init__(self, optimizer):
        self.original_optimizer = optimizer

    param_groups = property(lambda self: self.original_optimizer.param_groups)
    state = property(lambda self: self.original_optimizer.state)


def _stepped(model, data, groups, kind=torch.optim.AdamW, **options):
    optimizer = kind(groups, **options)
    CE(model(data[0]), data[1]).backward()
    kept = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    with torch.no_grad():
        for p, value in zip(model.parameters(), kept, strict=True):
            p.copy_(value)
    return optimizer


def _right(model, operator, optimizer):
    """D A D by the optimizer's state, entry by entry."""
    group = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    largest = max(g["lr"] for g in optimizer.param_groups)
    parts = []
    for p in model.parameters():
        g, second = group[id(p)], optimizer.state[p]["exp_avg_sq"]
        root = (second / (1 - g["betas"][1] ** float(optimizer.state[p]["step"]))).sqrt()
        parts.append((g["lr"] / largest / (root + g["eps"])).reshape(-1))
    root = torch.cat(parts).sqrt()
    return root[:, None] * operator.dense() * root


@pytest.mark.parametrize("wrap", [None, Accelerated, Private, lambda o: Accelerated(Private(o))])
@pytest.mark.parametrize("rates", [(1e-3, 1e-3), (1e-3, 4e-3), (0.0, 1e-3), (0.0, 0.0)])
def test_groups_and_wrapped_optimizers(wrap, rates, data):
    model = net()
    vectors = [p for p in model.parameters() if p.dim() < 2]
    matrices = [p for p in model.parameters() if p.dim() > 1]
    groups = [
        {"params": matrices, "weight_decay": 0.1, "lr": rates[0], "eps": 1e-4},
        {"params": vectors, "weight_decay": 0.0, "lr": rates[1], "betas": (0.8, 0.9)},
    ]
    optimizer = _stepped(model, data, groups)
    hessian = cx.Hessian(model, CE, data)
    given = optimizer if wrap is None else wrap(optimizer)
    found = cx.Preconditioned(hessian, given, nn.DataParallel(model)).dense()
    if rates == (0.0, 0.0):
        for g in optimizer.param_groups:
            g["lr"] = 1.0  # one rate: P alone counts
    right = _right(model, hessian, optimizer)
    assert torch.allclose(found, right, rtol=1e-10, atol=1e-12 * float(right.abs().max()))


class WithPooler(nn.Module):
    """A head that the loss does not reach, as in many language models."""

    def __init__(self):
        super().__init__()
        self.net, self.pooler = net(), nn.Linear(2, 2).double()

    def forward(self, x):
        return self.net(x)


def test_parameters_without_gradient_do_not_move(data):
    model = WithPooler()
    optimizer = _stepped(model, data, model.parameters(), torch.optim.Adam)
    found = cx.Preconditioned(cx.GGN(model, CE, data), optimizer, model)
    inner = cx.GGN(model.net, CE, data)
    assert torch.allclose(found.dense()[:51, :51], _right(model.net, inner, optimizer))
    assert (found.dense()[51:] == 0).all()
    assert torch.isfinite(cx.eigsh(found).eigenvalues).all()
    model.pooler.weight.grad = torch.ones(2, 2).double()  # it has one, and the optimizer no state
    with pytest.raises(ValueError, match=r"Adam must have taken steps, got no state for pooler.w"):
        cx.Preconditioned(cx.GGN(model, CE, data), optimizer, model)


def test_optimizers_that_do_not_fit(data):
    model = net()
    ggn = cx.GGN(model, CE, data)
    part = _stepped(model, data, model[0].parameters(), torch.optim.Adam)
    with pytest.raises(ValueError, match=r"must train all parameters .*params=.* got 2.weight in"):
        cx.Preconditioned(ggn, part, model)
    first = cx.GGN(model, CE, data, params="0.*")
    assert torch.isfinite(cx.Preconditioned(first, part, model).dense()).all()
    with pytest.raises(TypeError, match=r"one of Adam, .*or wrap one, got Accelerated"):
        cx.Preconditioned(ggn, Accelerated(torch.optim.SGD(model.parameters(), 0.1)), model)


def test_accelerate_itself(data):
    accelerate = pytest.importorskip("accelerate")
    model = net()
    plain = torch.optim.AdamW(model.parameters())
    prepared, optimizer = accelerate.Accelerator(cpu=True).prepare(model, plain)
    CE(prepared(data[0]), data[1]).backward()
    optimizer.step()
    ggn = cx.GGN(prepared, CE, data)
    assert torch.allclose(
        cx.Preconditioned(ggn, optimizer, prepared).dense(), _right(model, ggn, plain)
    )
