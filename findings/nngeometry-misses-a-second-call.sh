#!/usr/bin/env bash
# nngeometry 0.4, torch 2.13.0 on a CPU: the "dense" Fisher matrix of a net that calls one layer twice is
# wrong, and parameters that no layer holds are left out of it, both without a word.
#
# A layer's input and gradient are read by hooks, one pair a layer: of two calls the cross terms are
# lost.  Rows exist for the parameters of nn.Linear, convolutions and norms alone: not for the class
# token or the positions of a vision transformer, so that the matrix is smaller than the net.
# Seen: relative error 0.13 in the Frobenius norm with two calls, 5e-7 with one; 16 rows for the
# 31 parameters of a net whose last weight and bias are parameters of the net itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'torch==2.13.0' numpy 'nngeometry==0.4'
"$folder/venv/bin/python" - <<'PY'
import torch
from nngeometry.metrics import FIM
from nngeometry.object import PMatDense
from torch import nn
from torch.func import functional_call, hessian, jacrev
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """One hidden layer, called ``calls`` times."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls
        self.first, self.middle, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x).tanh()
        for _ in range(self.calls):
            x = self.middle(x).tanh()
        return self.last(x)


class Bare(nn.Module):
    """The last layer's weight and bias belong to the net itself."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3) / 2), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.first(x).tanh() @ self.weight + self.bias


torch.manual_seed(0)
x, y = torch.randn(8, 3), torch.randint(3, (8,))
data = DataLoader(TensorDataset(x, y), batch_size=8)


def truth(net):
    held = {name: p.detach() for name, p in net.named_parameters()}
    jacobian = jacrev(lambda p: functional_call(net, p, (x,)))(held)
    J = torch.cat([part.reshape(24, -1) for part in jacobian.values()], 1)
    loss = nn.CrossEntropyLoss()
    H = hessian(lambda f: loss(f.reshape(8, 3), y))(net(x).detach().reshape(-1))
    return J.T @ H @ J


def dense(net):
    return FIM(model=net, loader=data, representation=PMatDense, variant="classif_logits").to_torch()


for calls in (1, 2):
    torch.manual_seed(1)
    net = Net(calls)
    wanted = truth(net)
    off = float((dense(net) - wanted).norm() / wanted.norm())
    print(f"{calls} call(s) of the layer: relative error {off:.1e}")
    assert (off < 1e-5) == (calls == 1)

bare = Bare()
rows, parameters = len(dense(bare)), sum(p.numel() for p in bare.parameters())
print(f"{rows} rows of {parameters} parameters")
assert (rows, parameters) == (16, 31)
PY
