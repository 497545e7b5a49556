"""Preconditioned operators, the empirical Fisher matrix, checkpointed models, every loss."""

import warnings

import pytest
import torch
from linops import zoo
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import catapult_ext as cx
from catapult_ext.testing.tolerances import assert_close as close


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


OPTIMIZERS = {
    "Adam": {"eps": 1e-3},
    "AdamW": {"amsgrad": True},
    "NAdam": {},
    "RMSprop": {"centered": True},
    "Adagrad": {"eps": 0.1},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_preconditioned_by_the_step_the_optimizer_takes(name):
    model, x = zoo.build("conv")
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-3, **OPTIMIZERS[name])
    for k in range(3):
        optimizer.zero_grad()
        (model(x + 0.1 * k) ** 2).mean().backward()
        optimizer.step()
    y = torch.zeros(4, 3).double()
    hessian = cx.Hessian(model, "half_mse", (x, y))
    a = cx.Preconditioned(hessian, optimizer, model)
    state, group = optimizer.state, optimizer.param_groups[0]
    roots = []
    for p in model.parameters():
        s = state[p]
        if name == "RMSprop":
            second = s["square_avg"] - s["grad_avg"] ** 2
        elif name == "Adagrad":
            second = s["sum"]
        else:
            second = s["max_exp_avg_sq" if name == "AdamW" else "exp_avg_sq"] / (1 - 0.999**3)
        roots.append(((second.clamp_min(0).sqrt() + group["eps"]) ** -0.5).reshape(-1))
    d = torch.cat(roots).detach()
    v = random(len(d), 3)
    close(a @ v, d[:, None] * (hessian @ (d[:, None] * v)))
    assert kept.keys() == dict(model.named_parameters()).keys()
    if name == "Adam":
        part = cx.GGN(model, "half_mse", (x, y), params="9.*")
        close(cx.Preconditioned(part, optimizer, model) @ v[-18:], _scaled(part, d[-18:], v[-18:]))
        shifted = cx.Preconditioned(2 * hessian.shift(0.1), optimizer, model)
        close(shifted @ v, 2 * (a @ v) + 0.2 * d[:, None] ** 2 * v)


def _scaled(a, d, v):
    return d[:, None] * (a @ (d[:, None] * v))


def test_optimizers_that_cannot_precondition():
    model, x = zoo.build("tied")
    h = cx.Hessian(model, "half_mse", (x, torch.zeros(6, 2).double()))
    for name in OPTIMIZERS:
        fresh = getattr(torch.optim, name)(model.parameters())
        with pytest.raises(ValueError, match=f"{name} must have taken steps, got no state for"):
            cx.Preconditioned(h, fresh, model)
    with pytest.raises(TypeError, match="optimizer must be one of Adam"):
        cx.Preconditioned(h, torch.optim.SGD(model.parameters(), 0.1), model)
    d = random(h.shape[0]).abs() + 0.1
    a, dense = cx.Preconditioned.by(h, d), d.sqrt()[:, None] * h.dense() * d.sqrt()
    close(a.dense(), dense)
    close(a.diagonal(), dense.diagonal())
    with pytest.raises(ValueError, match="must be over all 3 preconditioned parameters"):
        cx.Preconditioned.by(h, torch.ones(3))


FISHER = {
    "half_mse": ("half_mse", lambda f, y: (f - y).square().sum() / 2, "samples"),
    "mse": (nn.MSELoss(), lambda f, y: (f - y).square().sum() / 2, "entries"),
    "ce": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum"), "samples"),
    "bce": (nn.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss(reduction="sum"), "bits"),
}


