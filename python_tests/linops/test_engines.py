"""Engines answer for themselves: one from outside the package, the table, and old names."""

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

    engine = "row-by-row"

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
    kernel = cx.NTK(model, x, engine="row-by-row", **options)
    assert kernel.engine == "row-by-row"
    assert kernel.plan.engine == "row-by-row"
    assert isinstance(kernel.linearization, row_by_row) == ("samples_at_once" not in options)
    v = torch.randn(len(j), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    close(kernel @ v, j @ (j.T @ v))
    close(kernel.dense(), j @ j.T)
    close(kernel.diagonal(), (j * j).sum(1))
    n, o = kernel.linearization.n_samples, kernel.linearization.n_outputs
    y = torch.zeros(n, o, dtype=torch.float64)
    ggn = cx.GGN(model, "half_mse", (x, y), engine="row-by-row", **options)
    close(ggn.dense(), j.T @ j / n)
    top = cx.eigsh(ggn, tol=1e-10).eigenvalues[0]
    close(top, torch.linalg.eigvalsh(j @ j.T)[-1] / n)
    coarse = kernel.coarse() @ v
    assert 0 < (coarse - j @ (j.T @ v)).norm() < 0.1 * (j @ (j.T @ v)).norm()


def test_an_engine_without_a_hessian_says_so(row_by_row):
    model, x = zoo.build("kinked")
    with pytest.raises(ValueError, match="Hessian: engine must be None or one of"):
        cx.Hessian(model, "half_mse", (x, x), engine="row-by-row")


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
    assert kernel.engine == "row-by-row"
    assert "it uses conv2d" in kernel.plan.why
    assert cx.NTK(*zoo.build("kinked")).engine == "dense-chain"
    assert cx.Hessian(*hessian_of("conv")).engine == "autograd"


def hessian_of(name):
    model, x = zoo.build(name)
    return model, "half_mse", (x, model(x).detach())


def test_engines_that_cannot_be_registered(row_by_row):
    with pytest.raises(ValueError, match=r"register_engine: the engine's name .* 'row-by-row'"):
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
