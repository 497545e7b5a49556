"""Graph networks, routed experts and inputs that are no batch: what a cut of samples breaks."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import catapult_ext as cx

spec = importlib.util.spec_from_file_location(
    "dense_kernels", Path(__file__).with_name("test_dense_kernels.py")
)
kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)

EDGES = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 6, 7], [1, 0, 2, 1, 3, 2, 4, 3, 6, 5, 7, 6]])


class Gcn(nn.Module):
    """Scatter by index_add, as torch_geometric's."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

    def conv(self, h, edges):
        return torch.zeros_like(h).index_add_(0, edges[1], h[edges[0]]) + h

    def forward(self, x, edges):
        return self.conv(self.b(torch.relu(self.conv(self.a(x), edges))), edges)


class Gat(Gcn):
    """Attention over edges, normalised per node."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(12, 1)

    def conv(self, h, edges):
        if h.shape[1] != 6:
            return super().conv(h, edges)
        source, target = h[edges[0]], h[edges[1]]
        e = torch.exp(nn.functional.leaky_relu(self.score(torch.cat([source, target], 1)), 0.2))
        total = torch.zeros(len(h), 1).to(h).index_add(0, edges[1], e)
        return h + torch.zeros_like(h).index_add(0, edges[1], e * source) / (total + 1)[:, :1]


class DenseGcn(Gcn):
    """A dense adjacency (N, N): its rows go with the nodes, its columns do not."""

    def conv(self, h, adjacency):
        return adjacency @ h


class SparseGcn(Gcn):
    """A sparse adjacency in a buffer."""

    def __init__(self, layout=torch.sparse_coo):
        super().__init__()
        adjacency = torch.rand(8, 8) * (torch.rand(8, 8) > 0.5)
        self.register_buffer("adjacency", adjacency.to_sparse(layout=layout))

    def forward(self, x):
        return super().forward(x, self.adjacency)

    def conv(self, h, adjacency):
        return torch.sparse.mm(adjacency, h)


class Norm(Gcn):
    """Graph norm: statistics of all nodes."""

    def forward(self, x, edges):
        h = self.conv(self.a(x), edges)
        h = (h - h.mean(0)) / (h.std(0) + 0.1)
        return self.b(torch.relu(h))


@pytest.mark.parametrize("kind", [Gcn, Gat, Norm])
def test_edges(kind):
    torch.manual_seed(0)
    kernels.assert_right(kind(), (torch.randn(8, 5), EDGES), independent=False)


@pytest.mark.parametrize("nodes", [2, 6])
def test_a_dense_adjacency(nodes):
    torch.manual_seed(0)
    x = torch.randn(nodes, 5), torch.rand(nodes, nodes)
    kernels.assert_right(DenseGcn(), x, independent=False)
    model, y = DenseGcn().double(), torch.zeros(nodes, dtype=torch.long)
    x = tuple(a.double() for a in x)
    loss = nn.CrossEntropyLoss()
    v = torch.ones(57, dtype=torch.float64)
    budgeted = cx.Hessian(model, loss, (x, y), memory_budget="1 GiB")
    assert torch.allclose(budgeted @ v, cx.Hessian(model, loss, (x, y)) @ v)
    assert budgeted.plan.samples == nodes
    with pytest.raises(ValueError, match="do not depend on each other"):
        cx.NTK(model, x, samples_at_once=1)


def test_two_nodes_and_two_rows_of_edges():
    """The pairs of edges are as many as the nodes: a cut of both makes no sense."""
    torch.manual_seed(0)
    kernels.assert_right(
        Gcn(), (torch.randn(2, 5), torch.tensor([[0, 1], [1, 0]])), independent=False
    )


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_adjacency_in_a_buffer(layout):
    torch.manual_seed(0)
    model, x, y = SparseGcn(layout), torch.randn(8, 5), torch.zeros(8, dtype=torch.long)
    kernels.assert_right(model, x, independent=False)
    model, x = model.double(), x.double()
    loss, v = nn.CrossEntropyLoss(), torch.ones(57, dtype=torch.float64)
    got = cx.Hessian(model, loss, (x, y)) @ v
    dense = DenseGcn().double()
    dense.load_state_dict({k: p for k, p in model.named_parameters()})
    exact = cx.Hessian(dense, loss, ((x, model.adjacency.to_dense()), y)) @ v
    assert torch.allclose(got, exact)


class Experts(nn.Module):
    """Routed experts, ``top`` of which a token goes to; the last one may get none."""

    def __init__(self, top=1, idle=False):
        super().__init__()
        self.router, self.last = nn.Linear(4, 3), nn.Linear(4, 2)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.top = top
        if idle:
            nn.init.constant_(self.router.bias[2:], -1e3)

    def forward(self, x):
        weights, chosen = self.router(x).softmax(-1).topk(self.top)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            at, slot = (chosen == e).nonzero(as_tuple=True)
            out.index_add_(0, at, expert(x[at]) * weights[at, slot, None])
        return self.last(torch.tanh(out))


class SortedExperts(Experts):
    """Tokens sorted by their expert, as fused kernels take them."""

    def forward(self, x):
        weights, chosen = self.router(x).softmax(-1).max(-1)
        order = torch.argsort(chosen, stable=True)
        counts = torch.bincount(chosen, minlength=3).tolist()
        parts = [e(p) for e, p in zip(self.experts, x[order].split(counts), strict=True)]
        out = torch.cat(parts)[torch.argsort(order)] * weights[:, None]
        return self.last(torch.tanh(out))


@pytest.mark.parametrize("n", [1, 4, 7])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Experts(1),
        lambda: Experts(2),
        lambda: Experts(1, idle=True),
        lambda: SortedExperts(1),
    ],
    ids=["top-1", "top-2", "idle", "sorted"],
)
def test_experts(make, n):
    torch.manual_seed(0)
    kernels.assert_right(make(), torch.randn(n, 4))


class Beside(nn.Module):
    """A constant input beside the batch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x, table):
        return self.b(torch.tanh(self.a(x)) @ table)


@pytest.mark.parametrize("n", [3, 4])
def test_a_constant_input_beside_the_batch(n):
    """With as many rows as the batch has samples as well."""
    torch.manual_seed(0)
    x = torch.randn(n, 3), torch.randn(4, 4)
    kernels.assert_right(Beside(), x, independent=n != 4)
