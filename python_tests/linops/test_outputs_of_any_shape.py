"""Tokens, pixels, series and scalars as outputs, with labels as torch's losses take them."""

import pytest
import torch
from torch import nn

import catapult_ext as cx

DOUBLE = {"dtype": torch.float64}
IGNORED = -100


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), **DOUBLE)


def classes(count, *shape):
    y = torch.randint(count, shape, generator=torch.Generator().manual_seed(1))
    y.view(-1)[1] = IGNORED
    return y


def net(kind):
    torch.manual_seed(0)
    made = {
        "tokens": lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
        "pixels": lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 1)
        ),
        "vector": lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)),
    }[kind]()
    return made.double()


def flat(f, y):
    """Cross-entropy of classes last, as users of transformers write it."""
    return nn.functional.cross_entropy(f.flatten(0, -2), y.flatten(), ignore_index=IGNORED)


PIXELS = draw(3, 2, 4, 5)
TOKENS = draw(4, 5, 3)
WEIGHTED = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0], **DOUBLE), label_smoothing=0.1)
POSITIVE = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([[[2.0]], [[0.5]]], **DOUBLE))
# model, inputs, labels, loss, the same loss as torch has it
CASES = {
    "tokens": ("tokens", TOKENS, classes(2, 4, 5), nn.CrossEntropyLoss(), flat),
    "token scores": ("tokens", TOKENS, draw(4, 5, 2), nn.MSELoss(), nn.MSELoss()),
    "pixels": ("pixels", PIXELS, classes(2, 3, 4, 5), WEIGHTED, WEIGHTED),
    "pixels, sum": (
        "pixels",
        PIXELS,
        classes(2, 3, 4, 5),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(reduction="sum"),
    ),
    "soft pixels": (
        "pixels",
        PIXELS,
        draw(3, 2, 4, 5).softmax(1),
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(),
    ),
    "masks": ("pixels", PIXELS, draw(3, 2, 4, 5).sigmoid(), POSITIVE, POSITIVE),
    "images": (
        "pixels",
        PIXELS,
        draw(3, 2, 4, 5),
        "half_mse",
        lambda f, y: (f - y).square().sum() / (2 * len(f)),
    ),
    "vector": ("vector", draw(4, 3), draw(4), nn.MSELoss(), nn.MSELoss()),
}


