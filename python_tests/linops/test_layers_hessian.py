"""Hessian products from frozen activations against torch.func, for every activation and loss."""

import pytest
import torch
from linops import zoo
from torch import nn

import catapult_ext as cx
from catapult_ext.models import Abs, Erf
from catapult_ext.testing.tolerances import assert_close as close

ACTIVATIONS = [nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish]
ACTIVATIONS += [nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink]
ACTIVATIONS += [nn.Hardtanh, nn.Hardswish, nn.Softshrink, nn.Identity, Abs, Erf]
LABELS = torch.tensor([0, 2, 1, 1, 2, 0])
WEIGHTS = torch.tensor([0.5, 2.0, 1.0]).double()
LOSSES = {
    "half_mse": ("half_mse", None),
    "mse": (nn.MSELoss(), None),
    "ce": (nn.CrossEntropyLoss(WEIGHTS, ignore_index=0, label_smoothing=0.1), LABELS),
    "bce": (nn.BCEWithLogitsLoss(), torch.linspace(0, 1, 18).double().view(6, 3)),
    "huber": (nn.HuberLoss(delta=0.3), None),
    "poisson": (nn.PoissonNLLLoss(), None),
    "quartic": (lambda f, y: ((f - y) ** 4).mean() + f[0].sum() * f[1].sum(), None),
    "linear": (lambda f, y: (f * y).sum(), None),
}


def random(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def hessian(model, x, value):
    """Second derivatives of value(outputs) by torch.func, and the gradient."""
    params = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def of_flat(flat):
        parts = flat.split([p.numel() for p in params.values()])
        named = {n: a.view(p.shape) for (n, p), a in zip(params.items(), parts, strict=True)}
        return value(torch.func.functional_call(model, named, (x,)))

    flat = torch.cat([p.reshape(-1) for p in params.values()])
    slope = torch.func.grad(of_flat)
    return torch.func.jacrev(slope)(flat), slope(flat)


def compare(model, x, loss, y):
    a = cx.Hessian(model, loss, (x, y), engine="dense-chain")
    assert a.engine == "dense-chain"
    value = loss if callable(loss) else cx.losses.resolve(loss)
    exact, slope = hessian(model, x, lambda f: value(f, y))
    v = random(len(exact), 3)
    close(a @ v, exact @ v)
    close(a @ v[:, 2], exact @ v[:, 2])
    close(a.dense(), exact)
    close(a.gradient, slope)
    return a


@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda a: a.__name__)
def test_every_activation(act):
    torch.manual_seed(0)
    model = zoo.chain(act, act).double()
    compare(model, random(6, 5), "half_mse", random(6, 3, seed=2))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(name):
    loss, y = LOSSES[name]
    torch.manual_seed(0)
    model = zoo.chain(nn.Tanh, nn.ReLU).double()
    compare(model, random(6, 5), loss, random(6, 3, seed=2).abs() if y is None else y)


@pytest.mark.parametrize("name", [n for n, z in zoo.ZOO.items() if z[2] == "dense-chain"])
def test_every_chain(name):
    """Scaled weights, constant layers, unused parameters, an activation at the end."""
    model, x = zoo.build(name)
    y = random(*model(x).shape, seed=2)
    assert cx.Hessian(model, "half_mse", (x, y)).engine == "dense-chain"
    if y.dim() == 1:
        compare(model, x, lambda f, y: (f - y).square().sum(), y)
    else:
        compare(model, x, "half_mse", y)


def test_what_is_taken():
    torch.manual_seed(0)
    chain, x = zoo.chain(nn.ReLU).double(), random(6, 5)
    data = (x, random(6, 3))
    assert cx.Hessian(chain, "half_mse", data, engine="autograd").engine == "autograd"
    assert cx.Hessian(chain, "half_mse", data, hvp="reverse").engine == "autograd"
    assert cx.Hessian(chain, "half_mse", data, samples_at_once=2).engine == "autograd"
    assert cx.Hessian(chain, "half_mse", data).coarse().engine == "autograd"
    with pytest.raises(ValueError, match="hvp must be None with engine='dense-chain'"):
        cx.Hessian(chain, "half_mse", data, engine="dense-chain", hvp="reverse")
    with pytest.raises(ValueError, match="engine must be None where samples go in chunks"):
        cx.Hessian(chain, "half_mse", data, engine="dense-chain", samples_at_once=2)
    tied, x = zoo.build("tied")
    with pytest.raises(ValueError, match="engine='dense-chain' needs a chain"):
        cx.Hessian(tied, "half_mse", (x, torch.zeros(6, 2).double()), engine="dense-chain")
