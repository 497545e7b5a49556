"""Kernels from the uses of every parameter, against one backward pass per output."""

from functools import partial

import pytest
import torch
from linops import zoo
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.engines.base import Allowance
from catapult_ext.linops.engines.choose import take_snapshot
from catapult_ext.linops.tracing import parameter_kernel
from catapult_ext.linops.tracing.parameter_uses import Structured
from catapult_ext.testing.tolerances import assert_close

UNKNOWN = {"cell": "gru_cell"}


close = partial(assert_close, tolerance=1e-12)


def uses(model, x, **options):
    return Structured(take_snapshot(model, x, "NTK", options))


@pytest.mark.parametrize("workspace", [1 << 29, 1 << 17])
@pytest.mark.parametrize("name", list(zoo.ZOO))
def test_zoo(name, workspace):
    """Every model but those whose calls have no rule; a small workspace may refuse, never err."""
    model, x = zoo.build(name)
    found = uses(model, x)
    assert (name in UNKNOWN) == bool(found.why)
    if found.why:
        assert UNKNOWN[name] in found.why
        return
    rows = zoo.jacobian(model, x)
    kernel, n, o = rows @ rows.T, found.n, found.outputs
    exact = {
        "all": kernel,
        "trace": kernel.view(n, o, n, o).diagonal(dim1=1, dim2=3).sum(-1),
    }
    answers = [(parameter_kernel.diagonal(found, workspace), kernel.diagonal())]
    answers += [(parameter_kernel.jacobian(found, workspace), rows)]
    for outputs, right in exact.items():
        answers.append((parameter_kernel.kernel(found, None, outputs, workspace), right))
        answers.append((parameter_kernel.kernel(found, found, outputs, workspace), right))
    if workspace == 1 << 29:
        assert all(got is not None for got, _ in answers)
    for got, right in answers:
        if got is not None:
            close(got, right)
    whole = answers[2][0]
    assert whole is None or torch.equal(whole, whole.T)


def test_a_backward_pass_per_output_not_per_row(monkeypatch):
    """README's promise for convolutions: O passes and a check, where products take 2 N O."""
    model, x = zoo.build("resnet20")
    kernel = cx.NTK(model, x.repeat(8, 1, 1, 1))
    calls, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(0) or grad(*a, **k))
    kernel.dense()
    assert len(calls) <= 2 + kernel.n_outputs


class SequenceFirst(nn.Module):
    """(N, S, d) in, (S, N, d) inside, with S = N: the leading dimension is not the sample."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x.transpose(0, 1)))).sum(0)


class Hidden(torch.autograd.Function):
    """A product with a parameter that no torch function shows."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return torch.from_numpy(x.detach().numpy() * w.detach().numpy())

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * w, (g * x).sum(0)


class Hiding(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.w = nn.Linear(5, 3), nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x):
        return Hidden.apply(torch.tanh(self.a(x)), self.w)


class Overwriting(nn.Module):
    """The factor of a product is changed in place after it was used."""

    def __init__(self):
        super().__init__()
        self.a, self.w = nn.Linear(5, 3), nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x):
        x = x.clone()
        y = torch.tanh(self.a(x))
        x.mul_(2)
        return y * self.w


@pytest.mark.parametrize(
    ("make", "inputs", "options", "reason"),
    [
        (SequenceFirst, lambda: torch.randn(4, 4, 3), {}, "leading dimension"),
        (Hiding, lambda: torch.randn(4, 5), {}, "no call shows"),
        (Overwriting, lambda: torch.randn(4, 5), {}, "in place"),
        (
            lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)),
            lambda: torch.randn(6, 5),
            {"batch_stats": "coupled"},
            "depend on each other",
        ),
    ],
)
def test_what_cannot_be_taken_apart_is_noticed(make, inputs, options, reason):
    torch.manual_seed(0)
    model, x = make().double(), inputs().double()
    assert reason in uses(model, x, **options).why
    if make is Overwriting:
        return  # autograd itself refuses the plain product
    kernel = cx.NTK(model, x, **options)
    close(
        kernel.dense(),
        kernel @ torch.eye(len(kernel.linearization.outputs) * kernel.n_outputs).double(),
    )


@pytest.mark.parametrize("outputs", ["all", "trace"])
@pytest.mark.parametrize("name", ["conv", "smooth", "vit"])
def test_chunks(name, outputs):
    """Pairs of chunks fill the kernel, and cross kernels."""
    model, x = zoo.build(name)
    x2 = x[:2].flip(0)
    close(
        cx.NTK(model, x, samples_at_once=2).dense(outputs=outputs),
        cx.NTK(model, x).dense(outputs=outputs),
    )
    close(
        cx.NTK(model, x, x2, samples_at_once=1).dense(outputs=outputs),
        cx.NTK(model, x, x2).dense(outputs=outputs),
    )


@pytest.mark.parametrize("outputs", ["all", "trace"])
@pytest.mark.parametrize("name", ["conv", "smooth"])
def test_a_workspace_that_all_gradients_exceed(name, outputs, monkeypatch):
    """Then those of some samples serve, not one product per column of the kernel."""
    model, x = zoo.build(name)
    whole = cx.NTK(model, x).dense(outputs=outputs)
    kernel = cx.NTK.of(cx.NTK(model, x).linearization.allowed(Allowance(workspace=1)))
    monkeypatch.setattr(cx.NTK, "_matmat", lambda self, vectors: pytest.fail("a product"))
    got = kernel.dense(outputs=outputs)
    close(got, whole)
    assert torch.equal(got, got.T)


class OwnBatchNorm(nn.Module):
    """Not finite on one sample."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        h = self.first(x)
        return self.last((h - h.mean(0)) / (h.std(0) + 1e-3))


class Fourier(nn.Module):
    """Real parameters times complex data."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.w = nn.Parameter(torch.randn(5))

    def forward(self, x):
        return self.last(torch.fft.irfft(torch.fft.rfft(self.first(x)) * self.w, n=8))


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize("kind", [OwnBatchNorm, Fourier])
def test_kernels_of_models_that_products_alone_can_do(kind):
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(6, 4, dtype=torch.float64)
    j = zoo.jacobian(model, x)
    kernel = cx.NTK(model, x)
    exact = j @ j.T
    assert torch.allclose(kernel.dense(), exact)
    assert torch.allclose(kernel.diagonal(), exact.diagonal())
    assert torch.allclose(kernel.trace(), exact.trace())
    assert torch.allclose(cx.Jacobian(model, x).dense(), j)
    assert kernel.plan.samples == 6
    budgeted = cx.NTK(model, x, memory_budget="1 GiB")
    assert torch.allclose(budgeted @ exact, exact @ exact)
