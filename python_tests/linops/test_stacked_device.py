"""Operators of several models on a pretended CUDA device, whose native kernels are emulated."""

import copy

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.models import small_cnn
from catapult_ext.testing.pretended import moved, pretended_cuda, why_unavailable

pytestmark = pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable())


def chain(seed):
    torch.manual_seed(seed)
    layers = [nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)]
    return nn.Sequential(*layers)


def nets(kind, replicas):
    make = chain if kind == "chain" else lambda seed: small_cnn(4, 2, channels=3, seed=seed)
    shape = (7, 5) if kind == "chain" else (3, 1, 4, 4)
    models = [make(seed).double() for seed in range(replicas)]
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    return models, x, torch.randint(2, (len(x),))


def operators(models, x, y):
    return {
        "ntk": cx.NTK(models, x),
        "ggn": cx.GGN(models, "cross_entropy", (x, y)),
        "hessian": cx.Hessian(models, "cross_entropy", (x, y)),
    }


@pytest.mark.parametrize("kind", ["chain", "cnn"])
def test_products_are_those_of_the_cpu(kind):
    models, x, y = nets(kind, 3)
    wanted = operators(models, x, y)
    vectors = {k: torch.randn(*a.shape[:2], 2, dtype=torch.float64) for k, a in wanted.items()}
    products = {k: a @ vectors[k] for k, a in wanted.items()}
    kernel, diagonal = wanted["ntk"].dense(), wanted["ntk"].diagonal()
    with pretended_cuda():
        there = operators([moved(copy.deepcopy(m)) for m in models], moved(x), moved(y))
        for k, a in there.items():
            assert a.device.type == "cuda"
            assert a.plan == wanted[k].plan
            found = (a @ moved(vectors[k])).cpu()
            torch.testing.assert_close(found, products[k], rtol=1e-12, atol=1e-13)
            some = (a.replicas([2, 0]) @ moved(vectors[k][[2, 0]])).cpu()
            torch.testing.assert_close(some, products[k][[2, 0]], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(there["ntk"].dense().cpu(), kernel, rtol=1e-12, atol=1e-13)
        found = there["ntk"].diagonal().cpu()
        torch.testing.assert_close(found, diagonal, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("replicas", [1, 2, 40])
def test_one_launch_of_each_native_operation_whatever_the_number_of_models(replicas):
    """On the CPU's code, which counts a call of a native operation as one kernel."""
    models, x, y = nets("chain", replicas)
    with pretended_cuda("cpu") as device:
        there = operators([moved(m) for m in models], moved(x), moved(y))
        small = there["ggn"].dual().operator
        u = moved(torch.randn(small.shape[:2], dtype=torch.float64))
        small @ u  # input Grams are made once
        device.reset()
        small @ u
        assert device.kernels["ntk_matvec"] == 1
        device.reset()
        there["ntk"].dense()
        assert device.kernels["gram"] == 1


def test_products_launch_no_more_for_more_models():
    """All kernels of a product, torch's own among them, in the emulation."""
    counts = []
    for replicas in (2, 5, 9):
        models, x, y = nets("chain", replicas)
        with pretended_cuda() as device:
            there = operators([moved(m) for m in models], moved(x), moved(y))
            found = {}
            for name, a in there.items():
                u = moved(torch.randn(a.shape[:2], dtype=torch.float64))
                a @ u
                device.reset()
                a @ u
                found[name] = dict(device.kernels)
                assert not device.waits, device.places
            counts.append(found)
    assert counts[1] == counts[2]
    few = counts[0]["ntk"].pop("ntk_matvec")  # one for each layer, where models leave it idle
    assert counts[1]["ntk"].pop("ntk_matvec") == 1 < few
    assert counts[0] == counts[1]
