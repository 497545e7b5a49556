#!/usr/bin/env bash
# curvlinops-for-pytorch 3.0.1, torch 2.13.0 on a CPU: with ignore_index= or class weights the GGN of a
# data set depends on how it is cut into batches.
#
# CrossEntropyLoss(reduction="mean") divides by the number of labels that count, or by the sum of their
# weights.  GGNLinearOperator weights the mean of a batch by its number of rows.  The two agree without
# ignored labels and without class weights.  With padded sequences they do not: the operator belongs to
# no loss over the whole data, and its check of determinism passes.
# Seen: relative difference from the matrix of the whole, in float64: 1e-16 in one batch; in two
# batches of 2 and 4 rows 1e-16 for the plain loss, 0.07 with ignore_index, 0.16 with class weights.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'torch==2.13.0' numpy 'curvlinops-for-pytorch==3.0.1'
"$folder/venv/bin/python" - <<'PY'
import torch
from curvlinops import GGNLinearOperator
from torch import nn
from torch.func import functional_call, hessian, jacrev

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
x, y = torch.randn(6, 3), torch.tensor([1, 0, 0, 2, 0, 1])
net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
held = {name: p.detach() for name, p in net.named_parameters()}


def truth(loss):
    jacobian = jacrev(lambda p: functional_call(net, p, (x,)))(held)
    J = torch.cat([part.reshape(18, -1) for part in jacobian.values()], 1)
    H = hessian(lambda f: loss(f.reshape(6, 3), y))(net(x).detach().reshape(-1))
    return J.T @ H @ J


def error(loss, batches):
    operator = GGNLinearOperator(net, loss, list(net.parameters()), batches)
    found, wanted = operator @ torch.eye(operator.shape[0]), truth(loss)
    return float((found - wanted).norm() / wanted.norm())


losses = {
    "plain": nn.CrossEntropyLoss(),
    "ignore_index": nn.CrossEntropyLoss(ignore_index=1),
    "class weights": nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0])),
}
for name, loss in losses.items():
    whole, cut = error(loss, [(x, y)]), error(loss, [(x[:2], y[:2]), (x[2:], y[2:])])
    print(f"{name}: one batch {whole:.1e}, two batches {cut:.1e}")
    assert whole < 1e-12
    assert (cut < 1e-12) == (name == "plain")
PY
