"""Nets that end in LogSoftmax, losses of their log-probabilities, and losses given as functions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import catapult_ext as cx

WEIGHT = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


def net(tokens=False):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)]
    if tokens:
        layers.append(nn.Unflatten(1, (3, 1)))
        layers.append(nn.ConvTranspose1d(3, 3, 4))  # (N, 3, 4)
    return nn.Sequential(*layers).double()


def ended(logits):
    return nn.Sequential(*logits, nn.LogSoftmax(1))


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0, 1, 2, 1, 0])


def close(got, right):
    assert (got - right).abs().max() <= 1e-10 * right.abs().max()


PAIRS = {
    "plain": (nn.NLLLoss(), nn.CrossEntropyLoss()),
    "sum": (nn.NLLLoss(reduction="sum"), nn.CrossEntropyLoss(reduction="sum")),
    "weights": (nn.NLLLoss(WEIGHT), nn.CrossEntropyLoss(WEIGHT)),
    "ignored": (nn.NLLLoss(ignore_index=1), nn.CrossEntropyLoss(ignore_index=1)),
    "function": (F.nll_loss, F.cross_entropy),
}


@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize("name", PAIRS)
def test_curvature_is_that_of_cross_entropy_at_the_logits(name, tokens, data):
    nll, cross = PAIRS[name]
    logits, (x, y) = net(tokens), data
    y = torch.stack([y, y.flip(0), (y + 1) % 3, y], 1) if tokens else y
    model = ended(logits)
    for operator in (cx.GGN, cx.EmpiricalFisher, cx.Hessian):
        close(operator(model, nll, (x, y)).dense(), operator(logits, cross, (x, y)).dense())
    chunks = cx.GGN(model, nll, (x, y), samples_at_once=2)
    close(chunks.dense(), cx.GGN(logits, cross, (x, y)).dense())
    batches = [(x[:2], y[:2]), (x[2:], y[2:])]
    close(cx.StreamedGGN(model, nll, batches).dense(), cx.GGN(logits, cross, (x, y)).dense())


def test_the_split_by_hand(data):
    """J' diag(t p / m) J of log-probabilities, entry by entry."""
    (x, y), model = data, ended(net())
    rows = cx.Jacobian(model, x).dense()
    p = model(x).detach().exp()
    mass = WEIGHT[y] / WEIGHT[y].sum()
    right = rows.T @ torch.diag((mass[:, None] * p).reshape(-1)) @ rows
    close(cx.GGN(model, nn.NLLLoss(WEIGHT), (x, y)).dense(), right)


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum"])
def test_divergences(reduction, log_target, data):
    x, _ = data
    q = torch.rand(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    q = q / q.sum(1, keepdim=True)
    divergence = nn.KLDivLoss(reduction=reduction, log_target=log_target)
    logits, target = net(), q.log() if log_target else q
    model = ended(logits)
    factor = {"batchmean": 1.0, "mean": 1 / 3, "sum": 5.0}[reduction]
    right = cx.GGN(logits, nn.CrossEntropyLoss(), (x, q)).dense() * factor
    close(cx.GGN(model, divergence, (x, target)).dense(), right)
    hessian = cx.Hessian(model, divergence, (x, target))
    assert hessian.value.item() == pytest.approx(divergence(model(x), target).item())
    close(hessian.dense(), cx.Hessian(logits, nn.CrossEntropyLoss(), (x, q)).dense() * factor)


def test_window_and_tracker_see_the_curvature(data):
    logits, model = net(), ended(net())
    found = cx.learning_rate_window(model, nn.NLLLoss(), data)
    assert found.eta_crit == pytest.approx(
        cx.learning_rate_window(logits, nn.CrossEntropyLoss(), data).eta_crit, rel=1e-3
    )
    tracker = cx.CurvatureTracker(model, nn.NLLLoss(), data)
    tracker.start()
    top = cx.eigsh(cx.GGN(logits, nn.CrossEntropyLoss(), data)).eigenvalues.item()
    assert tracker.probes[0]["values"][0] == pytest.approx(top, rel=1e-3)


def test_outputs_that_are_no_log_probabilities(data):
    for wrong in (net(), nn.Sequential(*net(), nn.Softmax(1))):
        with pytest.raises(ValueError, match=r"must be log-probabilities.*LogSoftmax\(dim=1\)"):
            cx.GGN(wrong, nn.NLLLoss(), data)
    x, y = data
    with pytest.raises(ValueError, match=r"must be labels of dtype int64, got torch.float"):
        cx.GGN(ended(net()), nn.NLLLoss(), (x, y.double()))


@pytest.mark.parametrize("function", [F.mse_loss, F.binary_cross_entropy_with_logits])
def test_functions_are_their_modules(function, data):
    x, _ = data
    y = torch.rand(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    module = {F.mse_loss: nn.MSELoss()}.get(function, nn.BCEWithLogitsLoss())
    for operator in (cx.GGN, cx.EmpiricalFisher):
        close(operator(net(), function, (x, y)).dense(), operator(net(), module, (x, y)).dense())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_callables_that_say_how_they_reduce(reduction, data):
    module, (x, y) = nn.CrossEntropyLoss(reduction=reduction), data

    def loss(outputs, labels):
        return module(outputs, labels)

    fisher = cx.EmpiricalFisher(net(), loss, (x, y), reduction=reduction)
    close(fisher.dense(), cx.EmpiricalFisher(net(), module, (x, y)).dense())
    batches = [(x[:2], y[:2]), (x[2:], y[2:])]
    streamed = cx.StreamedGGN(net(), loss, batches, reduction=reduction)
    close(streamed.dense(), cx.GGN(net(), module, (x, y)).dense())
    for make in (
        lambda: cx.EmpiricalFisher(net(), loss, (x, y)),
        lambda: cx.StreamedGGN(net(), loss, batches),
        lambda: cx.StreamedHessian(net(), loss, batches),
    ):
        with pytest.raises(ValueError, match="or pass reduction='mean' or 'sum' for another"):
            make()
    with pytest.raises(ValueError, match="EmpiricalFisher: reduction must be 'mean' or 'sum', got"):
        cx.EmpiricalFisher(net(), loss, (x, y), reduction="none")
