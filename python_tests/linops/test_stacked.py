"""Operators of several models against those of single ones."""

import copy
import warnings
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.stacked import replicas as replicas_module
from catapult_ext.models import fully_connected, resnet, small_cnn

RIGHT = 1e-12  # of the largest number of a result in float64


class Attention(nn.Module):
    """A small transformer: one block on tokens."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.block(self.embed(ids)).mean(1))


def mlp(*widths, act=nn.Tanh):
    layers = []
    for d, p in pairwise(widths):
        layers += [nn.Linear(d, p), act()]
    return nn.Sequential(*layers[:-1])


def rows(n):
    return torch.randn(n, 5, dtype=torch.float64)


def images(n):
    return torch.randn(n, 3, 8, 8, dtype=torch.float64)


def tokens(n):
    return torch.randint(7, (n, 4))


MODELS = {
    "chain": (lambda seed: mlp(5, 7, 6, 3, act=nn.ReLU), rows),
    "cnn": (lambda seed: small_cnn(8, 3, in_channels=3, channels=4, seed=seed), images),
    "resnet20": (lambda seed: resnet(20, 3, width=0.25, seed=seed), images),
    "transformer": (lambda seed: Attention(), tokens),
}


def build(name, replicas, n=3):
    """R models in eval mode, a batch of inputs for each, and the number of outputs."""
    torch.manual_seed(0)
    make, draw = MODELS[name]
    nets = [make(seed).double() for seed in range(replicas)]
    inputs = [draw(n) for _ in range(replicas)]
    with torch.no_grad():
        for model in nets[: replicas if name == "resnet20" else 0]:
            model(images(16))  # statistics of batch norms that differ
    return [model.eval() for model in nets], inputs, 3


def close(found, wanted, right=RIGHT):
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert ((found - wanted).abs() <= right * wanted.abs().max()).all()


def operators(kind, nets, inputs, o, shared, **options):
    """The batched operator, and the single ones."""
    if shared:
        inputs = inputs[:1] * len(inputs)
    n = len(inputs[0])
    labels = [torch.randint(o, (n,)) for _ in nets]
    targets = [torch.randn(n, o, dtype=torch.float64) for _ in nets]
    if kind == "ntk":
        data = inputs[0] if shared else inputs
        single = [cx.NTK(m, x, **options) for m, x in zip(nets, inputs, strict=True)]
        return cx.NTK(nets, data, **options), single
    make = {"ggn": cx.GGN, "ggn_mse": cx.GGN, "hessian": cx.Hessian}[kind]
    loss, ys = ("half_mse", targets) if kind == "ggn_mse" else ("cross_entropy", labels)
    batches = list(zip(inputs, ys[:1] * len(ys) if shared else ys, strict=True))
    single = [make(m, loss, batch, **options) for m, batch in zip(nets, batches, strict=True)]
    return make(nets, loss, batches[0] if shared else batches, **options), single


AT_ONCE = ["chain", "cnn", "resnet20", "transformer"]
KINDS = ["ntk", "ggn", "ggn_mse", "hessian"]


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own-data"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_of_single_operators(name, kind, shared):
    nets, inputs, o = build(name, 3)
    batched, single = operators(kind, nets, inputs, o, shared)
    r, n, _ = batched.shape
    assert (r, n) == (3, single[0].shape[0])
    assert batched.dtype == torch.float64
    assert batched.parameter_names == single[0].parameter_names
    assert ("at once" in batched.plan) == (name in AT_ONCE), batched.plan
    block = torch.randn(r, n, 4, dtype=torch.float64)
    wanted = torch.stack([a @ u for a, u in zip(single, block, strict=True)])
    close(batched @ block, wanted)
    close(batched @ block[:, :, 0].contiguous(), wanted[:, :, 0])
    dual, duals = batched.dual(), [a.dual() for a in single]
    assert (dual is None) == (duals[0] is None)
    if dual is not None:
        m = dual.operator.shape[1]
        assert m == duals[0].operator.shape[0] < n
        small = torch.randn(r, m, 2, dtype=torch.float64)
        for found, of in ((dual.operator @ small, lambda d, u: d.operator @ u),):
            close(found, torch.stack([of(d, u) for d, u in zip(duals, small, strict=True)]))
        lifted = [d.lift(u) for d, u in zip(duals, small, strict=True)]
        close(dual.lift(small), torch.stack(lifted))
        restricted = [d.restrict(t) for d, t in zip(duals, block, strict=True)]
        close(dual.restrict(block), torch.stack(restricted))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["chain", "cnn"])
def test_matrices_diagonals_and_traces(name, kind):
    nets, inputs, o = build(name, 2)
    batched, single = operators(kind, nets, inputs, o, False)
    close(batched.dense(), torch.stack([a.dense() for a in single]), 1e-11)
    close(batched.diagonal(), torch.stack([a.diagonal() for a in single]), 1e-11)
    close(batched.trace(), torch.stack([a.trace() for a in single]), 1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_replicas_are_operators_of_some(name, kind):
    nets, inputs, o = build(name, 4)
    batched, single = operators(kind, nets, inputs, o, False)
    u = torch.randn(4, batched.shape[1], dtype=torch.float64)
    for index in ([2], [3, 0, 3], torch.tensor([1, -1]), torch.tensor([True, False, True, False])):
        some = batched.replicas(index)
        chosen = torch.arange(4)[index].tolist()
        assert some.shape == (len(chosen), *batched.shape[1:])
        close(some @ u[chosen], torch.stack([single[r] @ u[r] for r in chosen]))
        again = some.replicas([0])
        close(again @ u[chosen[:1]], torch.stack([single[chosen[0]] @ u[chosen[0]]]))
        if some.dual() is not None:
            small = torch.randn(some.dual().operator.shape[:2], dtype=torch.float64)
            wanted = [single[r].dual().operator @ v for r, v in zip(chosen, small, strict=True)]
            close(some.dual().operator @ small, torch.stack(wanted))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_one_bad_replica_touches_no_other(name, kind):
    nets, inputs, o = build(name, 3)
    with torch.no_grad():
        next(nets[1].parameters()).view(-1)[:] = torch.nan
    batched = _batched(kind, nets, inputs[0], o)
    u = torch.randn(*batched.shape[:2], 2, dtype=torch.float64)
    found = batched @ u
    assert not found[1].isfinite().all()
    again = _batched(kind, [nets[0], nets[2]], inputs[0], o) @ u[[0, 2]]
    close(found[[0, 2]], again)
    only = batched.replicas([1]) @ u[:1]
    assert only.shape == (1, *u.shape[1:])
    assert not only.isfinite().all()


def _batched(kind, nets, x, o):
    if kind == "ntk":
        return cx.NTK(nets, x)
    torch.manual_seed(5)
    labels, targets = torch.randint(o, (len(x),)), torch.randn(len(x), o, dtype=torch.float64)
    make = cx.Hessian if kind == "hessian" else cx.GGN
    if kind == "ggn_mse":
        return make(nets, "half_mse", (x, targets))
    return make(nets, "cross_entropy", (x, labels))


@pytest.mark.parametrize("kind", KINDS)
def test_one_replica(kind):
    nets, inputs, o = build("chain", 1)
    batched, (single,) = operators(kind, nets, inputs, o, True)
    u = torch.randn(1, batched.shape[1], dtype=torch.float64)
    close(batched @ u, (single @ u[0])[None])


class Scaled(nn.Module):
    """Scaled data and layers, in-place and output activations, a squeeze, a bias of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 4, bias=False), nn.Linear(4, 1)
        self.shift = nn.Parameter(torch.randn(4))

    def forward(self, x):
        x = F.relu(self.a(x - 0.1), inplace=True) * 1.5
        x = -0.5 * self.b(x) / 0.7 + 0.3 * self.shift
        return torch.tanh(self.c(F.softplus(input=x, beta=2.0))).squeeze(-1)


