from __future__ import annotations

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext import models


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "published"),
    # Zagoruyko & Komodakis table 1, He et al. table 6: millions of parameters.
    [("wrn-28-10", 36.5e6), ("wrn-16-4", 2.75e6), ("wrn-40-1", 0.56e6), ("resnet-20", 0.27e6)],
)
def test_parameter_counts_are_the_published_ones(name, published):
    assert count(models.build(name, (3, 32, 32), 10)) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("name", ["wrn-10-1", "wrn-16-1", "resnet-20", "cnn", "small-cnn", "fc"])
@pytest.mark.parametrize("parameterisation", ["standard", "ntk"])
def test_every_network_runs_forwards_and_backwards(name, parameterisation):
    small = {"cnn": {"width": 0.05}, "small-cnn": {"channels": 4}, "fc": {"width": 16}}
    settings = small.get(name, {})
    model = models.build(name, (1, 8, 8), 10, parameterisation=parameterisation, **settings)
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = model(x)
    y.square().sum().backward()
    assert y.shape == (5, 10)
    assert torch.isfinite(y).all()
    assert all(p.grad is not None for p in model.parameters())


def test_groups_halve_the_image_and_widen_the_channels():
    shapes = []
    model = models.build("wrn-16-2", (3, 32, 32), 10)
    for block in model:
        block.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
    model(torch.zeros(1, 3, 32, 32))
    assert shapes[0] == (16, 32, 32)
    assert shapes[1:7] == [(32, 32, 32)] * 2 + [(64, 16, 16)] * 2 + [(128, 8, 8)] * 2
    assert shapes[-2:] == [(128,), (10,)]


@pytest.mark.parametrize("name", ["wrn-16-1", "resnet-20"])
def test_without_norm_there_is_no_batch_norm_and_outputs_stay_of_order_one(name):
    init = {"wrn-16-1": "lecun", "resnet-20": "lecun"}[name]
    model = models.build(name, (3, 16, 16), 10, norm="none", init=init)
    assert not models.has_batch_norm(model)
    assert models.has_batch_norm(models.build(name, (3, 16, 16), 10))
    y = model(torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert 0.01 < y.std().item() < 10


def test_shortcut_of_resnet_is_the_subsampled_input_with_zero_channels():
    model = models.resnet(8, 3, norm="none")
    block = model[4]  # first block of the second group: 16 -> 32 channels, stride 2
    with torch.no_grad():
        for p in block.parameters():
            p.zero_()
    x = torch.rand(2, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].abs().max() == 0
    assert out[:, 24:].abs().max() == 0


def test_same_seed_same_network_in_both_dtypes():
    a = models.build("wrn-10-1", (3, 8, 8), 10, seed=4)
    b = models.build("wrn-10-1", (3, 8, 8), 10, seed=4, dtype=torch.float64)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p.double(), q)


def test_coupled_copy_equals_the_model_in_training_mode():
    model = models.build("wrn-10-1", (3, 8, 8), 10, dtype=torch.float64)
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    held = models.with_batch_stats(model, "coupled")
    frozen = models.with_batch_stats(model, "frozen", x)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    expected = model.train()(x)
    torch.testing.assert_close(held(x), expected)
    torch.testing.assert_close(frozen(x), expected)
    # A sample sees the others through coupled statistics, not through frozen ones.
    assert not torch.allclose(held(x[:3]), expected[:3])
    torch.testing.assert_close(frozen(x[:3]), expected[:3])
    ours = torch.autograd.grad(held(x)[:, 0].sum(), list(held.parameters()))
    theirs = torch.autograd.grad(model(x)[:, 0].sum(), list(model.parameters()))
    torch.testing.assert_close(ours, theirs)
    running = models.with_batch_stats(model, "running")
    torch.testing.assert_close(running(x), model.eval()(x))


class Doubled(nn.BatchNorm1d):
    """A batch norm with a forward pass of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_a_batch_norm_of_the_users_keeps_its_forward_pass():
    model = nn.Sequential(nn.Linear(3, 4), Doubled(4), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    held = models.with_batch_stats(model, "coupled")
    torch.testing.assert_close(held(x), model(x))
    with pytest.raises(ValueError, match="pass batch_stats="):
        cx.NTK(held, x)
    with models.batch_stats_held(model, "coupled", x) as (inside, option):
        found = cx.NTK(inside, x, batch_stats=option).dense()
    torch.testing.assert_close(found, cx.NTK(model, x, batch_stats="coupled").dense())


@pytest.mark.parametrize("layer", [nn.BatchNorm2d, nn.SyncBatchNorm])
@pytest.mark.parametrize("policy", models.BATCH_STATS)
def test_batch_stats_held_is_the_copy_in_place(policy, layer):
    """The same kernel, mostly without a copy, and modes put back."""
    torch.manual_seed(0)
    body = (nn.Conv2d(3, 4, 3), layer(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    model = nn.Sequential(*body, nn.Dropout(0.5)).double()
    model[1].running_mean.normal_()
    model[2].training = False
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    with models.batch_stats_held(model, policy, x) as (held, option):
        assert (held is model) == (layer is nn.BatchNorm2d)
        found = cx.NTK(held, x, batch_stats=option).dense()
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    expected = cx.NTK(models.with_batch_stats(model, policy, x), x).dense()
    torch.testing.assert_close(found, expected)


def test_activation_factory():
    net = models.build("fc", (4,), 2, activation_name=nn.Mish, width=8)
    assert isinstance(net[1], nn.Mish)
    with pytest.raises(TypeError, match="a factory must return a module, got int"):
        models.activation(lambda: 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.build("vgg", (3, 8, 8), 10), "name must be one of fc, small-cnn, cnn"),
        (
            lambda: models.build("cnn", (64,), 10),
            r"needs samples of shape \(C, S, S\), got \(64,\)",
        ),
        (lambda: models.wide_resnet(12, 1, 10), r"depth must be 6 n \+ 4 .* got 12"),
        (lambda: models.resnet(21, 10), r"depth must be 6 n \+ 2 .* got 21"),
        (lambda: models.wide_resnet(10, 1, 10, norm="x"), "norm must be one of batch, none"),
        (lambda: models.paper_cnn(10, 10), "image_size must be a multiple of 4, got 10"),
        (lambda: models.with_batch_stats(nn.Identity(), "x"), "policy must be one of coupled"),
    ],
)
def test_bad_arguments_give_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
