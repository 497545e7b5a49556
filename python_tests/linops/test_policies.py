"""Options of the operators: parameter subsets, outputs hook, precision, batch norm, dropout."""

import copy

import pytest
import torch
import torch.nn.functional as F
from linops import zoo
from torch import nn
from torch.nn.utils import parametrizations

import catapult_ext as cx
from catapult_ext.testing.tolerances import assert_close as close


def batch_norm_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).double()


X = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["ntk_chain", "conv", "functional"])
@pytest.mark.parametrize("engine", ["autograd", "linearize", None])
def test_parameters_by_pattern_or_list(name, engine):
    model, x = zoo.build(name)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    chosen = names[1:3]
    for other in set(names) - set(chosen):
        model.get_parameter(other).requires_grad_(False)
    j = zoo.jacobian(model, x)
    model.requires_grad_(True)
    kernel = cx.NTK(model, x, engine=engine, params=chosen)
    assert kernel.linearization.snapshot.names == tuple(chosen)
    close(kernel.dense(), j @ j.T)
    close(kernel @ torch.ones(len(j), 2).double(), j @ (j.T @ torch.ones(len(j), 2).double()))
    y = torch.zeros(zoo.call(model, x).shape).double()
    assert cx.GGN(model, "half_mse", (x, y), params=chosen).shape == (j.shape[1],) * 2
    assert cx.Hessian(model, "half_mse", (x, y), params=chosen[0]).shape[0] < j.shape[1]


def test_patterns():
    model, x = zoo.build("ntk_chain")
    assert cx.NTK(model, x, params="*weight").linearization.n_params == 6 * 8 + 8 * 7 + 7 * 2
    with pytest.raises(ValueError, match=r"params must be names or patterns.*'last'"):
        cx.NTK(model, x, params=["*weight", "last"])
    with pytest.raises(TypeError, match=r"options are engine.*batchstats"):
        cx.NTK(model, x, batchstats="frozen")


def test_forward_hook_picks_the_output():
    class Dictionary(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))

        def forward(self, batch):
            return {"logits": self.net(batch["x"]), "extra": None}

    torch.manual_seed(0)
    model = Dictionary().double()
    kernel = cx.NTK(model, {"x": X}, forward=lambda m, batch: m(batch)["logits"][:, 1:])
    plain = cx.NTK(model.net, X).dense(layout="blocks")[:, :, 1:, 1:]
    close(kernel.dense(layout="blocks"), plain)
    with pytest.raises(ValueError, match="forward must be a function"):
        cx.NTK(model, X, forward="logits")


# bergson #239 (bf16 Grams spoil eigenvectors), pytorch-hessian-eigenthings #34, #35
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["smooth", "conv"])
def test_half_precision_models_accumulate_in_float32(name, dtype):
    model, x = zoo.build(name, dtype)
    exact = copy.deepcopy(model).double()
    j = zoo.jacobian(exact, x.double())
    kernel = cx.NTK(model, x)
    assert kernel.dtype == torch.float32
    close(kernel.dense().double(), j @ j.T, 1e-5)
    hessian = cx.Hessian(model, "half_mse", (x, kernel.linearization.outputs + 1))
    assert (hessian @ torch.ones(j.shape[1])).dtype == torch.float32


# pytorch/pytorch #85533, functorch #273, #622, #867, #986; backpack #202, #240, #322
@pytest.mark.parametrize("engine", ["autograd", "linearize", None])
def test_batch_norm_on_frozen_statistics(engine):
    model = batch_norm_net().train()
    h = model[0](X).detach()
    held = copy.deepcopy(model).eval()
    held[1].running_mean, held[1].running_var = h.mean(0), h.var(0, unbiased=False)
    before = {k: b.clone() for k, b in model.state_dict().items()}
    j = zoo.jacobian(held, X)
    kernel = cx.NTK(model, X, engine=engine, batch_stats="frozen")
    close(kernel.dense(), j @ j.T)
    v = torch.randn(12, 2).double()
    close(kernel @ v, j @ (j.T @ v))
    assert all(torch.equal(b, before[k]) for k, b in model.state_dict().items())