class Whitened(nn.Module):
    """A chain behind constants of its own: statistics of the data, and a frozen layer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.randn(5))
        self.frozen = nn.Linear(5, 6).requires_grad_(False)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.sin(self.frozen(x - self.mean)))


CHAINS = {
    "ntk": lambda: fully_connected(5, 3, width=6, depth=2, sigma_b=0.5),
    "scaled": Scaled,
    "whitened": Whitened,
    "single": lambda: nn.Linear(5, 2),
    "wide": lambda: mlp(5, 20, 3, act=nn.GELU),
    "flat": lambda: nn.Sequential(nn.Flatten(), nn.Linear(5, 4), nn.ELU(), nn.Linear(4, 2)),
}


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own-data"])
@pytest.mark.parametrize("kind", ["ntk", "ggn_mse", "hessian_mse"])
@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_all_kinds_are_multiplied_at_once(name, kind, shared):
    torch.manual_seed(0)
    nets = [CHAINS[name]().double() for _ in range(3)]
    for net in nets:
        torch.nn.init.normal_(next(net.parameters()))
    inputs = [rows(11)] * 3 if shared else [rows(11) for _ in nets]
    with torch.no_grad():
        ys = [torch.randn_like(nets[0](x)) for x in inputs]
    ys = ys[:1] * 3 if shared else ys
    if kind == "ntk":
        single = [cx.NTK(net, x) for net, x in zip(nets, inputs, strict=True)]
        batched = cx.NTK(nets, inputs[0] if shared else inputs)
        close(batched.dense(), torch.stack([a.dense() for a in single]))
        close(batched.diagonal(), torch.stack([a.diagonal() for a in single]))
    else:
        make = cx.Hessian if kind == "hessian_mse" else cx.GGN
        batches = list(zip(inputs, ys, strict=True))
        single = [make(net, "mse", b) for net, b in zip(nets, batches, strict=True)]
        batched = make(nets, "mse", batches[0] if shared else batches)
    assert "at once, engine dense-chain" in batched.plan
    u = torch.randn(*batched.shape[:2], 3, dtype=torch.float64)
    close(batched @ u, torch.stack([a @ v for a, v in zip(single, u, strict=True)]))


class Branches(nn.Module):
    """Takes a course by its parameters, which the first replica does not show."""

    def __init__(self, sign):
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 2)
        self.sign = nn.Parameter(torch.tensor([sign]), requires_grad=False)

    def forward(self, x):
        h = self.a(x)
        return self.b(torch.tanh(h) if float(self.sign) > 0 else torch.relu(h))


class Setting(nn.Module):
    """A setting that is no tensor."""

    def __init__(self, factor):
        super().__init__()
        self.a, self.factor = nn.Linear(5, 2), factor

    def forward(self, x):
        return torch.tanh(self.factor * self.a(x))


@pytest.mark.parametrize("make", [Branches, Setting])
def test_models_that_go_other_ways_are_taken_one_by_one(make):
    nets = [make(sign).double() for sign in (1.0, -1.0)]
    x = rows(9)
    batched, single = cx.NTK(nets, x), [cx.NTK(net, x) for net in nets]
    why = {Branches: "another course of models[1]", Setting: "models[1] has another factor"}[make]
    assert batched.plan == f"2 replicas one by one ({why})"
    u = torch.randn(batched.shape[:2], dtype=torch.float64)
    close(batched @ u, torch.stack([a @ v for a, v in zip(single, u, strict=True)]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_small_replicas(kind):
    torch.manual_seed(0)
    nets = [mlp(5, 3, 2).double() for _ in range(1000)]
    x = rows(4)
    batched = _batched(kind, nets, x, 2)
    assert batched.plan.startswith("1000 replicas at once")
    u = torch.randn(*batched.shape[:2], 2, dtype=torch.float64)
    found = batched @ u
    some = [0, 1, 499, 998, 999]
    close(found[some], _batched(kind, [nets[r] for r in some], x, 2) @ u[some])
    single = _batched(kind, nets[998:], x, 2).replicas([0])
    one = {"ntk": lambda: cx.NTK(nets[998], x)}.get(kind)
    if one is not None:
        close(found[998:999], (one() @ u[998])[None])
    close(single @ u[998:999], found[998:999])


@pytest.mark.parametrize("kind", KINDS)
def test_replicas_go_in_chunks_where_memory_is_short(kind):
    nets, inputs, o = build("chain", 5)
    batched = _batched(kind, nets, inputs[0], o)
    u = torch.randn(*batched.shape[:2], 3, dtype=torch.float64)
    wanted = batched @ u
    small = _batched(kind, nets, inputs[0], o)
    inner, seen = small.products, []

    class Short(type(inner)):
        def matmat(self, vectors):
            seen.append(len(vectors))
            if len(vectors) > 3:
                raise torch.OutOfMemoryError("out of memory")
            return super().matmat(vectors)

    inner.__class__ = Short
    small._use(inner)
    inner.select = lambda index: type(inner).__mro__[1].select(inner, index)
    with pytest.warns(UserWarning, match="5 replicas do not fit into memory, 3 at a time"):
        close(small @ u, wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(small @ u, wanted)
    assert seen == [5]
    assert small.plan.endswith(", 3 at a time")


def test_memory_that_stays_short_is_an_error():
    nets, inputs, _ = build("chain", 4)
    batched = cx.NTK(nets, inputs[0])

    def fails(vectors):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    batched.products.matmat = fails
    batched.products.select = lambda index: batched.products
    with pytest.warns(UserWarning, match="4 replicas"), pytest.raises(RuntimeError, match="alloc"):
        batched @ torch.randn(batched.shape[:2], dtype=torch.float64)
    batched.products.matmat = lambda vectors: 1 / 0
    with pytest.raises(ZeroDivisionError):
        batched @ torch.randn(batched.shape[:2], dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_state(kind):
    nets, inputs, o = build("resnet20", 3)
    stacked = (*torch.func.stack_module_state(nets), copy.deepcopy(nets[0]).to("meta"))
    one, other = _batched(kind, nets, inputs[0], o), _batched(kind, stacked, inputs[0], o)
    u = torch.randn(one.shape[:2], dtype=torch.float64)
    close(other @ u, one @ u)


@pytest.mark.parametrize("name", ["chain", "cnn"])
def test_stacked_state_alone_makes_no_modules(name, monkeypatch):
    """Besides the one that is traced: thousands of replicas are no thousand copies of a module."""
    nets, inputs, _ = build(name, 5)
    made = []
    whole = replicas_module._with_state

    def counted(module, state):
        made.append(state)
        return whole(module, state)

    monkeypatch.setattr(replicas_module, "_with_state", counted)
    params, buffers = torch.func.stack_module_state(nets)
    found = cx.NTK((params, buffers, nets[0]), inputs[0])
    assert len(made) == 1
    u = torch.randn(found.shape[:2], dtype=torch.float64)
    close(found @ u, cx.NTK(nets, inputs[0]) @ u)


def no_rows(params, buffers, module):
    return {k: p[0] for k, p in params.items()}, buffers, module


def no_replica(params, buffers, module):
    return {k: p[:0] for k, p in params.items()}, buffers, module


def other_counts(params, buffers, module):
    return {**params, "0.bias": params["0.bias"][:1]}, buffers, module


def without_one(params, buffers, module):
    return {k: p for k, p in params.items() if k != "0.bias"}, buffers, module


def no_buffers(params, buffers, module):
    return params, None, module


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (no_rows, ValueError, r"0.weight \(R, \(7, 5\)\), got \(7, 5\)"),
        (no_replica, ValueError, "at least one model, got R = 0"),
        (other_counts, ValueError, r"must have one R, got \[1, 2\]"),
        (without_one, ValueError, r"names of the module, got \['0.bias'\]"),
        (no_buffers, TypeError, r"must be modules, or \(params, buffers, module\)"),
    ],
)
def test_stacked_state_that_does_not_fit(spoil, error, text):
    nets, inputs, _ = build("chain", 2)
    state = (*torch.func.stack_module_state(nets), nets[0])
    with pytest.raises(error, match=text):
        cx.NTK(spoil(*state), inputs[0])


def test_training_afterwards_changes_nothing():
    nets, inputs, o = build("chain", 2)
    batched = _batched("ggn", nets, inputs[0], o)
    u = torch.randn(batched.shape[:2], dtype=torch.float64)
    before = batched @ u
    with torch.no_grad():
        for model in nets:
            for p in model.parameters():
                p.zero_()
    torch.testing.assert_close(batched @ u, before, rtol=0, atol=0)


def test_some_of_the_parameters():
    nets, inputs, o = build("chain", 3)
    for kind in KINDS:
        batched, single = operators(kind, nets, inputs, o, False, params="2.*")
        assert batched.parameter_names == ("2.weight", "2.bias")
        u = torch.randn(batched.shape[:2], dtype=torch.float64)
        close(batched @ u, torch.stack([a @ v for a, v in zip(single, u, strict=True)]))


def other_structure(nets):
    nets[2] = mlp(5, 7, 6, 3, act=nn.Tanh).double().eval()


def other_shape(nets):
    nets[1] = mlp(5, 8, 6, 3, act=nn.ReLU).double().eval()


def other_depth(nets):
    nets[1] = mlp(5, 7, 6, 4, 3, act=nn.ReLU).double().eval()


def without_bias(nets):
    nets[1][2].bias = None


def other_dtype(nets):
    nets[1].float()


def other_device(nets):
    nets[1][0].to("meta")


def other_mode(nets):
    nets[2][1].train()


def other_trainable(nets):
    nets[1][4].bias.requires_grad_(False)


def one_parameter(nets):
    nets[2][0].weight = nets[0][0].weight


def no_module(nets):
    nets[1] = "net"


def no_model(nets):
    nets.clear()


BAD = {
    other_structure: (ValueError, r"models\[2\] module '1' must be ReLU, got Tanh"),
    other_shape: (ValueError, r"models\[1\] 0.weight must have shape \(7, 5\), got \(8, 5\)"),
    other_depth: (ValueError, r"models\[1\] module '5' must be none, got ReLU"),
    without_bias: (ValueError, r"models\[1\] must have the parameter 2.bias"),
    other_dtype: (TypeError, r"models\[1\] 0.weight must have dtype torch.float64"),
    other_device: (ValueError, r"models\[1\] 0.weight must be on cpu, got meta"),
    other_mode: (ValueError, r"models\[2\] module '1' must be in eval mode, got train"),
    other_trainable: (ValueError, r"models\[1\] 4.bias must be trainable, .* got frozen"),
    one_parameter: (ValueError, r"one Parameter as models\[0\] 0.weight and models\[2\] 0.weight"),
    no_module: (TypeError, r"models\[1\] must be a torch.nn.Module, got str"),
    no_model: (ValueError, "models must hold at least one model, got none"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spoil", BAD)
def test_models_that_differ(spoil, kind):
    nets, inputs, o = build("chain", 3)
    spoil(nets)
    error, text = BAD[spoil]
    where = {"ntk": "NTK", "hessian": "Hessian"}.get(kind, "GGN")
    with pytest.raises(error, match=rf"^catapult_ext.{where}: .*{text}"):
        _batched(kind, nets, inputs[0], o)


def test_batches_that_do_not_fit():
    nets, inputs, o = build("chain", 3)
    with pytest.raises(ValueError, match=r"a batch for each of the 3 models, got 2"):
        cx.NTK(nets, inputs[:2])
    with pytest.raises(ValueError, match=r"x\[2\] must be float64 \(3, 5\), got float64 \(2, 5\)"):
        cx.NTK(nets, [*inputs[:2], inputs[2][:2]])
    ys = [torch.randint(o, (3,)) for _ in nets]
    ys[1] = ys[1].double()
    with pytest.raises(ValueError, match=r"data\[1\] must be"):
        cx.GGN(nets, "cross_entropy", list(zip(inputs, ys, strict=True)))


def test_batch_norm_in_train_mode_is_refused():
    nets, inputs, o = build("resnet20", 2)
    for model in nets:
        model.train()
    for kind in KINDS:
        with pytest.raises(ValueError, match="BatchNorm must be in eval mode"):
            _batched(kind, nets, inputs[0], o)


def test_right_hand_sides_are_checked():
    nets, inputs, _ = build("chain", 2)
    batched = cx.NTK(nets, inputs[0])
    with pytest.raises(ValueError, match=r"must be \(2, 9\) or \(2, 9, K\), got \(9,\)"):
        batched @ torch.randn(9, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"must be \(2, 9\) or \(2, 9, K\), got \(9, 2\)"):
        batched @ torch.randn(9, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"must be torch\.float64, got torch\.float32"):
        batched @ torch.randn(2, 9)
    with pytest.raises(TypeError, match=r"must be a torch\.Tensor, got list"):
        batched @ [1.0]
    assert (batched @ torch.zeros(2, 9, 0, dtype=torch.float64)).shape == (2, 9, 0)
    for index, text in (([], "at least one"), ([2], "of 2 replicas"), ([[0]], "one-dimensional")):
        with pytest.raises(ValueError, match=text):
            batched.replicas(index)
    with pytest.raises(TypeError, match="integers or a mask"):
        batched.replicas([0.5])
    with pytest.raises(ValueError, match=r"a mask must be \(2,\)"):
        batched.replicas(torch.ones(3, dtype=torch.bool))
