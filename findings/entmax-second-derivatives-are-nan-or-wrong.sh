#!/usr/bin/env bash
# entmax 1.3 with torch 2.13.0, float64: second derivatives through its losses are wrong without a
# warning, and those through its 1.5-entmax maps are NaN; first derivatives are right.
#
# The losses keep the probabilities of their forward pass, and double backward takes these for
# constants: of the loss's curvature nothing is left.  The Hessian of a network under
# sparsemax_loss, entmax15_loss or entmax_bisect_loss keeps the network's part alone.  entmax15 and
# entmax_bisect give NaN where the map gives exact zeros, which is what it is used for; sparsemax is
# right.
# Seen, double backward against central differences of the gradient, logits (4, 6): Hessian of the
# three losses exactly 0 (true norms 2.4, 1.5, 1.5); of squares of entmax15 and entmax_bisect NaN in
# all 576 entries; of squares of sparsemax off by 9e-12.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'torch==2.13.0' numpy
"$folder/venv/bin/pip" install -q --no-deps 'entmax==1.3'
"$folder/venv/bin/python" - <<'PY'
import entmax
import torch

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
logits, weights = 0.7 * torch.randn(4, 6), torch.randn(4, 6)
labels = torch.tensor([0, 2, 1, 3])


def gradient(loss, x, graph=False):
    x = x.requires_grad_()
    return x, torch.autograd.grad(loss(x), x, create_graph=graph)[0].flatten()


def double_backward(loss):
    x, slope = gradient(loss, logits.clone(), graph=True)
    if not slope.requires_grad:
        return torch.zeros(x.numel(), x.numel())
    rows = [torch.autograd.grad(e, x, retain_graph=True, materialize_grads=True)[0] for e in slope]
    return torch.stack([row.flatten() for row in rows])


def differences(loss, step=1e-5):
    rows = []
    for i in range(logits.numel()):
        moved = torch.zeros(logits.numel())
        moved[i] = step
        moved = moved.view_as(logits)
        above, below = gradient(loss, logits + moved)[1], gradient(loss, logits - moved)[1]
        rows.append((above - below) / (2 * step))
    return torch.stack(rows)


for name in ("sparsemax_loss", "entmax15_loss", "entmax_bisect_loss"):
    call = getattr(entmax, name)
    found, truth = (H(lambda x: call(x, labels).sum()) for H in (double_backward, differences))
    print(f"{name}: |Hessian| {float(found.norm()):.2g}, true {float(truth.norm()):.2g}")
    assert float(found.norm()) == 0 and float(truth.norm()) > 0.1
for name in ("entmax15", "entmax_bisect", "sparsemax"):
    call = getattr(entmax, name)
    square = lambda x: (weights * call(x, dim=-1).square()).sum()
    found, truth = double_backward(square), differences(square)
    lost, off = int(found.isnan().sum()), float((found - truth).norm() / truth.norm())
    print(f"{name}: {lost} of {found.numel()} entries NaN, off by {off:.0e}")
    assert bool(truth.isfinite().all()) and lost == 0 if name == "sparsemax" else lost > 0
    assert name != "sparsemax" or off < 1e-8
PY