def test_batch_norm_coupled():
    model = batch_norm_net().train()
    params = list(model.parameters())
    j = torch.stack(
        [
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(f, params, retain_graph=True)])
            for f in model(X).reshape(-1)
        ]
    )
    kernel = cx.NTK(model, X, batch_stats="coupled")
    close(kernel.dense(), j @ j.T)
    close(kernel.diagonal(), (j @ j.T).diagonal())
    v = torch.randn(12, 2).double()
    close(kernel @ v, j @ (j.T @ v))
    with pytest.raises(ValueError, match="batch_stats must be one of"):
        cx.NTK(model, X, batch_stats="yes")


# functorch #408, pytorch/pytorch #92283
@pytest.mark.parametrize("engine", ["autograd", "linearize"])
def test_dropout_with_one_fixed_mask(engine):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 2)).double()
    state = torch.get_rng_state()
    kernel = cx.NTK(model, X, engine=engine, dropout="fixed", seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        mask = F.dropout(torch.ones(6, 16).double(), 0.5)

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return self.net[3](torch.tanh(self.net[0](x) * mask))

    j = zoo.jacobian(Masked(), X)
    close(kernel.dense(), j @ j.T)
    v = torch.randn(12, 2).double()
    close(kernel @ v, j @ (j.T @ v))
    other = cx.NTK(model, X, engine=engine, dropout="fixed", seed=5).dense()
    assert (other - kernel.dense()).abs().max() > 1e-3
    with pytest.raises(ValueError, match="dropout must be one of"):
        cx.NTK(model, X, dropout=True)


@pytest.mark.parametrize(
    ("wrap", "engine"),
    [
        (parametrizations.spectral_norm, "autograd"),
        (parametrizations.spectral_norm, "linearize"),
        (parametrizations.weight_norm, "autograd"),
    ],
)
def test_parametrisations(wrap, engine):
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 2)).double().eval()
    j = zoo.jacobian(model, X)
    kernel = cx.NTK(model, X, engine=engine)
    close(kernel.dense(), j @ j.T)
    v = torch.randn(12, 2).double()
    close(kernel @ v, j @ (j.T @ v))


class Restless(nn.Module):
    """Its outputs change from pass to pass with what ``state`` refers to."""

    passes = 0

    def __init__(self, state):
        super().__init__()
        self.a, self.passes, self.state = nn.Linear(5, 2), 0, state

    def forward(self, x):
        owner = self.state or self
        owner.passes += 1
        return torch.softmax(self.a(x) * owner.passes, 1)


# opacus #692 (runs not repeatable): a model that changes state which no copy of it holds
@pytest.mark.parametrize("operator", ["NTK", "GGN", "Hessian"])
def test_models_that_do_not_repeat_are_refused(operator):
    arguments = (X.float(),) if operator == "NTK" else ("half_mse", (X.float(), torch.zeros(6, 2)))
    with pytest.raises(ValueError, match=f"{operator}: two forward passes must give the same"):
        getattr(cx, operator)(Restless(Restless), *arguments)
    getattr(cx, operator)(Restless(Restless), *arguments, check=False)


def test_every_pass_starts_from_the_state_of_the_model():
    torch.manual_seed(0)
    model = Restless(None).double()
    model.passes = 1
    f = torch.softmax(model.a(X) * 2, 1)
    grads = [
        torch.autograd.grad(o, list(model.parameters()), retain_graph=True) for o in f.view(-1)
    ]
    j = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in grads])
    kernel = cx.NTK(model, X)
    close(kernel.dense(), j @ j.T)
    close(kernel @ torch.eye(len(j)).double(), j @ j.T)
    assert model.passes == 1


def test_ggn_of_a_callable_loss():
    model, x = zoo.build("functional")
    y = torch.rand(6).double()

    def loss(f, target):
        assert f.shape == (6,)
        return ((f - target) ** 4).sum() + f[0] * f[1]

    j = zoo.jacobian(model, x)
    h = torch.autograd.functional.hessian(lambda f: loss(f, y), model(x).detach())
    ggn = cx.GGN(model, loss, (x, y))
    close(ggn.dense(), j.T @ h @ j)
    assert ggn.dual() is None
    linear = cx.GGN(model, lambda f, y: f.sum(), (x, y))
    assert not linear.dense().any()


class Masked(nn.Module):
    """Writes a constant into a value that depends on parameters."""

    def __init__(self, where):
        super().__init__()
        self.first, self.last, self.where = nn.Linear(5, 6), nn.Linear(6, 3), where

    def forward(self, x):
        z = self.first(x)
        if self.where == "hidden":
            z[:, 0] = 0.5
        out = self.last(torch.tanh(z))
        if self.where == "output":
            out[:, 0] = -10.0
        return out


