"""Graph networks of `torch_geometric`: node outputs of one small graph with an edge list."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from architectures.catalogue import Case, add, installed
from torch import Tensor, nn

# basic model: extra options
MODELS: dict[str, dict[str, Any]] = {
    "GCN": {}, "GraphSAGE": {}, "GIN": {}, "GAT": {}, "PNA": dict(
        aggregators=["sum", "mean"], scalers=["identity"], deg=torch.tensor([0, 0, 6])
    ), "EdgeCNN": {},
}  # fmt: skip
# convolution: options
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "ChebConv": dict(K=2), "TAGConv": dict(K=2), "SGConv": dict(K=2), "GraphConv": {},
    "GatedGraphConv": {}, "ARMAConv": {}, "GATv2Conv": {}, "TransformerConv": {}, "LEConv": {},
    "ResGatedGraphConv": {}, "ClusterGCNConv": {}, "SuperGATConv": {}, "FiLMConv": {},
}  # fmt: skip


def _graph() -> tuple[Tensor, Tensor]:
    """Six nodes with five features on a ring, in both directions."""
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    ahead = torch.arange(6)
    after = (ahead + 1) % 6
    return x, torch.stack([torch.cat([ahead, after]), torch.cat([after, ahead])])


def _basic(name: str) -> Case:
    from torch_geometric import nn as gnn

    torch.manual_seed(0)
    model = getattr(gnn, name)(5, 6, num_layers=2, out_channels=2, act="tanh", **MODELS[name])
    return Case(model.eval(), _graph(), lambda m, x: m(*x))


class _TwoLayers(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        from torch_geometric import nn as gnn

        kind, options = getattr(gnn, name), CONVOLUTIONS[name]
        if name == "GatedGraphConv":
            self.first: nn.Module = kind(6, num_layers=2)
            self.second: nn.Module = nn.Linear(6, 2)
        else:
            self.first, self.second = kind(5, 6, **options), kind(6, 2, **options)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x, edges))
        return (
            self.second(hidden)
            if isinstance(self.second, nn.Linear)
            else self.second(hidden, edges)
        )


def _convolution(name: str) -> Case:
    torch.manual_seed(0)
    return Case(_TwoLayers(name).eval(), _graph(), lambda m, x: m(*x))


if installed("torch_geometric"):
    for each in MODELS:
        add("torch_geometric", each, partial(_basic, each), default=each == "GCN")
    for each in CONVOLUTIONS:
        add("torch_geometric", each, partial(_convolution, each))
