"""Nets and runs for the tests of learning_rate_window."""

import copy

import torch
from torch import nn

import catapult_ext as cx

DATA = cx.data.digits(train=32)
X, Y = (t.double() for t in DATA.train)


def mlp(depth, activation, seed=5, width=96):
    return cx.models.fully_connected(
        64,
        10,
        width=width,
        depth=depth,
        activation_name=activation,
        seed=seed,
        dtype=torch.float64,
    )


NETS = {
    "relu3": lambda: mlp(3, "relu"),
    "relu1": lambda: mlp(1, "relu"),
    "tanh2": lambda: mlp(2, nn.Tanh),
    "gelu2": lambda: mlp(2, nn.GELU),
    "linear1": lambda: mlp(1, nn.Identity),
    "standard": lambda: cx.models.fully_connected(
        64, 10, width=96, depth=2, parameterisation="standard", seed=5, dtype=torch.float64
    ),
}


def diverges(model, optimizer_of, eta, steps):
    model = copy.deepcopy(model)
    optimizer = optimizer_of(model.parameters(), eta)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(X) - Y).square().sum() / (2 * len(X))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return not losses[-1] < losses[0]