@pytest.mark.parametrize("where", ["hidden", "output"])
def test_constants_written_into_values(where):
    torch.manual_seed(0)
    model, x = Masked(where).double(), torch.randn(4, 5, dtype=torch.float64)
    j = zoo.jacobian(model, x)
    kernel = cx.NTK(model, x)
    assert kernel.engine != "dense-chain"
    close(kernel.dense(), j @ j.T)
    close(kernel @ torch.eye(12, dtype=torch.float64), j @ j.T)


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_hessian_of_weight_norm(wrap):
    """torch's own second derivative of its fused weight norm is wrong."""
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    hessian = cx.Hessian(model, "half_mse", (x, y)).dense()
    close(hessian, hessian.T)
    names = dict(model.named_parameters())
    sizes = [p.numel() for p in names.values()]

    def gradient(theta):
        parts = zip(names.items(), theta.split(sizes), strict=True)
        state = {n: part.view(p.shape).requires_grad_() for (n, p), part in parts}
        out = torch.func.functional_call(model, state, x)
        grads = torch.autograd.grad((out - y).square().sum() / 14, list(state.values()))
        return torch.cat([g.reshape(-1) for g in grads])

    theta, step = torch.cat([p.detach().reshape(-1) for p in names.values()]), 1e-5
    for i in (0, 3, 9):
        unit = torch.zeros_like(theta)
        unit[i] = step
        slope = (gradient(theta + unit) - gradient(theta - unit)) / (2 * step)
        assert (hessian[:, i] - slope).abs().max() <= 1e-7
    assert torch._weight_norm.__module__ != "catapult_ext.linops.model.policy"  # put back


def test_an_output_hook_leaves_the_modes_of_modules_alone():
    body = (nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    model = nn.Sequential(*body).double()
    model[1].eval()
    model[2].eval()
    modes = [m.training for m in model.modules()]
    x = torch.randn(4, 5, dtype=torch.float64)
    hooked = cx.NTK(model, x, forward=lambda held, given: held(given))
    assert [m.training for m in model.modules()] == modes
    close(hooked.dense(), cx.NTK(model, x).dense())


@pytest.mark.parametrize("engine", ["dense-chain", "autograd"])
def test_autocast_of_the_caller_changes_nothing(engine):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)), torch.randn(6, 5)
    y, v = torch.randn(6, 3), torch.randn(18)
    before = cx.NTK(model, x, engine=engine)
    want = before @ v, before.dense(), before.diagonal(), cx.eigsh(before, 2).eigenvalues
    rate = cx.learning_rate_window(model, "half_mse", (x, y)).eta_crit
    top = cx.eigsh(cx.Hessian(model, "half_mse", (x, y))).eigenvalues
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = cx.NTK(model, x, engine=engine)
        for a in (before, inside):
            got = a @ v, a.dense(), a.diagonal(), cx.eigsh(a, 2).eigenvalues
            assert all(torch.equal(p, q) for p, q in zip(got, want, strict=True))
        assert cx.learning_rate_window(model, "half_mse", (x, y)).eta_crit == rate
        assert torch.equal(cx.eigsh(cx.Hessian(model, "half_mse", (x, y))).eigenvalues, top)


def test_wrong_tangents_of_torch_are_refused():
    """torch.func.linearize of an LSTM, forward mode of an embedding with padding."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.lstm(x)[0][:, -1])

    torch.manual_seed(0)
    model, x = Last().double(), torch.randn(5, 6, 3, dtype=torch.float64)
    kernel = cx.NTK(model, x, engine="linearize")
    with pytest.raises(ValueError, match="engine='linearize' must give the transpose"):
        kernel @ torch.ones(10, dtype=torch.float64)

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 2)

        def forward(self, ids):
            return self.out(torch.tanh(self.table(ids).mean(1)))

    ids = torch.tensor([[1, 2, 0, 0], [3, 4, 5, 0], [6, 0, 0, 0]])
    data = ids, torch.randn(3, 2, dtype=torch.float64)
    hessian = cx.Hessian(Text().double(), "half_mse", data, hvp="forward")
    with pytest.raises(ValueError, match="must give a symmetric matrix"):
        hessian @ torch.ones(hessian.shape[0], dtype=torch.float64)
