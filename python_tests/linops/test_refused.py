"""What operators refuse: one clear error each, and never a silently wrong product."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.engines.base import Allowance

X = torch.linspace(-1, 1, 12).reshape(4, 3)
Y = torch.zeros(4, 2)


class Fn(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.layer, self.fn = nn.Linear(3, 2), fn

    def forward(self, x):
        return self.fn(self.layer, x)


def batch_norm(layer, x):
    return layer(F.batch_norm(x, None, None, training=True))


def without_graph(layer, x):
    with torch.no_grad():
        return layer(x)


def mixed():
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2).double())


def all_frozen():
    return nn.Linear(3, 2).requires_grad_(False)


MODELS = {
    "batch_norm": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
        ValueError,
        "BatchNorm must be in eval mode.*'1'",
    ),
    "batch_norm_without_statistics": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval(),
        ValueError,
        "BatchNorm must be in eval mode",
    ),
    "functional_batch_norm": (lambda: Fn(batch_norm), ValueError, "couples the samples"),
    "dropout": (
        lambda: nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 2)),
        ValueError,
        "dropout must be off",
    ),
    "functional_dropout": (
        lambda: Fn(lambda layer, x: F.dropout(layer(x), 0.3)),
        ValueError,
        "random numbers",
    ),
    "noise": (
        lambda: Fn(lambda layer, x: layer(x) + torch.randn(2)),
        ValueError,
        "random numbers",
    ),
    "attention_dropout": (
        lambda: Fn(
            lambda layer, x: F.scaled_dot_product_attention(*[layer(x)[None]] * 3, dropout_p=0.1)[0]
        ),
        ValueError,
        "random numbers",
    ),
    "empty": (
        lambda: Fn(lambda layer, x: layer(x)[:0]),
        ValueError,
        "not be empty.*forward=.*0, 2",
    ),
    "tuple": (
        lambda: Fn(lambda layer, x: (layer(x), x)),
        TypeError,
        "return a tensor of outputs.*forward=.*tuple with 2 float tensors",
    ),
    "nan": (lambda: Fn(lambda layer, x: layer(x) / 0 * 0), ValueError, "outputs must be finite"),
    "complex": (lambda: Fn(lambda layer, x: layer(x) * 1j), TypeError, "parameters' dtype"),
    "mixed": (mixed, TypeError, "or all float64, got 1.weight"),
    "cast": (lambda: Fn(lambda layer, x: layer(x).long()), TypeError, "parameters' dtype"),
    "frozen": (all_frozen, ValueError, "trainable parameters"),
    "no_parameters": (nn.ReLU, ValueError, "trainable parameters"),
    "no_graph": (lambda: Fn(without_graph), ValueError, "depend on a trainable parameter"),
    "lazy": (lambda: nn.LazyLinear(2), ValueError, "initialised"),
    "function": (lambda: torch.sin, TypeError, "torch.nn.Module"),
}


@pytest.mark.parametrize("operator", ["NTK", "GGN", "Hessian"])
@pytest.mark.parametrize("case", MODELS)
def test_models(case, operator):
    make, error, text = MODELS[case]
    arguments = (X,) if operator == "NTK" else ("half_mse", (X, Y))
    with pytest.raises(error, match=f"catapult_ext.{operator}: .*{text}"):
        getattr(cx, operator)(make(), *arguments)


@pytest.mark.parametrize("operator", [cx.GGN, cx.Hessian])
@pytest.mark.parametrize(
    ("call", "shape"),
    [(lambda layer, x: layer(x)[:, None], "4, 1, 2"), (lambda layer, x: layer(x).sum(), "")],
)
def test_targets_of_another_shape_name_forward(operator, call, shape):
    with pytest.raises(ValueError, match=rf"shape of the outputs \({shape}\).*forward=.*4, 2"):
        operator(Fn(call), "half_mse", (X, Y))


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (X * float("nan"), "inputs must be finite"),
        (X[:0], "must not be empty"),
        (X.to("meta"), "must be on the model's cpu"),
        ((X, X / 0), "finite"),
    ],
)
def test_inputs(x, text):
    with pytest.raises(ValueError, match=f"catapult_ext.NTK: .*{text}"):
        cx.NTK(nn.Linear(3, 2), x)


def test_engines():
    with pytest.raises(ValueError, match="engine must be None or one of"):
        cx.NTK(nn.Linear(3, 2), X, engine="fast")
    with pytest.raises(ValueError, match=r"engine='dense-chain' needs a chain.*layer_norm"):
        cx.NTK(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), X, engine="dense-chain")


@pytest.mark.parametrize(
    ("loss", "data", "error", "text"),
    [
        (lambda f, y: torch.zeros(()), (X, Y), ValueError, "depend on the outputs"),
        (lambda f, y: f, (X, Y), ValueError, "scalar"),
        ("mae", (X, Y), ValueError, "loss must be one of"),
        ("half_mse", X, TypeError, r"pair \(x, y\)"),
        ("half_mse", (X, Y, Y), TypeError, r"pair \(x, y\)"),
        ("half_mse", (X, Y[:, :1]), ValueError, "shape of the outputs"),
        ("half_mse", (X, Y.double()), TypeError, "dtype"),
        (nn.CrossEntropyLoss(), (X, torch.tensor([0, 1, 2, 0])), ValueError, r"in \[0, 2\)"),
    ],
)
def test_ggn_losses(loss, data, error, text):
    with pytest.raises(error, match=text):
        cx.GGN(nn.Linear(3, 2), loss, data)


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lambda f, y: f, "scalar"),
        (lambda f, y: f.sum() / 0, "loss must be finite"),
        (lambda f, y: torch.zeros(()), "depend on the outputs"),
    ],
)
def test_hessian_losses(loss, text):
    with pytest.raises(ValueError, match=text):
        cx.Hessian(nn.Linear(3, 2), loss, (X, Y))


def test_no_second_derivative_is_named():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return g * ctx.saved_tensors[0].cos()

    model = Fn(lambda layer, x: Once.apply(layer(x)))
    with pytest.raises(RuntimeError, match=r"catapult_ext.Hessian: .*second derivative"):
        cx.Hessian(model, "half_mse", (X, Y)) @ torch.ones(8)
    kernel = cx.NTK(model, X)  # needs the first one alone, for few rows
    assert torch.allclose(kernel @ torch.eye(8), kernel.dense(), rtol=1e-5)
    small = cx.NTK(model, X).linearization.allowed(Allowance(workspace=100))
    kernel = cx.NTK.of(small)
    with pytest.raises(RuntimeError, match=r"catapult_ext.NTK: .*second derivatives.*marked once"):
        kernel @ torch.ones(8)


@pytest.mark.parametrize(
    ("v", "error", "text"),
    [
        (torch.ones(7), ValueError, r"must be \(8,\) or \(8, K\), got \(7,\)"),
        (torch.ones(8, 1, 1), ValueError, "must be"),
        (torch.ones(8).double(), TypeError, "float32"),
        (torch.ones(8, device="meta"), ValueError, "on cpu"),
        ([1.0] * 8, TypeError, "torch.Tensor"),
    ],
)
def test_right_hand_sides(v, error, text):
    with pytest.raises(error, match=f"catapult_ext.NTK @: .*{text}"):
        cx.NTK(nn.Linear(3, 2), X) @ v


def test_no_columns_give_no_columns():
    assert (cx.NTK(nn.Linear(3, 2), X) @ torch.ones(8, 0)).shape == (8, 0)


def test_dense_options():
    kernel = cx.NTK(nn.Linear(3, 2), X)
    with pytest.raises(ValueError, match="layout"):
        kernel.dense(layout="rows")
    with pytest.raises(ValueError, match="outputs"):
        kernel.dense(outputs="mean")
    with pytest.raises(ValueError, match="symmetric"):
        cx.NTK(nn.Linear(3, 2), X, X[:2]).diagonal()


def test_instance_norm_is_per_sample_and_fine():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.InstanceNorm2d(2), nn.Flatten(), nn.Linear(18, 2))
    assert cx.NTK(model, torch.rand(4, 1, 3, 3)).shape == (8, 8)
