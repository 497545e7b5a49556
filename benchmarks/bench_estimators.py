"""Trace and diagonal of operators of a ResNet-20, against the same estimates by whole products."""

import pytest
import torch
from harness import Case

import catapult_ext as cx
from catapult_ext.eig.operand import as_operand
from catapult_ext.eig.random import _probed

SAMPLES, VECTORS, UNITS = 32, 8, 32


def _problem(quick):
    model = cx.models.build("resnet-8" if quick else "resnet-20", (3, 32, 32), 10, seed=0).eval()
    draw = torch.Generator().manual_seed(0)
    n = 4 if quick else SAMPLES
    return model, torch.randn(n, 3, 32, 32, generator=draw), torch.arange(n) % 10


@pytest.mark.parametrize("name", ["NTK", "GGN"])
def test_trace(measure, quick, name):
    model, x, y = _problem(quick)
    operator = cx.NTK(model, x) if name == "NTK" else cx.GGN(model, "cross_entropy", (x, y))
    operand = as_operand(operator, "bench")

    def agrees():
        """Sample by sample the same estimates."""
        whole = _probed(operand, VECTORS, 0, "bench").quadratic.mean()
        found = cx.hutchinson_trace(operator, VECTORS).value
        assert abs(found - whole) <= 1e-4 * abs(whole)

    measure(
        Case(
            ours=lambda: cx.hutchinson_trace(operator, VECTORS),
            baselines={"whole products": lambda: _probed(operand, VECTORS, 0, "bench")},
            check=agrees,
            target={"whole products": 1 / 0.6},
        )
    )


def test_ggn_diagonal(measure, quick):
    """Against 32 of the P products that it took: times P / 32 is the whole."""
    model, x, y = _problem(quick)
    ggn = cx.GGN(model, "cross_entropy", (x, y))
    unit = torch.zeros(ggn.shape[0], UNITS)
    unit[torch.arange(UNITS), torch.arange(UNITS)] = 1

    def agrees():
        few = (ggn @ unit)[:UNITS].diagonal()
        assert (ggn.diagonal()[:UNITS] - few).abs().max() <= 1e-4 * few.abs().max()

    name = f"{UNITS} of {ggn.shape[0]} products"
    target = 100 * UNITS / ggn.shape[0]
    measure(
        Case(
            ours=ggn.diagonal,
            baselines={name: lambda: ggn @ unit},
            check=agrees,
            target={name: target},
        )
    )
