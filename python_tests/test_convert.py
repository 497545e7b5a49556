"""convert_lambda: each factor against the operator that it speaks of."""

import itertools

import pytest
import torch

import catapult_ext as cx
from catapult_ext.losses import CONVENTIONS

N, OUT = 7, 3


@pytest.fixture(scope="module")
def measured():
    """The top eigenvalue in every convention, computed as that convention says."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, OUT)
    ).double()
    x, y = torch.randn(N, 5).double(), torch.randn(N, OUT).double()
    kernel = cx.NTK(model, x).dense()
    trace = torch.einsum("nomo->nm", kernel.reshape(N, OUT, N, OUT))

    def top(matrix):
        return float(torch.linalg.eigvalsh(matrix)[-1])

    def ggn(loss):
        operator = cx.GGN(model, loss, (x, y))
        return top(operator @ torch.eye(operator.shape[0]).double())

    values = {
        "ntk": top(kernel),
        "ntk/N": top(kernel / N),
        "ntk/NO": top(kernel / (N * OUT)),
        "half_mse": ggn("half_mse"),
        "half_mse_mean": ggn("half_mse_mean"),
        "MSELoss": ggn(torch.nn.MSELoss()),
        "MSELoss(sum)": ggn(torch.nn.MSELoss(reduction="sum")),
        "trace": top(trace),
        "trace/O": top(trace / OUT),
    }
    assert set(values) == set(CONVENTIONS)
    return values


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(CONVENTIONS, 2)))
def test_factors_are_those_of_the_operators(measured, source, target):
    if ("trace" in source) != ("trace" in target):
        with pytest.raises(ValueError, match=r"convert_lambda: .* traced over several outputs"):
            cx.convert_lambda(measured[source], source, target, samples=N, outputs=OUT)
        return
    found = cx.convert_lambda(measured[source], source, target, samples=N, outputs=OUT)
    assert found == pytest.approx(measured[target], rel=1e-9)


def test_one_output_has_no_trace_to_take():
    assert cx.convert_lambda(6.0, "trace/O", "half_mse", samples=3, outputs=1) == 2.0


def test_losses_stand_for_their_names():
    sizes = {"samples": 4, "outputs": 10}
    summed = torch.nn.MSELoss(reduction="sum")
    assert cx.convert_lambda(1.0, torch.nn.MSELoss(), "ntk", **sizes) == 20.0
    assert cx.convert_lambda(1.0, "ntk", summed, **sizes) == 2.0
    assert cx.convert_lambda(1.0, cx.losses.half_mse, cx.losses.half_mse_mean, **sizes) == 0.1


def test_tensors_keep_dtype_and_shape():
    values = torch.tensor([[4.0, 8.0]])
    found = cx.convert_lambda(values, "ntk", "ntk/N", samples=4, outputs=2)
    assert torch.equal(found, torch.tensor([[1.0, 2.0]]))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"source": "ntk/O"}, ValueError, "source must be one of 'ntk', .* got 'ntk/O'"),
        ({"target": 3}, TypeError, "target must be a name or a squared loss, got int"),
        ({"target": torch.nn.CrossEntropyLoss()}, ValueError, "target must be a squared loss"),
        ({"value": "1"}, TypeError, "value must be a float .* got str"),
        ({"value": torch.ones(2, dtype=torch.int64)}, TypeError, "value must be a float"),
        ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
        ({"outputs": 1.5}, TypeError, "outputs must be an int, got float"),
        ({"samples": True}, TypeError, "samples must be an int, got bool"),
    ],
)
def test_errors(change, error, match):
    good = {"value": 1.0, "source": "ntk", "target": "half_mse", "samples": 4, "outputs": 2}
    with pytest.raises(error, match=rf"catapult_ext\.convert_lambda: {match}"):
        cx.convert_lambda(**{**good, **change})
