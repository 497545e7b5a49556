"""Sparse inputs, parameters chosen in any way, copies of operators, and what stays an error."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import catapult_ext as cx

CE = nn.CrossEntropyLoss()
PAGE = Path(__file__).resolve().parents[2] / "docs" / "operators.md"


class Graph(nn.Module):
    """Node classification with an adjacency beside the features."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x, adjacency):
        return adjacency @ self.b(torch.tanh(adjacency @ self.a(x)))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_sparse_inputs(layout):
    torch.manual_seed(0)
    x, y = torch.randn(6, 3).double(), torch.tensor([0, 1, 1, 0, 1, 0])
    adjacency = torch.rand(6, 6).double() * (torch.rand(6, 6) > 0.5)
    model, sparse = Graph().double(), adjacency.to_sparse(layout=layout)
    for make in (
        lambda a: cx.NTK(model, (x, a)).dense(),
        lambda a: cx.NTK(model, (x, a)) @ torch.eye(12).double(),
        lambda a: cx.Hessian(model, CE, ((x, a), y)).dense(),
        lambda a: cx.StreamedGGN(model, CE, [((x, a), y)]).dense(),
    ):
        assert torch.allclose(make(sparse), make(adjacency), rtol=1e-12, atol=1e-14)
    if layout != torch.sparse_coo:
        bad = sparse.clone()
        bad.values()[0] = float("nan")
        with pytest.raises(ValueError, match="NTK: inputs must be finite"):
            cx.NTK(model, (x, bad))

    class Loader:
        passes = 0

        def __iter__(self):
            self.passes += 1
            yield (x, self.passes * sparse), y

    with pytest.raises(RuntimeError, match="the data changed between two passes"):
        cx.StreamedGGN(model, CE, Loader()) @ torch.ones(32).double()


Y = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("make", [cx.NTK, lambda m, x: cx.Hessian(m, "half_mse", (x, Y))])
def test_chains_of_sparse_inputs(make):
    """One model and several: dense layers multiply them, native kernels do not."""
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double() for _ in "ab"]
    x = torch.randn(6, 3).double()
    for model in (models[0], models):
        sparse, dense = make(model, x.to_sparse()), make(model, x)
        assert torch.allclose(sparse.dense(), dense.dense(), rtol=1e-12, atol=1e-14)
        found, wanted = cx.eigsh(sparse).eigenvalues, cx.eigsh(dense).eigenvalues
        assert torch.allclose(found, wanted, rtol=1e-3)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def data():
    torch.manual_seed(1)
    return torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 1, 0])


CHOICES = {
    "module": lambda m: "2",
    "modules": lambda m: ["2"],
    "a parameter": lambda m: m[2].weight,
    "parameters": lambda m: list(m[2].parameters()),
    "a generator": lambda m: m[2].parameters(),
    "both": lambda m: [m[2].weight, "2.bias"],
}


@pytest.mark.parametrize("name", CHOICES)
def test_parameters_chosen_in_any_way(name):
    model, (x, y) = net(), data()
    names = ("2.weight",) if name == "a parameter" else ("2.weight", "2.bias")
    found = cx.GGN(model, CE, (x, y), params=CHOICES[name](model))
    assert found.parameter_names == names
    right = cx.GGN(model, CE, (x, y), params=list(names))
    assert torch.equal(found.dense(), right.dense())


def test_parameters_of_another_model():
    x, _ = data()
    with pytest.raises(ValueError, match=r"parameters of the model itself, got tensors of shapes"):
        cx.NTK(net(), x, params=net().parameters())
    with pytest.raises(ValueError, match=r"names or patterns .*, got int"):
        cx.NTK(net(), x, params=[3])
    with pytest.raises(TypeError, match=r"params must be a name or a list of names, got Linear"):
        cx.NTK(net(), x, params=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="got '1'"):
        cx.NTK(net(), x, params="1")


def conv():
    torch.manual_seed(0)
    layers = (nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(4, 3)).double()


@pytest.mark.parametrize("make", [net, conv])
def test_copies_of_operators_share_what_never_changes(make):
    model, (x, y) = make(), data()
    for operator in (cx.NTK(model, x), cx.GGN(model, CE, (x, y)), cx.Hessian(model, CE, (x, y))):
        v = torch.randn(operator.shape[1], dtype=torch.float64)
        before = operator @ v
        held = copy.deepcopy({"operator": operator, "sum": 2 * operator})
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1)  # no operator looks at the model again
        assert torch.equal(held["operator"] @ v, before)
        assert torch.allclose(held["sum"] @ v, 2 * before)


class Jagged(nn.Module):
    """Two samples of unlike length inside the model."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        both = torch.nested.as_nested_tensor([x[0], x[1][:2]], layout=torch.jagged)
        return self.b(torch.tanh(self.a(both)).to_padded_tensor(0.0).mean(1))


def test_jagged_tensors_inside_a_model():
    torch.manual_seed(0)
    model, x = Jagged().double(), torch.randn(2, 3, 4).double()
    params = list(model.parameters())
    rows = [torch.autograd.grad(f, params, retain_graph=True) for f in model(x).flatten()]
    jacobian = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    kernel = cx.NTK(model, x)
    assert torch.allclose(kernel.dense(), jacobian @ jacobian.T)
    assert torch.allclose(kernel @ torch.eye(6).double(), jacobian @ jacobian.T)


class Residual(nn.Module):
    """Derivatives by the inputs, as in physics-informed networks."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0]


class Seeded(nn.Linear):
    def forward(self, x):
        generator = torch.Generator().manual_seed(3)
        return super().forward(x + torch.randn(x.shape, generator=generator, dtype=x.dtype))


def _forward_mode():
    model, x = Residual().double(), torch.rand(4, 2).double()
    cx.Hessian(model, "half_mse", (x, 0 * x), hvp="forward") @ torch.ones(21).double()


LEFT = {
    "a model with its own random generator": (
        lambda: cx.NTK(Seeded(4, 3).double(), data()[0]),
        ValueError,
        r"catapult_ext.NTK: the forward pass draws random .*: pass dropout='fixed'",
    ),
    "offloaded parameters": (
        lambda: cx.NTK(net().to("meta"), data()[0]),
        TypeError,
        r"catapult_ext.NTK: parameters must hold .*remove_hook_from_module.*, got 0.weight on",
    ),
    "nested tensors as inputs": (
        lambda: cx.NTK(net(), torch.nested.nested_tensor([data()[0], data()[0][:2]])),
        TypeError,
        r"catapult_ext.NTK: inputs must be a dense tensor \(pad it,.*, got a nested tensor",
    ),
    'hvp="forward"': (
        _forward_mode,
        RuntimeError,
        r"catapult_ext.Hessian: hvp='forward' needs a model .*\(leave hvp out\)",
    ),
    "pickle": (
        lambda: pickle.dumps(cx.NTK(net(), data()[0])),
        TypeError,
        r"catapult_ext.NTK: cannot be pickled.*send model and data, and build it there",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_stays_an_error_says_the_way_out(name):
    call, error, text = LEFT[name]
    with pytest.raises(error, match=text):
        call()


def test_the_page_lists_what_stays_an_error():
    table = PAGE.read_text().split("## What stays an error")[1]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(LEFT) == 5
    assert [row.split("|")[1].strip().strip("`") for row in rows] == list(LEFT)
