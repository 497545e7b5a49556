"""Every layer's block of GGN, NTK and Hessian against the dense block of that layer alone."""

import io

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.tracing import block_rows
from catapult_ext.probes import blocks

F64 = torch.float64


class Tied(nn.Module):
    """A weight used twice, a normalised one, and one that no output depends on."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))
        self.idle = nn.Linear(2, 2)
        self.shift = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.second(torch.tanh(self.first(torch.tanh(self.first(x))))) + self.shift


def conv():
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3)]
    return nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Linear(96, 5)).double().eval()


def images():
    return torch.randn(6, 1, 6, 6, dtype=F64), torch.tensor([0, 1, 4, 2, 3, 1])


def lines(outputs):
    return torch.randn(7, 6, dtype=F64), torch.randn(7, outputs, dtype=F64)


PROBLEMS = {
    "conv": lambda: (conv(), "cross_entropy", images()),
    "tied": lambda: (Tied().double(), "half_mse", lines(3)),
    "chain": lambda: (
        cx.models.fully_connected(6, 3, width=9, depth=2).double(),
        "half_mse",
        lines(3),
    ),
}
KINDS = {"ggn": cx.GGN, "hessian": cx.Hessian}


@pytest.fixture(params=PROBLEMS)
def problem(request):
    torch.manual_seed(0)
    return PROBLEMS[request.param]()


def dense_block(model, loss, data, quantity, names):
    if all(name.startswith("idle") for name in names):  # which operators alone refuse
        return torch.zeros(len(data[0]), len(data[0]), dtype=F64)
    if quantity == "ntk":
        return cx.NTK(model, data[0], params=names).dense()
    return KINDS[quantity](model, loss, data, params=names).dense()


def agrees(row, exact):
    """Values within their errors, exact traces, norms and others within five standard errors."""
    k = len(row["values"])
    top = torch.linalg.eigvalsh(exact).flip(0)[:k]
    size = exact.norm().item()
    gap = (torch.tensor(row["values"], dtype=F64) - top).abs()
    assert (gap <= torch.tensor(row["errors"], dtype=F64) + 1e-12 * size).all(), row
    trace = exact.diagonal().sum().item()
    assert abs(row["trace"] - trace) <= 1e-9 * size + 5 * row["trace_error"], (row, trace)
    assert abs(row["norm"] - size) <= 1e-9 * size + 5 * row["norm_error"], (row, size)


def names_of(model, block):
    every = [name for name, _ in model.named_parameters()]
    return [n for n in every if n == block or n.startswith(f"{block}.")]


@pytest.mark.parametrize("quantity", ["ggn", "ntk", "hessian"])
@pytest.mark.parametrize("by", ["module", "parameter", 1])
def test_blocks_are_those_of_each_layer_alone(problem, quantity, by):
    model, loss, data = problem
    found = cx.by_layer(model, loss, data, 2, quantity=quantity, blocks=by, tol=1e-8)
    taken = []
    for row in found.rows:
        names = names_of(model, row["block"])
        taken += names
        assert row["parameters"] == sum(
            p.numel() for n, p in model.named_parameters() if n in names
        )
        agrees(row, dense_block(model, loss, data, quantity, names))
    assert taken == [name for name, _ in model.named_parameters()]


def test_the_traces_add_up_to_that_of_the_whole(problem):
    model, loss, data = problem
    whole = cx.GGN(model, loss, data)
    assert cx.by_layer(whole).trace == pytest.approx(whole.trace().item(), rel=1e-10)


def test_kernels_where_rows_have_no_room(problem, monkeypatch):
    """Blocks whose rows exceed the room become kernels, from rows or factors: the same numbers."""
    model, loss, data = problem
    plain = cx.by_layer(model, loss, data, 2, tol=1e-8)
    made = []
    real = block_rows.mirror_
    monkeypatch.setattr(block_rows, "mirror_", lambda k: made.append(k) or real(k))
    ggn = cx.GGN(model, loss, data)
    rows = ggn.linearization.rows
    ggn.linearization.allowance = type(ggn.linearization.allowance)(
        workspace=max(1 << 20, 5 * 8 * rows**2), budget=1
    )
    monkeypatch.setattr(block_rows, "_share", lambda workspace: 8 * rows**2 + 8)
    found = cx.by_layer(ggn, k=2, tol=1e-8)
    assert made
    for row, other in zip(found.rows, plain.rows, strict=True):
        assert row["values"] == pytest.approx(other["values"], rel=1e-7, abs=1e-12)
        assert row["trace"] == pytest.approx(other["trace"], rel=1e-9, abs=1e-12)


def test_one_pass_serves_all_blocks(monkeypatch):
    """No product with the whole model, and one backward pass an output (two prove the rows)."""
    torch.manual_seed(0)
    ggn = cx.GGN(conv(), "cross_entropy", images())
    passes = []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(a) or real(*a, **k))
    monkeypatch.setattr(type(ggn), "_matmat", None)
    assert len(cx.by_layer(ggn, blocks="parameter").rows) == 8
    assert len(passes) <= 5 + 3


@pytest.mark.parametrize("quantity", ["ggn", "ntk"])
def test_samples_that_depend_on_each_other(quantity):
    """Batch norm on batch statistics: no rows of samples, but products with the whole."""
    torch.manual_seed(0)
    model, (x, y) = conv().train(), images()
    stats = {"batch_stats": "coupled"}
    found = cx.by_layer(model, "cross_entropy", (x, y), quantity=quantity, tol=1e-6, **stats)
    for row in found.rows:
        names = names_of(model, row["block"])
        if quantity == "ntk":
            exact = cx.NTK(model, x, params=names, **stats).dense()
        else:
            exact = cx.GGN(model, "cross_entropy", (x, y), params=names, **stats).dense()
        agrees(row, exact)


def test_rows_sample_by_sample_where_uses_are_unknown(monkeypatch):
    torch.manual_seed(0)
    model, loss, data = PROBLEMS["conv"]()
    plain = cx.by_layer(model, loss, data, tol=1e-8)
    monkeypatch.setattr(blocks, "_structured", lambda linearization: None)
    ggn = cx.GGN(model, loss, data)
    monkeypatch.setattr(type(ggn), "_matmat", None)
    for row, other in zip(cx.by_layer(ggn, tol=1e-8).rows, plain.rows, strict=True):
        assert row["values"] == pytest.approx(other["values"], rel=1e-7)
        assert row["norm"] == pytest.approx(other["norm"], rel=1e-6, abs=5 * row["norm_error"])


def test_sparse_inputs_go_through_products():
    torch.manual_seed(0)
    model, loss, (x, y) = PROBLEMS["chain"]()
    found = cx.by_layer(model, loss, (x.to_sparse(), y), tol=1e-6)
    plain = cx.by_layer(model, loss, (x, y), tol=1e-6)
    for row, other in zip(found.rows, plain.rows, strict=True):
        assert row["values"] == pytest.approx(other["values"], rel=1e-5)
    wide = cx.GGN(model, loss, (x.to_sparse(), y), engine="autograd")
    assert wide.diagonal().sum().item() == pytest.approx(plain.trace, rel=1e-9)


def test_blocks_of_ones_own():
    torch.manual_seed(0)
    model, loss, data = PROBLEMS["conv"]()
    own = {"early": ["0", "1"], "late": "6.*"}
    found = cx.by_layer(model, loss, data, blocks=own)
    assert [row["block"] for row in found.rows] == ["early", "late"]
    agrees(found["early"], cx.GGN(model, loss, data, params=["0", "1"]).dense())
    with pytest.raises(KeyError, match=r"catapult_ext\.ByLayer: no block 'middle'"):
        found["middle"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be >= 1, got 0"),
        ({"tol": 2.0}, r"tol must be in \(0, 1\), got 2"),
        ({"quantity": "fisher"}, "quantity must be one of .* got .fisher"),
        ({"blocks": "layer"}, "blocks must be 'module', 'parameter', an int >= 1 or a mapping"),
        ({"blocks": 0}, "blocks must be .* got 0"),
        ({"blocks": {}}, "blocks must name at least one block"),
        ({"blocks": {"a": "nine"}}, "params must be names or patterns .* got 'nine'"),
        ({"blocks": {"a": "0", "b": "*"}}, "a parameter must lie in one block, got 0.bias"),
    ],
)
def test_refused(change, message):
    model, loss, data = PROBLEMS["conv"]()
    with pytest.raises(ValueError, match=rf"catapult_ext\.by_layer: {message}"):
        cx.by_layer(model, loss, data, **change)


def test_an_operator_brings_its_own_loss_and_acts_on_parameters():
    torch.manual_seed(0)
    model, loss, data = PROBLEMS["chain"]()
    with pytest.raises(ValueError, match="must be left out for an operator, got GGN"):
        cx.by_layer(cx.GGN(model, loss, data), quantity="hessian")
    with pytest.raises(ValueError, match="must be left out for an operator, got GGN"):
        cx.by_layer(cx.GGN(model, loss, data), loss)
    cross = cx.NTK(model, data[0], data[0][:2])
    with pytest.raises(ValueError, match="the operator must act on parameters"):
        cx.by_layer(cross)
    shifted = cx.by_layer(cx.GGN(model, loss, data).shift(1.0), tol=1e-6)
    plain = cx.by_layer(model, loss, data, tol=1e-6)
    for row, other in zip(shifted.rows, plain.rows, strict=True):
        assert row["values"][0] == pytest.approx(other["values"][0] + 1, rel=1e-5)


def test_it_prints_draws_and_is_saved(tmp_path):
    torch.manual_seed(0)
    found = cx.by_layer(*PROBLEMS["conv"](), 2)
    assert repr(found).startswith("4 blocks of the GGN: largest eigenvalue ")
    names = "block", "parameters", "lambda_1", "error_1", "lambda_2", "error_2"
    assert tuple(found._table()[0]) == (*names, "trace", "share", "norm")
    assert sum(row["share"] for row in found._table()) == pytest.approx(1.0)
    file = io.BytesIO()
    torch.save(found, file)
    file.seek(0)
    assert torch.load(file, weights_only=True).rows == found.rows
    pytest.importorskip("matplotlib")
    assert "<img" in found._repr_html_()
    found.plot(tmp_path / "layers.svg")
    assert "0.weight" not in (tmp_path / "layers.svg").read_text()[:20]


def test_blocks_are_looped_over_by_their_names():
    model, loss, data = PROBLEMS["conv"]()
    found = cx.by_layer(model, loss, data)
    assert list(found) == [row["block"] for row in found.rows]
    assert "nine" not in found
    assert found.rows[0]["block"] in found
