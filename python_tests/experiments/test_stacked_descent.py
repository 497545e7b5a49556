"""Runs trained as one program are the runs made one after the other."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from catapult_ext import data, models
from catapult_ext.experiments import stacked_chain, sweep
from catapult_ext.experiments.curvature import Followed, top_curvature
from catapult_ext.experiments.descent import descend
from catapult_ext.experiments.stacked_chain import StackedChain, dense_layers
from catapult_ext.experiments.stacked_descent import chunks, descend_all, stackable
from catapult_ext.experiments.start import start
from catapult_ext.training import Recipe

DOUBLE = {"dtype": torch.float64}
SIZES = (5, 3)
NETS = {
    "relu": lambda: models.fully_connected(*SIZES, width=16, depth=2, **DOUBLE),
    "tanh with bias": lambda: models.fully_connected(
        *SIZES, width=16, depth=2, sigma_b=0.3, activation_name="tanh", **DOUBLE
    ),
    "standard gelu": lambda: models.fully_connected(
        *SIZES,
        width=16,
        depth=2,
        parameterisation="standard",
        bias=True,
        activation_name="gelu",
        **DOUBLE,
    ),
    "linear": lambda: nn.Sequential(nn.Linear(*SIZES)).double(),
    "activated outputs": lambda: nn.Sequential(nn.Linear(*SIZES), nn.Softplus()).double(),
}
SINGLE = {"float32": lambda: models.fully_connected(*SIZES, width=16)}
RECIPES = {
    "followed": {"batch_stats": None, "top": 2},
    "batches, momentum and L2": {"batch": 7, "momentum": 0.5, "l2": 0.01},
    "momentum": {"momentum": 0.5},
    "L2": {"l2": 0.01, "probe_every": 5},
}


def teacher(**settings):
    settings = {"in_features": 5, "out_features": 3, "classes": True, "seed": 1, **settings}
    return data.teacher(24, 8, **{**DOUBLE, **settings})


def numbers(run):
    """Everything measured but the bounds of errors, as nested lists."""
    rows = [{k: v for k, v in row.items() if k != "lambda_error"} for row in run.rows]
    projection = run.projection and (run.projection.growth, run.projection.norm)
    return [run.losses, [list(row.items()) for row in rows], projection, run.diverged_at]


def equal(a, b, rel):
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y, rel) for x, y in zip(a, b, strict=True))
    if isinstance(a, float):
        return math.isclose(a, b, rel_tol=rel, abs_tol=rel) or (a != a and b != b)
    return a == b


@pytest.mark.filterwarnings("ignore:.*no curvature:RuntimeWarning")
@pytest.mark.parametrize("loss", ["half_mse", "cross_entropy"])
@pytest.mark.parametrize("settings", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_stacked_runs_are_the_runs_alone(net, settings, loss, monkeypatch):
    recipe = Recipe(steps=12, tol=1e-7, **settings)
    problem = start(net(), teacher(), loss, recipe)
    etas = [c / problem.lambda0 for c in (0.5, 1.5, 3.0, 1000.0)]
    assert chunks(problem, 4, recipe) == [[0, 1, 2, 3]]
    alone = [descend(problem, eta, recipe, seed=3) for eta in etas]
    monkeypatch.setitem(stacked_chain.CACHE_BYTES, "cpu", 1)  # replicas step in turns
    together = descend_all(problem, etas, recipe, seed=3)
    for one, stacked in zip(alone, together, strict=True):
        assert equal(numbers(one), numbers(stacked), 1e-5), (one, stacked)


def test_a_divergent_replica_changes_no_bit_of_the_others():
    recipe = Recipe(steps=9, batch_stats=None, top=3)
    problem = start(SINGLE["float32"](), teacher(dtype=torch.float32), "half_mse", recipe)
    etas = [c / problem.lambda0 for c in (1.0, 3.0)]
    calm = descend_all(problem, etas, recipe)
    wild = descend_all(problem, [etas[0], 1e30, etas[1], 1e9], recipe)
    assert [run.diverged_at >= 0 for run in wild] == [False, True, False, True]
    for one, other in zip(calm, wild[::2], strict=True):
        assert equal(numbers(one), numbers(other), 1e-5)
    chain = StackedChain.copies(dense_layers(problem.model), problem.model, 3)
    chain.parameters["0.weight"][1] = math.nan
    x = problem.data.x_train
    f = chain.forward(x)
    assert f[1].isnan().all()
    assert torch.equal(f[0], f[2])
    chain.move(f.clone())
    assert all(p[::2].isfinite().all() and p[1].isnan().any() for p in chain.parameters.values())


@pytest.mark.parametrize("loss", ["half_mse", "cross_entropy"])
def test_curvature_of_all_replicas_is_that_of_each(loss):
    """A replica that is not finite has a reason, and changes no other."""
    recipe = Recipe(steps=3, batch_stats=None)
    net, found = NETS["relu"](), teacher()
    problem = start(net, found, loss, recipe)
    chain = StackedChain.copies(dense_layers(net), net, 4)
    for r, weight in enumerate(chain.parameters["0.weight"]):
        weight.mul_(1 + 0.3 * r)
    x, y = found.train
    alone = []
    for r in range(4):
        chain.load(net, r)
        alone.append(top_curvature(net, problem.loss, x, y, None, 1e-8))
    followed = Followed(net, problem.loss, 1e-8)
    assert all(reason is None for _, _, reason in followed.update(chain, x, y, check=False))
    chain.parameters["2.weight"][2] = math.nan
    together = followed.update(chain, x, y, check=False)
    assert together[2][:2] == (None, None)
    assert "finite" in together[2][2]
    followed.keep([0, 3])
    chain.keep(torch.tensor([0, 3]))
    later = followed.update(chain, x, y, check=True)
    for found, r in ((together[0], 0), (together[1], 1), (later[0], 0), (later[1], 3)):
        assert found[2] is None
        assert found[0] == pytest.approx(alone[r][0], rel=1e-7)


def test_chunks_follow_from_sizes_alone(monkeypatch):
    recipe = Recipe(steps=3, batch_stats=None)
    problem = start(SINGLE["float32"](), teacher(dtype=torch.float32), "half_mse", recipe)
    assert chunks(problem, 20, recipe) == [[*range(8)], [*range(8, 16)], [*range(16, 20)]]
    layers = stackable(problem, recipe)
    # three layers of 16 and one of 3 units and two slopes on 24 samples, weights with one more row
    weights = 16 * 6 + 2 * 16 * 17 + 3 * 17
    size = 4 * (24 * (3 * 16 + 3 + 2 * 16) + weights)
    assert stacked_chain.replica_bytes(layers, 24, 4) == size
    monkeypatch.setitem(stacked_chain.CHUNK_BYTES, "cpu", 3 * size)
    assert chunks(problem, 7, recipe) == [[0, 1, 2], [3, 4, 5], [6]]
    monkeypatch.setitem(stacked_chain.CHUNK_BYTES, "cpu", size - 1)
    assert chunks(problem, 2, recipe) == [[0], [1]]
    monkeypatch.setitem(stacked_chain.CACHE_BYTES, "cpu", 3 * size)
    assert stacked_chain.in_cache(layers, 24, 4, "cpu") == 3
    assert stackable(problem, recipe) is not None
    monkeypatch.setattr(stacked_chain, "ALONE_BYTES", size - 1)
    assert stackable(problem, recipe) is None
    assert chunks(problem, 3, recipe) == [[0], [1], [2]]


class Own(nn.Sequential):
    """A Sequential whose forward may be anything."""


def tied():
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.ReLU(), layer)


def frozen():
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)
    return model


def hooked():
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    model[0].register_forward_hook(lambda *_: None)
    return model


def reparameterised():
    model = nn.Sequential(nn.Linear(5, 3))
    nn.utils.parametrizations.weight_norm(model[0])
    return model


@pytest.mark.parametrize(
    "model",
    [
        Own(nn.Linear(5, 3)),
        tied(),
        frozen(),
        hooked(),
        reparameterised(),
        nn.Linear(5, 3),
        nn.Sequential(nn.ReLU(), nn.Linear(5, 3)),
        nn.Sequential(nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Tanh(), nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_other_models_are_not_stacked(model):
    assert dense_layers(model) is None


def test_nested_chains_of_images_are_stacked():
    net = nn.Sequential(
        nn.Flatten(), nn.Sequential(nn.Linear(12, 4), nn.Tanh()), nn.Identity(), nn.Linear(4, 2)
    )
    found = dense_layers(net)
    assert found is None  # two activations in a row, the second one of no effect
    layers = dense_layers(nn.Sequential(nn.Flatten(), *net[1], net[3]))
    assert [(layer.weight, layer.bias) for layer in layers] == [
        ("1.weight", "1.bias"),
        ("3.weight", "3.bias"),
    ]


@pytest.mark.parametrize("loss", ["half_mse", "cross_entropy"])
def test_a_stacked_sweep_is_the_sweep_one_by_one(loss, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    found = data.digits(train=64)
    model = models.fully_connected(64, 10, width=24, depth=2, seed=1)
    settings = {"c": [0.5, 1.9, 2.6, 5.0, 200.0], "steps": 25, "loss": loss}
    together = sweep(model, found, **settings, out=tmp_path / "run")
    monkeypatch.setattr(stacked_chain, "ALONE_BYTES", 0)
    alone = sweep(model, found, **settings)
    assert together.phases == alone.phases
    for a, b in zip(together.records, alone.records, strict=True):
        assert a.keys() == b.keys()
        assert a["probe_steps"] == b["probe_steps"]
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-3)
        for x, y, error in zip(a["lambda"], b["lambda"], b["lambda_error"], strict=True):
            assert abs(x - y) <= 2 * error + 1e-3 * y
        assert a["weight_norm"] == pytest.approx(b["weight_norm"], rel=1e-4)
    # A folder of rates made one by one is taken as it is, and the missing rate is made.
    part = tmp_path / "run" / "parts" / "rate_0002.json"
    held = {p.name: p.read_bytes() for p in part.parent.glob("*.json")}
    part.unlink()
    again = sweep(model, found, **settings, out=tmp_path / "run")
    assert again.phases == together.phases
    for name, content in held.items():
        now = (part.parent / name).read_bytes()
        assert name == part.name or now == content
    assert json.loads(part.read_text())
