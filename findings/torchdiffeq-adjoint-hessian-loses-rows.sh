#!/usr/bin/env bash
# torchdiffeq 0.2.5 with torch 2.13.0, float64: where a layer follows an odeint_adjoint, second
# derivatives come out without an error, and all rows of the ODE's parameters are missing.
#
# The gradient by the adjoint has no graph of its own.  Of a neural ODE alone double backward raises
# an error; with a head behind it the head's rows are right, mixed entries included, and each row of
# the ODE's own parameters is 0: a "Hessian" that is not symmetric, whose products and eigenvalues
# are wrong.  odeint, which keeps the graph, gives the right one.
# Seen with tanh dynamics of 3 states and a linear head, 20 parameters, Runge-Kutta of step 0.1:
# rows of the ODE 0 (true norm 4.0), relative asymmetry 0.80; with odeint off by 1e-10.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'torch==2.13.0' numpy scipy
"$folder/venv/bin/pip" install -q --no-deps 'torchdiffeq==0.2.5'
"$folder/venv/bin/python" - <<'PY'
import torch
from torch import nn
from torchdiffeq import odeint, odeint_adjoint

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
x, y = torch.randn(5, 3), torch.randn(5, 2)


class Dynamics(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, t, state):
        return torch.tanh(self.layer(state))


dynamics, head = Dynamics(), nn.Linear(3, 2)
parameters = [*dynamics.parameters(), *head.parameters()]
inner = sum(p.numel() for p in dynamics.parameters())


def gradient(solver, graph=False):
    times = torch.tensor([0.0, 1.0])
    state = solver(dynamics, x, times, method="rk4", options={"step_size": 0.1})[-1]
    loss = (head(state) - y).square().mean()
    parts = torch.autograd.grad(loss, parameters, create_graph=graph)
    return torch.cat([part.flatten() for part in parts])


def double_backward(solver):
    rows = []
    for entry in gradient(solver, graph=True):
        parts = torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


def differences(step=1e-6):
    rows = []
    for parameter in parameters:
        entries = parameter.data.view(-1)
        for i in range(len(entries)):
            entries[i] += step
            above = gradient(odeint)
            entries[i] -= 2 * step
            below = gradient(odeint)
            entries[i] += step
            rows.append((above - below) / (2 * step))
    return torch.stack(rows)


truth = differences()
for solver in (odeint, odeint_adjoint):
    H = double_backward(solver)
    off, skew = float((H - truth).norm() / truth.norm()), float((H - H.T).norm() / H.norm())
    lost = float(H[:inner].norm()) == 0
    print(f"{solver.__name__}: off by {off:.1e}, asymmetry {skew:.1e}, the ODE's rows 0: {lost}")
    assert lost == (skew > 0.1) == (solver is odeint_adjoint)
    assert solver is odeint_adjoint or off < 1e-7
rows = float(truth[:inner].norm())
print(f"true norm of the ODE's rows: {rows:.2g}")
assert rows > 0.1
# the head's rows by the adjoint are right up to the adjoint's own discretisation
assert torch.allclose(double_backward(odeint_adjoint)[inner:], truth[inner:], rtol=1e-3, atol=1e-5)
PY
