"""Smooth nets in float64 and optimizers, for the tests of EdgeMeter."""

import importlib.util
from pathlib import Path

import torch
from torch import nn

spec = importlib.util.spec_from_file_location("filters", Path(__file__).with_name("filters.py"))
filters = importlib.util.module_from_spec(spec)
spec.loader.exec_module(filters)
optim = torch.optim


def mlp():
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)), torch.randn(9, 6)


def cnn():
    layers = [nn.Conv2d(1, 3, 3), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)]
    return nn.Sequential(*layers), torch.randn(9, 1, 6, 6)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(3, 4)
        self.block = nn.TransformerEncoderLayer(
            4, 2, 5, dropout=0.0, activation="gelu", batch_first=True
        )
        self.outside = nn.Linear(4, 3)

    def forward(self, x):
        return self.outside(self.block(self.inside(x)).mean(dim=1))


NETS = {"mlp": mlp, "cnn": cnn, "transformer": lambda: (Transformer(), torch.randn(5, 3, 3))}
LINEAR = {
    "SGD": lambda w: optim.SGD(w, lr=0.1),
    "heavy ball": lambda w: optim.SGD(w, lr=0.05, momentum=0.9, weight_decay=0.01),
    "Nesterov": lambda w: optim.SGD(w, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda w: optim.Adam(w, lr=0.01),
    "AMSGrad": lambda w: optim.Adam(w, lr=0.01, amsgrad=True),
    "AdamW": lambda w: optim.AdamW(w, lr=0.01, weight_decay=0.1),
    "NAdam": lambda w: optim.NAdam(w, lr=0.01),
    "RAdam": lambda w: optim.RAdam(w, lr=0.01, betas=(0.8, 0.9)),
    "Adamax": lambda w: optim.Adamax(w, lr=0.01),
    "RMSprop": lambda w: optim.RMSprop(w, lr=0.01),
    "RMSprop, centred": lambda w: optim.RMSprop(w, lr=0.003, centered=True, momentum=0.5),
    "Adagrad": lambda w: optim.Adagrad(w, lr=0.05, lr_decay=0.1),
    "Adadelta": lambda w: optim.Adadelta(w, lr=1.0),
    "ASGD": lambda w: optim.ASGD(w, lr=0.1, lambd=0.01),
    "QHM": lambda w: filters.Filtered(w, 0.1, *filters.qhm(0.9, 0.7)),
}
OTHERS = {
    "Rprop": lambda w: optim.Rprop(w, lr=0.001),
    "Adafactor": lambda w: optim.Adafactor(w, lr=0.01),
    "Muon": lambda w: optim.Muon([p for p in w if p.dim() == 2], lr=0.01),
}


class Problem:
    """A smooth net in float64 with its cross entropy, and brute force along a step."""

    def __init__(self, net, dtype=torch.float64):
        torch.manual_seed(0)
        self.model, x = NETS[net]()
        self.model.to(dtype)
        self.x, self.y = x.to(dtype), torch.arange(len(x)) % 3

    def loss(self):
        return nn.functional.cross_entropy(self.model(self.x), self.y)

    def step(self, optimizer):
        optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        optimizer.step()
        return loss

    def hessian(self, values, weights, along=None):
        """(P, P) of the loss in ``weights`` at the given values, or its product with ``along``."""
        names = {id(p): n for n, p in self.model.named_parameters()}
        flat = torch.cat([t.reshape(-1) for t in values])

        def loss(vector):
            parts = vector.split([w.numel() for w in weights])
            named = {names[id(w)]: v.view_as(w) for w, v in zip(weights, parts, strict=True)}
            out = torch.func.functional_call(self.model, named, (self.x,))
            return nn.functional.cross_entropy(out, self.y)

        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            if along is not None:
                return torch.autograd.functional.vhp(loss, flat, along)[1]
            return torch.autograd.functional.hessian(loss, flat)


def plain_zeta(problem, make, loops=4, change=None):
    """zeta of the last step by one evaluation, without a meter."""
    optimizer = make(problem.model.parameters())
    weights = list(problem.model.parameters())
    for _ in range(loops):
        before = [w.detach().clone() for w in weights]
        optimizer.zero_grad()
        loss = problem.loss()
        loss.backward()
        gradients = [w.grad.clone() for w in weights]
        if change is not None:
            change(weights)
        optimizer.step()
    descent = sum(
        float((g * (b - w.detach())).sum())
        for g, b, w in zip(gradients, before, weights, strict=True)
    )
    return 1 + (problem.loss().item() - loss.item()) / descent
