"""Products of batched operators of R models against the same products one model after the other."""

import pytest
import torch
from harness import Case

import catapult_ext as cx
from catapult_ext.models import resnet, small_cnn

REPLICAS = 64


def mlp(width):
    layers, inputs = [], 64
    for _ in range(3):
        layers += [torch.nn.Linear(inputs, width), torch.nn.ReLU()]
        inputs = width
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, 10))


def _case(measure, models, make, space):
    """One column for each model: of the operator itself, or of its dual in output space."""
    batched = make(models)
    single = [make(model) for model in models]
    if space == "output":
        batched, single = batched.dual().operator, [a.dual().operator for a in single]
    torch.manual_seed(1)
    u = torch.randn(batched.shape[:2])

    def one_by_one():
        return torch.stack([a @ v for a, v in zip(single, u, strict=True)])

    def check():
        torch.testing.assert_close(batched @ u, one_by_one(), rtol=1e-3, atol=1e-5)

    measure(
        Case(
            ours=lambda: batched @ u,
            baselines={"one by one": one_by_one},
            check=check,
            unit=("products", len(models)),
        )
    )


@pytest.mark.parametrize("space", ["output", "parameters"])
@pytest.mark.parametrize(("width", "samples"), [(64, 64), (128, 128)])
def test_ggn_of_64_nets(measure, quick, width, samples, space):
    """MLPs 64-64x3-10 of 64 samples, and 64-128x3-10 of 128."""
    torch.manual_seed(0)
    models = [mlp(width) for _ in range(4 if quick else REPLICAS)]
    x, y = torch.randn(samples, 64), torch.randint(10, (samples,))
    _case(measure, models, lambda m: cx.GGN(m, "cross_entropy", (x, y)), space)


@pytest.mark.parametrize("width", [64, 128])
def test_hessian_of_64_nets(measure, quick, width):
    torch.manual_seed(0)
    models = [mlp(width) for _ in range(4 if quick else REPLICAS)]
    x, y = torch.randn(width, 64), torch.randint(10, (width,))
    _case(measure, models, lambda m: cx.Hessian(m, "cross_entropy", (x, y)), "parameters")


@pytest.mark.parametrize("name", ["cnn", "resnet20"])
def test_ggn_of_convolutional_nets(measure, quick, name):
    """Small layers, which vmap runs together: 8 channels, and ResNet-20 a quarter as wide."""
    if name == "cnn":
        models = [small_cnn(8, 10, channels=8, seed=seed) for seed in range(2 if quick else 16)]
        x = torch.randn(16, 1, 8, 8)
    else:
        models = [resnet(20, 10, width=0.25, seed=s).eval() for s in range(2 if quick else 16)]
        x = torch.randn(8, 3, 8, 8)
    y = torch.randint(10, (len(x),))
    _case(measure, models, lambda m: cx.GGN(m, "cross_entropy", (x, y)), "parameters")


@pytest.mark.parametrize("width", [16, 64])
def test_explicit_kernels(measure, quick, width):
    """Of 64 nets of 32 samples and 4 outputs: one call of ``gram``, against one for each."""
    torch.manual_seed(0)
    models = [mlp(width)[:-1] for _ in range(4 if quick else REPLICAS)]
    models = [torch.nn.Sequential(*m, torch.nn.Linear(width, 4)) for m in models]
    x = torch.randn(32, 64)
    batched, single = cx.NTK(models, x), [cx.NTK(m, x) for m in models]

    def one_by_one():
        return torch.stack([a.dense() for a in single])

    def check():
        torch.testing.assert_close(batched.dense(), one_by_one(), rtol=1e-4, atol=1e-4)

    case = Case(
        ours=batched.dense,
        baselines={"one by one": one_by_one},
        check=check,
        unit=("kernels", len(models)),
    )
    measure(case)
