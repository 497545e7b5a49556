"""Memory budgets: chunks give the numbers of the whole, predictions hold, refusals are clear."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from linops import zoo
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.engines.plan import parse_budget
from catapult_ext.testing.tolerances import assert_close as close

MEASURE = Path(__file__).with_name("measure_memory.py")


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


CHUNKED = [("kinked", "dense-chain"), ("conv", "autograd"), ("attention", None), ("mapping", None)]


@pytest.mark.parametrize(("name", "engine"), CHUNKED)
def test_kernel_by_chunks(name, engine):
    model, x = zoo.build(name)
    j = zoo.jacobian(model, x)
    kernel = cx.NTK(model, x, engine=engine, samples_at_once=3, columns_at_once=2)
    assert kernel.plan.samples == 3
    assert kernel.plan.columns == kernel.columns == 2
    v = random(len(j), 5)
    close(kernel @ v, j @ (j.T @ v))
    close(kernel @ v[:, 0], j @ (j.T @ v[:, 0]))
    close(kernel.diagonal(), (j @ j.T).diagonal())
    close(kernel.dense(), j @ j.T)
    jac = cx.Jacobian(model, x, engine=engine, samples_at_once=3)
    close(jac.dense(), j)
    close(jac.T @ v, j.T @ v)


@pytest.mark.parametrize("loss", ["half_mse", nn.CrossEntropyLoss(), "callable"])
@pytest.mark.parametrize("name", ["conv", "tied", "functional"])
def test_ggn_and_hessian_by_chunks(name, loss):
    model, x = zoo.build(name)
    out = zoo.call(model, x)
    y = torch.rand(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    if loss == "callable":  # couples the samples, and sees the outputs as they are

        def loss(f, target):
            assert f.shape == target.shape
            return ((f - target) ** 4).mean() + f[0].sum() * f[1].sum()

    for operator in (cx.GGN, cx.Hessian):
        whole = operator(model, loss, (x, y))
        chunks = operator(model, loss, (x, y), samples_at_once=2)
        v = random(whole.shape[0], 3)
        close(chunks @ v, whole @ v)
    close(chunks.gradient, whole.gradient)
    close(chunks.value, whole.value)


def test_cross_kernel_and_mixed_precision_by_chunks():
    model, x = zoo.build("conv", torch.float32)
    whole, chunks = cx.NTK(model, x, x.flip(0)), cx.NTK(model, x, x.flip(0), samples_at_once=3)
    close(chunks.dense(), whole.dense(), 1e-5)
    kernel = cx.NTK(model, x, samples_at_once=3)
    close(kernel.coarse() @ torch.ones(12), kernel @ torch.ones(12), 0.05)


@pytest.mark.parametrize("name", ["conv", "tied", "counting", "attention", "functional"])
def test_forward_over_reverse(name):
    model, x = zoo.build(name)
    y = torch.zeros_like(zoo.call(model, x).detach())
    reverse = cx.Hessian(model, "half_mse", (x, y))
    forward = cx.Hessian(model, "half_mse", (x, y), hvp="forward")
    v = random(reverse.shape[0], 2)
    close(forward @ v, reverse @ v)
    close(forward.gradient, reverse.gradient)
    with pytest.raises(ValueError, match="hvp must be None or one of"):
        cx.Hessian(model, "half_mse", (x, y), hvp="backward")


def test_a_plan_can_be_read():
    model, x = zoo.build("conv")
    plan = cx.NTK(model, x, memory_budget="100 MiB").plan
    assert (plan.engine, plan.samples, plan.n_samples, plan.budget) == ("autograd", 4, 4, 100 << 20)
    assert plan.setup_flops > 0
    assert plan.product_flops > plan.setup_flops
    assert plan.kept < plan.peak < plan.budget
    for word in ("engine autograd", "it uses conv2d", "all 4 samples", "GFLOP", "at the peak"):
        assert word in str(plan)
    chunks = cx.GGN(model, "half_mse", (x, torch.zeros(4, 3).double()), samples_at_once=1).plan
    assert "1 of 4 samples at a time, frozen anew" in str(chunks)
    assert chunks.product_flops > 1.5 * plan.product_flops  # set-up is counted in every product
    hessian = cx.Hessian(model, "half_mse", (x, torch.zeros(4, 3).double()))
    assert hessian.plan.samples == 4


def test_flops_of_dense_layers_are_those_of_their_formula():
    model = nn.Sequential(nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 100))
    plan = cx.NTK(model, torch.zeros(50, 300), engine="autograd").plan
    forward = 2 * 50 * (300 * 200 + 200 * 100)
    assert forward < plan.setup_flops < 1.1 * forward
    exact = 2 * forward + 2 * (2 * 50 * 200 * 100)  # weights of both layers, inputs of the second
    assert exact < plan.product_flops < 1.05 * exact


def test_budgets_as_text_and_numbers():
    cpu = torch.device("cpu")
    assert parse_budget("1.5 GiB", cpu, "NTK") == 3 << 29
    assert parse_budget("2m", cpu, "NTK") == 2 << 20
    assert parse_budget(1e6, cpu, "NTK") == 10**6
    assert parse_budget(None, cpu, "NTK") > 1 << 20
    for bad in ("lots", 0, -1):
        with pytest.raises(ValueError, match=r"catapult_ext\.NTK: memory_budget must"):
            parse_budget(bad, cpu, "NTK")
    with pytest.raises(TypeError, match="memory_budget must be a number of bytes or a text"):
        parse_budget([1], cpu, "NTK")


@pytest.mark.parametrize("operator", ["NTK", "GGN", "Hessian"])
def test_a_budget_that_one_sample_exceeds(operator):
    model = nn.Sequential(nn.Linear(400, 400), nn.LayerNorm(400), nn.Linear(400, 400))
    x = torch.zeros(8, 400)
    data = (x,) if operator == "NTK" else ("half_mse", (x, x))
    with pytest.raises(ValueError, match=f"{operator}: memory_budget must hold the model and one"):
        getattr(cx, operator)(model, *data, memory_budget="1 MiB")
    with pytest.raises(ValueError, match="samples_at_once must be a positive int"):
        getattr(cx, operator)(model, *data, samples_at_once=0)


class Coupled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 3)

    def forward(self, x):
        h = self.a(x)
        return torch.softmax(h - h.mean(0), 1)


def test_samples_that_depend_on_each_other_stay_together():
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="chunks only where they do not depend on each other"):
        cx.NTK(Coupled(), x, samples_at_once=2)
    norm = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="chunks only where"):
        cx.NTK(norm, x, samples_at_once=2, batch_stats="coupled")
    dropout = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5))
    with pytest.raises(ValueError, match="chunks only where"):
        cx.NTK(dropout, x, samples_at_once=2, dropout="fixed")
    assert cx.NTK(norm, x, memory_budget="64 MiB", batch_stats="coupled").plan.samples == 6


@pytest.mark.parametrize("operator", ["NTK", "GGN", "Hessian"])
def test_without_a_budget_the_free_memory_counts(operator, monkeypatch):
    model = nn.Sequential(nn.Linear(30, 3000), nn.LayerNorm(3000), nn.Linear(3000, 2))
    x, y = torch.randn(500, 30), torch.zeros(500, 2)
    data = (x,) if operator == "NTK" else ("half_mse", (x, y))
    whole = getattr(cx, operator)(model, *data)
    monkeypatch.setattr("catapult_ext.linops.engines.plan.free_bytes", lambda device: 50 << 20)
    chunks = getattr(cx, operator)(model, *data)
    assert chunks.plan.samples < 500
    v = torch.randn(whole.shape[0], generator=torch.Generator().manual_seed(0))
    close(chunks @ v, whole @ v, 1e-4)


def measured(name):
    command = [sys.executable, str(MEASURE), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_memory(name):
    got = measured(name)
    assert got["peak"] <= 1.15 * got["budget"], got
    if name.partition(":")[2] in ("", *PRODUCTS):  # the plan is one of products
        assert got["predicted"] / 1.5 <= got["peak"] <= 1.5 * got["predicted"], got


PRODUCTS = ("NTK", "GGN", "Hessian")
CASES = ("cnn", "mlp", "resnet", "gpt", "wide")
KERNELS = ("cnn:diagonal", "mlp:trace", "resnet:diagonal", "resnet:trace", "wide:trace")


@pytest.mark.parametrize("name", ["conv", "conv:dense"])
def test_memory(name):
    check_memory(name)


@pytest.mark.nightly
@pytest.mark.parametrize("name", [f"{c}:{o}" for c in CASES for o in PRODUCTS] + list(KERNELS))
def test_memory_of_all(name):
    check_memory(name)
