"""Losses: values as torch's, output Hessians against autograd, factors S S' = H_L, refusals."""

import copy

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext import losses

N, O = 6, 4  # noqa: E741


def outputs():
    return torch.randn(N, O, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2


def labels():
    return torch.tensor([0, 3, 1, 2, 2, 0])


def one_hot():
    return torch.eye(O, dtype=torch.float64)[labels()]


def soft():
    g = torch.Generator().manual_seed(1)
    return torch.rand(N, O, dtype=torch.float64, generator=g)


WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64)
IGNORING = torch.tensor([0, -100, 1, 2, -100, 0])
CASES = {
    "half_mse": ("half_mse", soft),
    "half_mse_mean": ("half_mse_mean", soft),
    "mse_mean": (nn.MSELoss(), soft),
    "mse_sum": (nn.MSELoss(reduction="sum"), soft),
    "ce_labels": (nn.CrossEntropyLoss(), labels),
    "ce_sum": (nn.CrossEntropyLoss(reduction="sum"), labels),
    "ce_soft": (nn.CrossEntropyLoss(), soft),
    "ce_soft_smooth": (nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1), soft),
    "ce_smooth": (nn.CrossEntropyLoss(label_smoothing=0.2), labels),
    "ce_ignore": (nn.CrossEntropyLoss(), lambda: IGNORING),
    "ce_weights": (nn.CrossEntropyLoss(weight=WEIGHTS), labels),
    "ce_all": (nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.3), lambda: IGNORING),
    "bce": (nn.BCEWithLogitsLoss(), soft),
    "bce_sum": (nn.BCEWithLogitsLoss(reduction="sum"), one_hot),
    "bce_weights": (nn.BCEWithLogitsLoss(weight=soft(), pos_weight=WEIGHTS + 0.5), soft),
}


@pytest.mark.parametrize("case", CASES)
def test_value_and_output_hessian(case):
    loss, target = CASES[case]
    known, y, f = losses.resolve(loss), target(), outputs()
    if not isinstance(loss, str):
        torch.testing.assert_close(known(f, y), loss(f, y))
    exact = torch.autograd.functional.hessian(lambda z: known(z, y), f).reshape(N * O, N * O)
    factor = known.factor(f, y)
    eye = torch.eye(N * O, dtype=torch.float64).reshape(N, O, N * O)
    hessian = factor.hessian(eye).reshape(N * O, N * O)
    torch.testing.assert_close(hessian, exact, rtol=1e-12, atol=1e-14)
    s = factor.apply(eye).reshape(N * O, N * O)
    torch.testing.assert_close(s @ s.T, exact, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(factor.apply_t(eye).reshape(N * O, N * O), s.T)


def test_named_values_and_normalisers():
    f, y = outputs(), soft()
    square = (f - y).square().sum()
    torch.testing.assert_close(losses.half_mse(f, y), square / (2 * N))
    torch.testing.assert_close(losses.half_mse_mean(f, y), square / (2 * N * O))
    normalisers = [
        losses.resolve(loss).normaliser(f, y)
        for loss in ("half_mse", "half_mse_mean", nn.MSELoss(), nn.MSELoss(reduction="sum"))
    ]
    assert normalisers == [N, N * O, N * O / 2, 0.5]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("mse", nn.MSELoss()),
        ("cross_entropy", nn.CrossEntropyLoss()),
        ("bce", nn.BCEWithLogitsLoss()),
    ],
)
def test_names_of_torch_losses(name, module):
    f, y = outputs(), one_hot()
    assert losses.resolve(name)(f, y) == module(f, y)


def test_vector_targets_join_a_single_output():
    f = outputs()[:, :1]
    torch.testing.assert_close(losses.half_mse(f, soft()[:, 0]), losses.half_mse(f, soft()[:, :1]))


@pytest.mark.parametrize(
    ("loss", "error", "text"),
    [
        ("l1", ValueError, "half_mse_mean"),
        (3, TypeError, "callable"),
        (nn.MSELoss, TypeError, "callable"),
        (nn.MSELoss(reduction="none"), ValueError, "reduction"),
    ],
)
def test_refused_losses(loss, error, text):
    with pytest.raises(error, match=text):
        losses.resolve(loss)


@pytest.mark.parametrize(
    ("loss", "target", "error", "text"),
    [
        ("half_mse", soft()[:, :1], ValueError, "shape of the outputs"),
        ("half_mse", soft()[:, 0], ValueError, "shape of the outputs"),
        ("half_mse", soft().float(), TypeError, "dtype"),
        ("half_mse", labels(), ValueError, "one-hot"),
        ("half_mse", soft() * float("nan"), ValueError, "finite"),
        ("half_mse", [1, 2], TypeError, "torch.Tensor"),
        ("bce", soft() - 1, ValueError, r"BCEWithLogitsLoss: targets must be in \[0, 1\], got -0"),
        (nn.BCEWithLogitsLoss(), 2 * one_hot(), ValueError, r"must be in \[0, 1\], got 2.0"),
        (nn.CrossEntropyLoss(), labels() + 3, ValueError, r"in \[0, 4\)"),
        (nn.CrossEntropyLoss(), labels().int(), TypeError, "int64"),
        (nn.CrossEntropyLoss(), labels()[:3], ValueError, "shape"),
        (nn.CrossEntropyLoss(), labels() * 0 - 100, ValueError, "ignore_index"),
        (nn.CrossEntropyLoss(weight=torch.ones(3)), labels(), ValueError, "class weights"),
    ],
)
def test_refused_targets(loss, target, error, text):
    with pytest.raises(error, match=text):
        losses.resolve(loss)(outputs(), target)


def test_a_loss_without_a_convention_has_no_factor():
    with pytest.raises(ValueError, match="half_mse"):
        losses.resolve(nn.L1Loss()).factor(outputs(), soft())


def test_a_subclass_is_not_taken_for_its_parent():
    class Twice(nn.MSELoss):
        def forward(self, f, y):
            return 2 * super().forward(f, y)

    loss = losses.resolve(Twice())
    assert not loss.convex
    torch.testing.assert_close(loss(outputs(), soft()), 2 * nn.MSELoss()(outputs(), soft()))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_targets_of_half_precision_models(half):
    model = nn.Sequential(nn.Linear(4, 3)).to(half)
    x, y = torch.randn(6, 4, dtype=half), torch.rand(6, 3).to(half)
    for loss in ("half_mse", nn.MSELoss(), nn.BCEWithLogitsLoss()):
        got = cx.GGN(model, loss, (x, y)).dense()
        wide = copy.deepcopy(model).float()
        assert torch.equal(got, cx.GGN(wide, loss, (x.float(), y.float())).dense())


def test_weights_of_samples_in_binary_cross_entropy():
    """One output, shown as (N, 1): a weight (N,) belongs to the samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)).double()
    x, y, w = torch.randn(6, 4).double(), torch.rand(6).double(), torch.rand(6).double()
    loss = nn.BCEWithLogitsLoss(weight=w)
    p = torch.sigmoid(model(x)).detach()
    design = torch.cat([x, torch.ones(6, 1).double()], 1)
    exact = design.T @ (design * (w * p * (1 - p) / 6)[:, None])
    assert torch.allclose(cx.GGN(model, loss, (x, y)).dense(), exact)
    assert torch.allclose(cx.Hessian(model, loss, (x, y)).dense(), exact)
