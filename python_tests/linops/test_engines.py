"""Engines answer for themselves: one from outside the package, the table, and old names."""

from typing import ClassVar

import pytest
import torch
from linops import zoo
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.engines import choose
from catapult_ext.linops.engines.base import Linearization
from catapult_ext.testing.tolerances import assert_close as close


class RowByRow(Linearization):
    """J written out: the least that an engine needs."""

    engine = "rows-of-a-test"

    def __init__(self, snapshot, outputs):
        super().__init__(snapshot, outputs)
        leaves = list(snapshot.params.values())
        rows = [
            torch.autograd.grad(f, leaves, retain_graph=True, allow_unused=True)
            for f in outputs.flatten()
        ]
        self.matrix = torch.stack([snapshot.join(row) for row in rows])

    def vjp(self, u):
        return self.matrix.T @ u

    def jvp(self, t):
        return self.matrix @ t


@pytest.fixture
def row_by_row(monkeypatch):
    """The table with that engine in it, for one test."""
    monkeypatch.setattr(choose, "ENGINES", dict(choose.ENGINES))
    return cx.linops.register_engine(RowByRow)


@pytest.mark.parametrize("name", ["kinked", "conv", "tied"])
@pytest.mark.parametrize("options", [{}, {"samples_at_once": 2}, {"memory_budget": "64 MiB"}])
def test_an_engine_from_outside(name, options, row_by_row):
    model, x = zoo.build(name)
    j = zoo.jacobian(model, x)
    kernel = cx.NTK(model, x, engine="rows-of-a-test", **options)
    assert kernel.engine == "rows-of-a-test"
    assert kernel.plan.engine == "rows-of-a-test"
    assert isinstance(kernel.linearization, row_by_row) == ("samples_at_once" not in options)
    v = torch.randn(len(j), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    close(kernel @ v, j @ (j.T @ v))
    close(kernel.dense(), j @ j.T)
    close(kernel.diagonal(), (j * j).sum(1))
    n, o = kernel.linearization.n_samples, kernel.linearization.n_outputs
    y = torch.zeros(n, o, dtype=torch.float64)
    ggn = cx.GGN(model, "half_mse", (x, y), engine="rows-of-a-test", **options)
    close(ggn.dense(), j.T @ j / n)
    top = cx.eigsh(ggn, tol=1e-10).eigenvalues[0]
    close(top, torch.linalg.eigvalsh(j @ j.T)[-1] / n)
    coarse = kernel.coarse() @ v
    assert 0 < (coarse - j @ (j.T @ v)).norm() < 0.1 * (j @ (j.T @ v)).norm()


def test_an_engine_without_a_hessian_says_so(row_by_row):
    model, x = zoo.build("kinked")
    with pytest.raises(ValueError, match="Hessian: engine must be None or one of"):
        cx.Hessian(model, "half_mse", (x, x), engine="rows-of-a-test")


def test_an_engine_that_wants_to_be_chosen(row_by_row, monkeypatch):
    """By its recorder: before the general engine, after those of the table."""

    class Watcher:
        why = ""
        altered, cheap, likely = False, True, False

        def mode(self):
            return torch.overrides.BaseTorchFunctionMode()

    def from_pass(cls, snapshot, recorder, forward):
        made = cls(snapshot, forward.outputs)
        made.why = forward.why
        return made

    monkeypatch.setattr(RowByRow, "recorder", classmethod(lambda cls, s: Watcher()))
    monkeypatch.setattr(RowByRow, "from_pass", classmethod(from_pass))
    kernel = cx.NTK(*zoo.build("conv"))
    assert kernel.engine == "rows-of-a-test"
    assert "it uses conv2d" in kernel.plan.why
    assert cx.NTK(*zoo.build("kinked")).engine == "dense-chain"
    assert cx.Hessian(*hessian_of("conv")).engine == "autograd"


def hessian_of(name):
    model, x = zoo.build(name)
    return model, "half_mse", (x, model(x).detach())


def test_engines_that_cannot_be_registered(row_by_row):
    with pytest.raises(ValueError, match=r"register_engine: the engine's name .* 'rows-of-a-test'"):
        cx.linops.register_engine(RowByRow)
    taken = type("Taken", (RowByRow,), {"engine": "layers"})
    with pytest.raises(ValueError, match="must not be in use, got 'layers'"):
        cx.linops.register_engine(taken)
    with pytest.raises(TypeError, match="must be a subclass of Linearization"):
        cx.linops.register_engine(nn.Linear)

    class Half(Linearization):
        def vjp(self, u):
            return u

    with pytest.raises(TypeError, match="must define engine, vjp and jvp, got none of"):
        cx.linops.register_engine(Half)


def test_only_what_freeze_returns_has_a_plan():
    kernel = cx.NTK(*zoo.build("kinked"))
    other = cx.NTK.of(RowByRow.build(kernel.linearization.snapshot))
    with pytest.raises(RuntimeError, match="only what freeze"):
        _ = other.plan


OLD_DOORS = {
    "NTK": lambda m, x, y, **o: cx.NTK(m, x, **o),
    "GGN": lambda m, x, y, **o: cx.GGN(m, "half_mse", (x, y), **o),
    "Hessian": lambda m, x, y, **o: cx.Hessian(m, "half_mse", (x, y), **o),
    "Jacobian": lambda m, x, y, **o: cx.Jacobian(m, x, **o),
    "EmpiricalFisher": lambda m, x, y, **o: cx.EmpiricalFisher(m, "half_mse", (x, y), **o),
    "StreamedNTK": lambda m, x, y, **o: cx.StreamedNTK(m, [x], **o),
    "StreamedGGN": lambda m, x, y, **o: cx.StreamedGGN(m, "half_mse", [(x, y)], **o),
    "StreamedHessian": lambda m, x, y, **o: cx.StreamedHessian(m, "half_mse", [(x, y)], **o),
}


@pytest.mark.parametrize("door", OLD_DOORS)
def test_the_old_name_of_dense_chain_works_and_warns_once(door):
    model, x = zoo.build("smooth")
    y = model(x).detach() + 1
    old = rf"catapult_ext\.{door}\(engine='layers'\) is deprecated: use .*engine='dense-chain'"
    with pytest.warns(DeprecationWarning, match=old) as seen:
        operator = OLD_DOORS[door](model, x, y, engine="layers")
    assert [w.filename for w in seen] == [__file__]
    new = OLD_DOORS[door](model, x, y, engine="dense-chain")
    v = torch.ones(operator.shape[1], dtype=torch.float64)
    assert torch.equal(operator @ v, new @ v)
    if not door.startswith("Streamed"):
        assert operator.engine == operator.plan.engine == "dense-chain" or door == "Hessian"
        assert operator.engine == "dense-chain"


def test_old_attributes_work_and_warn():
    model, x = zoo.build("smooth")
    kernel = cx.NTK(model, x, x[:2])
    with pytest.warns(DeprecationWarning, match=r"NTK\.frozen is .* use catapult_ext\.NTK\.lin"):
        assert kernel.frozen is kernel.linearization
    with pytest.warns(DeprecationWarning, match="NTK.frozen2 is deprecated"):
        assert kernel.frozen2 is kernel.linearization2
    with pytest.warns(DeprecationWarning, match="linops.Frozen is deprecated"):
        assert cx.linops.Frozen is Linearization
    with pytest.raises(AttributeError, match="has no attribute 'Thawed'"):
        _ = cx.linops.Thawed


class Counting(nn.Module):
    """Counts its passes by samples; ``rows`` of them are scaled by a counter that no copy holds."""

    passes: ClassVar[list[int]] = []

    def __init__(self, rows=slice(0, 0), coupled=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))
        self.rows, self.coupled = rows, coupled

    def forward(self, x):
        self.passes.append(len(x))
        out = self.body(x - x.mean(0) if self.coupled else x)
        factor = torch.ones(len(x), 1)
        factor[self.rows] = len(self.passes)
        return out * factor


