"""Largest stable rate of a small ViT on Fashion-MNIST: cross entropy, heavy ball."""

from dataclasses import dataclass

import torch
from torch import nn

from catapult_ext.experiments import reproduce as rp


class ViT(nn.Module):
    def __init__(self, side, dim=64):
        super().__init__()
        self.patches = nn.Conv2d(1, dim, side // 4, side // 4)
        self.places = nn.Parameter(0.02 * torch.randn(16, dim))
        layer = nn.TransformerEncoderLayer(dim, 4, 128, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(dim, 10)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).mT + self.places
        return self.head(self.blocks(tokens).mean(1))


@dataclass(frozen=True)
class Settings:
    data: str = "fashion-mnist"
    train: int = 512
    c: tuple[float, ...] = (1, 2, 3.8, 6, 8, 12, 16)
    seeds: int = 2
    steps: int = 60
    momentum: float = 0.9
    loss: str = "cross_entropy"


def run(s, context):
    data, edge = context.data(s.data, train=s.train, test=256), 2 * (1 + s.momentum)
    problem = rp.Problem(lambda seed: ViT(data.x_train.shape[-1]), data, s.loss)
    recipe = rp.Recipe(s.steps, momentum=s.momentum, probe_factor=4, probe_samples=128, tol=1e-2)
    records = rp.run_grid(context, "vit", problem, s.c, s.seeds, recipe)
    rows, found = rp.by_rate(records), rp.brackets(records)
    holds = all(b.stable >= edge for b in found) if max(s.c) >= edge else None
    claim = rp.Claim("stable", f"up to {edge:g}", rp.listed(found), holds, "no such rate")
    picture = rp.panel_lambda(rows, "eta_lambda_end", "Curvature at the end", edge)
    return rp.Outcome([claim], {"rates": rows}, {"curvature": picture})


experiment = rp.Experiment("vit-catapult", "a small ViT", "this file", Settings(), run)
