from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from catapult_ext import models


def test_ntk_linear_is_the_formula_of_its_docstring():
    layer = models.NTKLinear(3, 2, 1.5, 0.5, dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64)
    expected = 1.5 / math.sqrt(3) * x @ layer.weight.T + 0.5 * layer.bias
    torch.testing.assert_close(layer(x), expected)
    assert layer.scale == pytest.approx(1.5**2 / 3)
    assert layer.bias_scale == 0.25


def test_ntk_conv_on_one_pixel_is_ntk_linear():
    conv = models.NTKConv2d(3, 2, 1, 1.5, 0.5, dtype=torch.float64)
    linear = models.NTKLinear(3, 2, 1.5, 0.5, dtype=torch.float64)
    linear.load_state_dict({"weight": conv.weight[:, :, 0, 0], "bias": conv.bias})
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(conv(x[:, :, None, None])[:, :, 0, 0], linear(x))


def test_bias_follows_sigma_b():
    assert models.NTKLinear(3, 2).bias is None
    assert models.NTKLinear(3, 2, sigma_b=0.1).bias is not None
    with pytest.raises(ValueError, match="a bias needs sigma_b > 0"):
        models.NTKLinear(3, 2, bias=True)
    with pytest.raises(ValueError, match="needs bias=True"):
        models.NTKLinear(3, 2, sigma_b=0.1, bias=False)


@pytest.mark.parametrize("parameterisation", ["ntk", "standard"])
def test_both_parameterisations_start_with_the_same_output_scale(parameterisation):
    net = models.fully_connected(64, 200, width=256, parameterisation=parameterisation, seed=3)
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    # sigma_w^2 = 2 keeps E relu(z)^2 = 1 for inputs of unit variance, so outputs have variance 2.
    assert net(x).var().item() == pytest.approx(2.0, rel=0.25)
    assert sum(p.numel() for p in net.parameters()) == 64 * 256 + 2 * 256**2 + 256 * 200


def test_seed_gives_the_same_network_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a = models.fully_connected(4, 2, width=8, seed=1)
    b = models.fully_connected(4, 2, width=8, seed=1, dtype=torch.float64)
    c = models.fully_connected(4, 2, width=8, seed=2)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p.double(), q)
    assert not torch.equal(a[0].weight, c[0].weight)
    assert models.small_cnn(8, 10, channels=4, seed=1)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    models.fully_connected(4, 2, width=8, parameterisation="standard")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("init", models.PARAMETERISATIONS["standard"])
def test_standard_initialisations_have_their_variances(init):
    net = models.fully_connected(
        300, 300, width=300, depth=1, parameterisation="standard", init=init
    )
    first, last = {
        "he": (2, 2),
        "lecun": (1, 1),
        "he_lecun_last": (2, 1),
        "zero_last": (2, 0),
        "torch": (1 / 3, 1 / 3),
    }[init]
    assert net[0].weight.var().item() * 300 == pytest.approx(first, rel=0.05)
    assert net[2].weight.var().item() * 300 == pytest.approx(last, rel=0.05, abs=0)


def test_zero_last_layer_gives_zero_outputs_in_ntk_parameterisation():
    net = models.fully_connected(4, 3, width=8, init="zero_last")
    assert torch.equal(net(torch.randn(5, 4)), torch.zeros(5, 3))


@pytest.mark.parametrize("name", models.ACTIVATIONS)
@pytest.mark.parametrize("parameterisation", ["ntk", "standard"])
def test_every_activation_runs_forwards_and_backwards(name, parameterisation):
    for net, x in (
        (
            models.fully_connected(
                4, 2, width=8, activation_name=name, parameterisation=parameterisation
            ),
            torch.randn(3, 4),
        ),
        (
            models.small_cnn(
                4, 2, channels=2, activation_name=name, parameterisation=parameterisation
            ),
            torch.randn(3, 1, 4, 4),
        ),
    ):
        y = net(x)
        y.sum().backward()
        assert y.shape == (3, 2)
        assert all(p.grad is not None for p in net.parameters())


def test_depth_zero_is_a_linear_model():
    assert [type(m) for m in models.fully_connected(4, 2, depth=0)] == [models.NTKLinear]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be > 0, got 0"),
        ({"depth": -1}, "depth must be >= 0, got -1"),
        ({"activation_name": "sine"}, "name must be one of linear, relu"),
        ({"parameterisation": "mup"}, "parameterisation must be 'ntk' or 'standard', got 'mup'"),
        ({"init": "he"}, "init of ntk must be one of normal, zero_last, got 'he'"),
        ({"sigma_w": float("nan")}, "sigma_w must be finite and > 0, got nan"),
    ],
)
def test_bad_arguments_give_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.fully_connected(4, 2, **arguments)


def test_standard_layers_are_torch_layers():
    net = models.fully_connected(4, 2, parameterisation="standard", bias=True)
    assert isinstance(net[0], nn.Linear)
    assert torch.equal(net[0].bias, torch.zeros(512))