@pytest.mark.parametrize(("n", "passes"), [(6, [6, 6]), (16, [16, 8]), (400, [400, 50])])
def test_the_second_pass_takes_some_samples_of_many(n, passes):
    Counting.passes.clear()
    cx.NTK(Counting(), torch.randn(n, 5))
    assert Counting.passes == passes
    Counting.passes.clear()
    cx.NTK(Counting(coupled=True), torch.randn(n, 5))
    assert Counting.passes == passes + [n] * (n > 8)  # their outputs are others: all decide
    cx.NTK(Counting(), torch.randn(n, 5), check=False)
    assert Counting.passes == passes + [n] * (n > 8) + [n]


@pytest.mark.parametrize(
    ("n", "passes"), [(2, [2, 2]), (6, [6, 2]), (17, [17, 2]), (400, [400, 2])]
)
def test_a_model_that_repeated_is_checked_by_two_samples(n, passes):
    model, x = Counting(), torch.randn(n, 5)
    cx.NTK(model, x)
    Counting.passes.clear()
    cx.NTK(model, x)
    assert Counting.passes == passes
    cx.NTK(Counting(), x)  # another one was not seen
    assert Counting.passes[3] >= min(n, 8)
    model.rows = slice(0, 1)  # it repeats no longer
    with pytest.raises(ValueError, match="NTK: two forward passes must give the same outputs"):
        cx.NTK(model, x)


@pytest.mark.parametrize("rows", [slice(None), slice(0, 1), slice(5, None)])
@pytest.mark.parametrize("n", [6, 40])
def test_what_does_not_repeat_is_found_by_some_samples(n, rows):
    with pytest.raises(ValueError, match="NTK: two forward passes must give the same outputs"):
        cx.NTK(Counting(rows), torch.randn(n, 5))


class ByMemory(nn.Module):
    """Its outputs depend on the order of an image's values in memory."""

    def __init__(self, first):
        super().__init__()
        self.first, self.conv, self.head = first, nn.Conv2d(3, 4, 3), nn.Linear(4 * 16, 2)

    def forward(self, x):
        if self.first:
            x = x.as_strided((len(x), 3, 6, 6), (108, 36, 6, 1))
        y = self.conv(x).tanh()
        return self.head(y.as_strided((len(y), 64), (64, 1)) if not self.first else y.flatten(1))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("options", [{}, {"check": False}, {"samples_at_once": 2}])
def test_a_model_that_channels_last_change_runs_in_the_plain_layout(first, options):
    torch.manual_seed(0)
    model, x = ByMemory(first).double(), torch.randn(5, 3, 6, 6).double()
    j = zoo.jacobian(model, x)
    for _ in range(2):  # the second one knows it from the first
        kernel = cx.NTK(model, x, **options)
        assert not kernel.linearization.snapshot.channels_last
        close(kernel @ torch.eye(10).double(), j @ j.T)