def flat_outputs(model, x):
    """The outputs as a function of all parameters in one vector, and that vector."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    at = torch.cat([p.detach().flatten() for p in model.parameters()])

    def outputs(theta):
        parts = theta.split([s.numel() for s in shapes])
        own = {n: t.view(s) for n, t, s in zip(names, parts, shapes, strict=True)}
        return torch.func.functional_call(model, own, (x,))

    return outputs, at


def brute_force(model, loss, x, y):
    """J (N*O, P), the Gauss-Newton matrix and the Hessian, by torch alone."""
    outputs, at = flat_outputs(model, x)
    f = outputs(at).detach()
    j = torch.autograd.functional.jacobian(outputs, at).reshape(f.numel(), -1)
    h = torch.autograd.functional.hessian(lambda f: loss(f, y), f).reshape(f.numel(), -1)
    whole = torch.autograd.functional.hessian(lambda theta: loss(outputs(theta), y), at)
    return j, j.T @ h @ j, whole


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("case", CASES)
def test_operators(case, chunk):
    kind, x, y, loss, torch_loss = CASES[case]
    model = net(kind)
    j, gauss_newton, hessian = brute_force(model, torch_loss, x, y)
    options = {} if chunk is None else {"samples_at_once": chunk}
    close = {"rtol": 1e-10, "atol": 1e-13}
    kernel = cx.NTK(model, x, **options)
    torch.testing.assert_close(kernel.dense(), j @ j.T, **close)
    assert (kernel.n_samples, kernel.n_outputs) == (len(x), len(j) // len(x))
    torch.testing.assert_close(cx.Jacobian(model, x, **options).dense(), j, **close)
    ggn = cx.GGN(model, loss, (x, y), **options)
    torch.testing.assert_close(ggn.dense(), gauss_newton, **close)
    measured = cx.Hessian(model, loss, (x, y), **options)
    torch.testing.assert_close(measured.dense(), hessian, **close)
    by_callable = cx.GGN(model, torch_loss, (x, y), **options)
    torch.testing.assert_close(by_callable.dense(), gauss_newton, **close)
    if chunk is None:
        streams = [(x[:1], y[:1]), (x[1:], y[1:])]
        if not (isinstance(loss, str) or loss.reduction == "sum"):
            streamed = cx.StreamedGGN(model, loss, streams)
            torch.testing.assert_close(streamed.dense(), gauss_newton, **close)
        dual = ggn.dual()
        if dual is not None:
            got = dual.lift(dual.operator @ dual.restrict(torch.eye(ggn.shape[0]).double()))
            torch.testing.assert_close(got, gauss_newton @ gauss_newton, **close)


@pytest.mark.parametrize("case", ["tokens", "pixels", "images"])
def test_empirical_fisher_sums_terms_of_the_loss(case):
    kind, x, y, loss, torch_loss = CASES[case]
    model = net(kind)
    outputs, at = flat_outputs(model, x)
    j = torch.autograd.functional.jacobian(outputs, at)
    f = outputs(at).detach().requires_grad_()
    value = torch_loss(f, y)
    (slope,) = torch.autograd.grad(value, f)
    if case == "images":
        terms = torch.einsum("ncij,ncijp->np", slope, j)
        m = len(x)
    else:
        order = "ntc,ntcp->ntp" if case == "tokens" else "ncij,ncijp->nijp"
        terms = torch.einsum(order, slope, j).flatten(0, -2)
        kept = y[y != IGNORED]
        weight = getattr(loss, "weight", None)
        m = len(kept) if weight is None else weight[kept].sum()
    found = cx.EmpiricalFisher(model, loss, (x, y)).dense()
    torch.testing.assert_close(found, m * terms.T @ terms, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("chunk", [None, 2])
def test_one_row_a_token(chunk):
    model, x, y = net("tokens"), TOKENS, classes(2, 4, 5)
    options = {"forward": lambda m, x: m(x).flatten(0, 1)}
    if chunk is not None:
        options["samples_at_once"] = chunk
    j, gauss_newton, hessian = brute_force(model, flat, x, y)
    data = (x, y.flatten())
    ggn = cx.GGN(model, nn.CrossEntropyLoss(), data, **options)
    torch.testing.assert_close(ggn.dense(), gauss_newton, rtol=1e-10, atol=1e-13)
    assert ggn.n_samples == 20
    found = cx.Hessian(model, nn.CrossEntropyLoss(), data, **options).dense()
    torch.testing.assert_close(found, hessian, rtol=1e-10, atol=1e-13)
    kernel, right = cx.NTK(model, x, **options), (j @ j.T).view(20, 2, 20, 2)
    blocks = kernel.dense(layout="blocks")
    torch.testing.assert_close(blocks, right.permute(0, 2, 1, 3), rtol=1e-10, atol=1e-13)
    trace = right.diagonal(dim1=1, dim2=3).sum(-1)
    torch.testing.assert_close(kernel.dense(outputs="trace"), trace, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(kernel.diagonal(), (j @ j.T).diagonal(), rtol=1e-10, atol=1e-13)


def test_rows_of_batches_of_other_lengths():
    model = net("tokens")
    parts = [(TOKENS[:3], classes(2, 3, 5)), (TOKENS[3:, :3], classes(2, 1, 3))]
    loss = nn.CrossEntropyLoss()
    want = sum(
        w / 16 * brute_force(model, flat, *p)[1] for w, p in zip((14, 2), parts, strict=True)
    )
    found = cx.StreamedGGN(model, loss, parts).dense()
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-13)
    want = sum(
        w / 16 * brute_force(model, flat, *p)[2] for w, p in zip((14, 2), parts, strict=True)
    )
    found = cx.StreamedHessian(model, loss, parts).dense()
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-13)
    ragged = cx.StreamedNTK(model, [x for x, _ in parts])
    (j1, *_), (j2, *_) = (brute_force(model, flat, *p) for p in parts)
    j = torch.cat([j1, j2])
    torch.testing.assert_close(ragged.dense(), j @ j.T, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (torch.zeros(4, 3, dtype=torch.int64), r"shape \(4, 2\).*or \(4, 5\).*forward=.*\(4, 3\)"),
        (torch.zeros(4, dtype=torch.int64), r"shape \(4, 2\).*or \(4, 5\).*forward=.*\(4,\)"),
        (draw(4, 5, 2).softmax(-1), "sum to one over dimension 1.*forward=.*last dimension"),
    ],
)
def test_labels_that_do_not_fit(labels, text):
    for kind in (cx.GGN, cx.Hessian):
        with pytest.raises(ValueError, match=text):
            kind(net("tokens"), nn.CrossEntropyLoss(), (TOKENS, labels))


def test_two_readings_of_labels_are_an_error():
    x, y = TOKENS[:, :2], torch.zeros(4, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"which dimension.*\(4, 2, 2\).*forward="):
        cx.GGN(net("tokens"), nn.CrossEntropyLoss(), (x, y))
    rows = cx.GGN(
        net("tokens"),
        nn.CrossEntropyLoss(),
        (x, y.flatten()),
        forward=lambda m, x: m(x).flatten(0, 1),
    )
    want = brute_force(net("tokens"), flat, x, y)[1]
    torch.testing.assert_close(rows.dense(), want, rtol=1e-10, atol=1e-13)


def test_padded_and_packed_batches():
    torch.manual_seed(0)

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.RNN(3, 4, batch_first=True), nn.Linear(4, 2)

        def packed(self, x):
            return self.head(self.cell(x)[1][0])

        def forward(self, x, lengths):
            options = {"batch_first": True, "enforce_sorted": False}
            return self.packed(nn.utils.rnn.pack_padded_sequence(x, lengths, **options))

    model, lengths, y = Padded().double(), torch.tensor([5, 3, 2, 4]), torch.tensor([0, 1, 1, 0])
    data = ((TOKENS, lengths), y)
    whole = cx.GGN(model, nn.CrossEntropyLoss(), data).dense()
    chunks = cx.GGN(model, nn.CrossEntropyLoss(), data, samples_at_once=2)
    torch.testing.assert_close(chunks.dense(), whole, rtol=1e-10, atol=1e-13)
    options = {"batch_first": True, "enforce_sorted": False}
    packed = nn.utils.rnn.pack_padded_sequence(TOKENS, lengths, **options)
    found = cx.GGN(
        model, nn.CrossEntropyLoss(), (packed, y), forward=lambda m, x: m.packed(x)
    ).dense()
    torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-13)


def test_a_loss_of_the_whole_result_is_told_what_it_gets():
    with pytest.raises(TypeError, match=r"must take the outputs, a tensor \(4, 5, 2\).*loss=None"):
        cx.Hessian(net("tokens"), lambda out, y: out.loss, (TOKENS, None))


def test_an_object_from_a_model_with_a_function_of_its_own():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net("tokens")

        def forward(self, x):
            return {"logits": Doubled.apply(self.inner(x))}

    x, y = TOKENS, classes(2, 4, 5)
    want = brute_force(net("tokens"), lambda f, y: flat(2 * f, y), x, y)[1]
    found = cx.GGN(Model(), nn.CrossEntropyLoss(), (x, y)).dense()
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-13)


def test_a_scalar():
    model, x = net("tokens"), TOKENS
    found = cx.Hessian(model, lambda f, y: f, (x, None), forward=lambda m, x: m(x).square().mean())
    want = brute_force(model, lambda f, y: f.square().mean(), x, None)[2]
    torch.testing.assert_close(found.dense(), want, rtol=1e-10, atol=1e-13)