@pytest.mark.parametrize("chunks", [None, 2])
@pytest.mark.parametrize("loss", FISHER)
def test_empirical_fisher(loss, chunks):
    loss, single, per = FISHER[loss]
    model, x = zoo.build("conv")
    y = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    params = list(model.parameters())
    rows = []
    for i in range(4):
        value = single(model(x[i : i + 1]), y[i : i + 1])
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, params)]))
    g = torch.stack(rows)
    exact = g.T @ g / {"samples": 4, "entries": 6, "bits": 12}[per]
    fisher = cx.EmpiricalFisher(model, loss, (x, y), samples_at_once=chunks)
    v = random(len(exact), 3)
    close(fisher @ v, exact @ v)
    close(cx.eigsh(fisher, tol=1e-9).eigenvalues, torch.linalg.eigvalsh(exact)[-1:], 1e-7)
    with pytest.raises(ValueError, match="a normaliser exists for"):
        cx.EmpiricalFisher(model, lambda f, y: f.sum(), (x, y))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
        self.last, self.reentrant, self.on = nn.Linear(6, 3), reentrant, True

    def forward(self, x):
        h = self.first(x)
        if self.on:
            h = checkpoint(self.body, h, use_reentrant=self.reentrant)
            h = checkpoint_sequential(self.body, 2, h, use_reentrant=self.reentrant)
        else:
            h = self.body(self.body(h))
        return self.last(h)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    torch.manual_seed(0)
    model, x = Checkpointed(reentrant).double(), random(4, 5)
    y = torch.arange(4) % 3
    loss = nn.CrossEntropyLoss()

    def made():
        kernel = cx.NTK(model, x)
        return kernel, *(op(model, loss, (x, y)) for op in (cx.GGN, cx.Hessian))

    model.on = False
    plain = made()
    model.on = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held = made()
    with torch.no_grad():  # recomputed activations would be those of the trained model
        for p in model.parameters():
            p.add_(0.5)
    for a, b in zip(held, plain, strict=True):
        v = random(a.shape[0], 2)
        close(a @ v, b @ v)
    model(x).sum().backward()  # the model's own checkpointing is back
    assert model.body[0].weight.grad is not None


LABELS = torch.tensor([0, 2, 1, 1, 2, 0])
EVERY_LOSS = {
    "half_mse": ("half_mse", None),
    "half_mse_mean": ("half_mse_mean", None),
    "mse_sum": (nn.MSELoss(reduction="sum"), None),
    "ce": (nn.CrossEntropyLoss(label_smoothing=0.1), LABELS),
    "ce_soft": (nn.CrossEntropyLoss(reduction="sum"), None),
    "ce_all": (
        nn.CrossEntropyLoss(
            torch.tensor([0.5, 2.0, 1.0]).double(), ignore_index=0, label_smoothing=0.2
        ),
        LABELS,
    ),
    "bce": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0).double()), None),
    "huber": (nn.HuberLoss(delta=0.3), None),
    "smooth_l1": (nn.SmoothL1Loss(), None),
    "poisson": (nn.PoissonNLLLoss(), None),
    "soft_margin": (nn.SoftMarginLoss(), None),
    "multi_label": (nn.MultiLabelSoftMarginLoss(), None),
}


def hessian_of(fn):
    return torch.func.jacrev(torch.func.jacrev(fn))


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_every_loss(name):
    loss, y = EVERY_LOSS[name]
    model, x = zoo.build("counting")
    y = torch.rand(6, 3, generator=torch.Generator().manual_seed(2)).double() if y is None else y
    value = loss if isinstance(loss, nn.Module) else cx.losses.resolve(loss)
    params = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def of_params(flat):
        parts = flat.split([p.numel() for p in params.values()])
        named = {n: a.view(p.shape) for (n, p), a in zip(params.items(), parts, strict=True)}
        state = {n: b.clone() for n, b in model.named_buffers()}
        return torch.func.functional_call(model, {**state, **named}, (x,))

    flat = torch.cat([p.reshape(-1) for p in params.values()])
    f = model(x).detach()
    j = torch.func.jacrev(of_params)(flat).reshape(18, -1)
    h = hessian_of(lambda f: value(f, y))(f).reshape(18, 18)
    v = random(len(flat), 3)
    exact = j.T @ h @ j
    for chunks in (None, 4):
        close(cx.GGN(model, loss, (x, y), samples_at_once=chunks) @ v, exact @ v)
    second = hessian_of(lambda flat: value(of_params(flat), y))(flat)
    for options in ({}, {"samples_at_once": 4}):
        close(cx.Hessian(model, loss, (x, y), **options) @ v, second @ v)
    forward = cx.Hessian(model, loss, (x, y), hvp="forward")
    if name in ("huber", "soft_margin"):  # torch lacks their forward derivative
        with pytest.raises(RuntimeError, match=r"no forward derivative .try hvp='reverse'"):
            forward @ v
    else:
        close(forward @ v, second @ v)
