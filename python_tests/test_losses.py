"""Losses: values as torch's, output Hessians against autograd, factors S S' = H_L, refusals."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import catapult_ext as cx
from catapult_ext import losses
from catapult_ext.losses import factors

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


CROSS_ENTROPIES = [name for name in CASES if name.startswith("ce_")]


@pytest.mark.parametrize("tile", [3, 7])
@pytest.mark.parametrize("case", CROSS_ENTROPIES)
def test_tiles_of_a_softmax_are_those_of_the_whole(monkeypatch, case, tile):
    """Boundaries divide neither rows nor classes, and columns make tiles smaller."""
    loss, target = CASES[case]
    known, y = losses.resolve(loss), target()
    for f in (outputs(), outputs() + 800, outputs() * 300):
        whole = known.factor(f, y)
        p = torch.softmax(f, 1)
        s = whole.root.unsqueeze(-1) * (
            torch.diag_embed(p.sqrt()) - p.unsqueeze(2) * p.sqrt().unsqueeze(1)
        )
        for columns in (1, 2):
            u = torch.randn(N, O, columns, dtype=torch.float64)
            monkeypatch.setattr(factors, "TILE", tile)
            tiled = known.factor(f, y)
            for found, matrix in [
                (tiled.apply(u), s),
                (tiled.apply_t(u), s.mT),
                (tiled.hessian(u), s @ s.mT),
            ]:
                torch.testing.assert_close(found, matrix @ u, rtol=1e-10, atol=1e-12)
            monkeypatch.undo()


class Sizes(TorchDispatchMode):
    """Sizes of the storages that operations make, in entries of float64."""

    def __init__(self, known):
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in self.known:
                self.made.append(t.untyped_storage().nbytes() // 8)
        return out


@pytest.mark.parametrize("product", ["apply", "apply_t", "hessian"])
@pytest.mark.parametrize("columns", [1, 3])
def test_a_softmax_makes_no_more_than_its_tiles(monkeypatch, product, columns):
    rows, classes, tile = 7, 1009, 256
    monkeypatch.setattr(factors, "TILE", tile)
    f = torch.randn(rows, classes, dtype=torch.float64)
    y, u = torch.arange(rows), torch.randn(rows, classes, columns, dtype=torch.float64)
    with Sizes([f]) as of_factor:
        factor = losses.resolve("cross_entropy").factor(f, y)
    # class weights are one row
    assert max(of_factor.made) <= classes
    with Sizes([f, u]) as of_product:
        out = getattr(factor, product)(u)
    assert sorted(of_product.made)[-1] == out.numel()
    beside = [size for size in of_product.made if size != out.numel()]
    assert max(beside) <= tile


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


@dataclass
class Returned:
    logits: torch.Tensor
    loss: torch.Tensor | None


class WithLoss(nn.Module):
    """Returns an object with logits and, of labels, the loss, as models of transformers do."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4)

    def forward(self, x, labels=None):
        logits = self.inner(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return Returned(logits, loss)


@pytest.mark.parametrize("kind", [cx.Hessian, cx.GGN])
def test_a_loss_of_the_returned_object_is_told_each_way_out(kind):
    torch.manual_seed(0)
    model, x, y = WithLoss().double(), torch.randn(5, 3).double(), torch.randint(4, (5,))
    batch = {"x": x, "labels": y}
    text = r"never the object that the model returns .*loss=None in cx.Hessian .*'cross_entropy'"
    with pytest.raises(TypeError, match=text):
        kind(model, lambda outputs, y: outputs.loss, batch)
    loss = None if kind is cx.Hessian else "cross_entropy"
    plain = kind(model.inner, "cross_entropy", (x, y))
    torch.testing.assert_close(kind(model, loss, batch).dense(), plain.dense())
