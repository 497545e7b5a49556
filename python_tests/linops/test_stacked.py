"""Operators of several models against those of single ones."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from linops.stacked_nets import (
    AT_ONCE,
    KINDS,
    MODELS,
    build,
    close,
    mlp,
    operator_of,
    operators,
    rows,
)
from torch import nn

import catapult_ext as cx
from catapult_ext.models import fully_connected


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
    batched = operator_of(kind, nets, inputs[0], o)
    u = torch.randn(*batched.shape[:2], 2, dtype=torch.float64)
    found = batched @ u
    assert not found[1].isfinite().all()
    again = operator_of(kind, [nets[0], nets[2]], inputs[0], o) @ u[[0, 2]]
    close(found[[0, 2]], again)
    only = batched.replicas([1]) @ u[:1]
    assert only.shape == (1, *u.shape[1:])
    assert not only.isfinite().all()


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
    batched = operator_of(kind, nets, x, 2)
    assert batched.plan.startswith("1000 replicas at once")
    u = torch.randn(*batched.shape[:2], 2, dtype=torch.float64)
    found = batched @ u
    some = [0, 1, 499, 998, 999]
    close(found[some], operator_of(kind, [nets[r] for r in some], x, 2) @ u[some])
    single = operator_of(kind, nets[998:], x, 2).replicas([0])
    one = {"ntk": lambda: cx.NTK(nets[998], x)}.get(kind)
    if one is not None:
        close(found[998:999], (one() @ u[998])[None])
    close(single @ u[998:999], found[998:999])


@pytest.mark.parametrize("kind", KINDS)
def test_replicas_go_in_chunks_where_memory_is_short(kind):
    nets, inputs, o = build("chain", 5)
    batched = operator_of(kind, nets, inputs[0], o)
    u = torch.randn(*batched.shape[:2], 3, dtype=torch.float64)
    wanted = batched @ u
    small = operator_of(kind, nets, inputs[0], o)
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
