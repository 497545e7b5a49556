"""Kernels computed by neural-tangents, reproduced by every engine that can."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.models import Erf, NTKLinear

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def load(name):
    data = np.load(GOLDEN / f"{name}.npz")
    arrays = {k: torch.from_numpy(data[k]) for k in data.files}
    return arrays, [arrays[k] for k in sorted(arrays) if k.startswith("p")]


def dense_net(parameters, make, activation):
    layers = []
    for w, b in zip(parameters[::2], parameters[1::2], strict=True):
        layer = make(*w.shape)
        layer.weight.data, layer.bias.data = w.T.contiguous(), b[0].clone()
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1])


def standard(d, p):
    return nn.Linear(d, p, dtype=torch.float64)


def ntk_layer(d, p):
    return NTKLinear(d, p, sigma_w=1.4, sigma_b=0.3, bias=True).double()


class Cnn(nn.Module):
    def __init__(self, parameters):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding="same", dtype=torch.float64)
        self.second = nn.Conv2d(6, 8, 3, padding="same", dtype=torch.float64)
        self.third = nn.Linear(8, 3, dtype=torch.float64)
        for layer, w, b in zip(self.children(), parameters[::2], parameters[1::2], strict=True):
            turned = w.permute(3, 2, 0, 1) if w.dim() == 4 else w.T
            layer.weight.data, layer.bias.data = turned.contiguous(), b.reshape(-1).clone()

    def forward(self, x):
        x = nn.functional.avg_pool2d(self.first(x.permute(0, 3, 1, 2)).relu(), 2)
        return self.third(self.second(x).relu().mean((2, 3)))


NETS = {
    "fc_relu_std_o1": lambda p: dense_net(p, standard, nn.ReLU),
    "fc_erf_std_o3": lambda p: dense_net(p, standard, Erf),
    "fc_relu_ntk_o2": lambda p: dense_net(p, ntk_layer, nn.ReLU),
    "cnn_relu_std_o3": Cnn,
}
ENGINES = [
    (name, engine)
    for name in NETS
    for engine in ("dense-chain", "linearize", "autograd", None)
    if engine != "dense-chain" or name.startswith("fc")
]


@pytest.mark.parametrize(("name", "engine"), ENGINES)
def test_golden_kernel(name, engine):
    arrays, parameters = load(name)
    model = NETS[name](parameters)
    kernel = cx.NTK(model, arrays["x"], engine=engine)
    if engine or name.startswith("fc"):
        assert kernel.engine == (engine or "dense-chain")
    exact = arrays["ntk"]
    scale = exact.abs().max()
    torch.testing.assert_close(model(arrays["x"]), arrays["out"], rtol=1e-12, atol=1e-13)
    assert (kernel.dense(layout="blocks") - exact).abs().max() <= 1e-10 * scale
    n, _, o, _ = exact.shape
    flat = exact.permute(0, 2, 1, 3).reshape(n * o, n * o)
    v = torch.randn(n * o, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (kernel @ v - flat @ v).abs().max() <= 1e-10 * scale * n * o
    assert (kernel.diagonal() - flat.diagonal()).abs().max() <= 1e-10 * scale
    assert abs(kernel.trace() - flat.trace()) <= 1e-10 * flat.trace()
    trace = exact.diagonal(dim1=2, dim2=3).sum(-1)
    assert (kernel.dense(outputs="trace") - trace).abs().max() <= 1e-10 * scale * o
