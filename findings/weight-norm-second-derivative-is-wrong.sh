#!/usr/bin/env bash
# torch 2.13.0 on a CPU, float64: second derivatives through torch.nn.utils.parametrizations.weight_norm
# are wrong, without a warning; first derivatives are right.
#
# Double backward through the fused operation of such a layer gives a "Hessian" that is not even
# symmetric: eigenvalues, gradient penalties and meta-gradients of the net are affected.  The same
# weight, written as g v / |v| with plain operations, gives the right one.
# Seen: relative distance from central differences of the gradient 0.86 with weight_norm, 9e-11 by
# plain operations; relative asymmetry 0.62 and 2e-16.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'torch==2.13.0' numpy
"$folder/venv/bin/python" - <<'PY'
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
x, y = torch.randn(5, 3), torch.randn(5, 3)
layer = weight_norm(nn.Linear(3, 3))
bias, g, v = layer.parameters()


def fused():
    return layer(x)


def plain():
    return x @ (g * v / v.norm(dim=1, keepdim=True)).T + bias


def gradient(outputs, graph=False):
    loss = (outputs().tanh() - y).square().mean()
    parts = torch.autograd.grad(loss, (bias, g, v), create_graph=graph)
    return torch.cat([part.reshape(-1) for part in parts])


def double_backward(outputs):
    rows = []
    first = gradient(outputs, graph=True)
    for entry in first:
        parts = torch.autograd.grad(entry, (bias, g, v), retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows)


def differences(outputs, step=1e-6):
    columns = []
    for parameter in (bias, g, v):
        entries = parameter.data.view(-1)
        for i in range(len(entries)):
            entries[i] += step
            above = gradient(outputs)
            entries[i] -= 2 * step
            below = gradient(outputs)
            entries[i] += step
            columns.append((above - below) / (2 * step))
    return torch.stack(columns, 1)


assert torch.allclose(fused(), plain(), rtol=1e-12, atol=1e-14)
assert torch.allclose(gradient(fused), gradient(plain), rtol=1e-10, atol=1e-12)
for name, outputs in (("weight_norm", fused), ("plain operations", plain)):
    H, truth = double_backward(outputs), differences(outputs)
    off, skew = float((H - truth).norm() / truth.norm()), float((H - H.T).norm() / H.norm())
    print(f"{name}: off by {off:.1e}, asymmetry {skew:.1e}")
    assert (off < 1e-8) == (skew < 1e-12) == (name == "plain operations")
PY
