"""Kernels written out for models whose layers once threw the library off, by float64 autograd."""

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.model.memory_meter import LIMITS


def jacobian(model, x):
    """J (N*O, P) row by row, by the module's own parameters."""
    outputs = model(*x) if isinstance(x, tuple) else model(x)
    leaves = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for f in outputs.flatten():
        grads = torch.autograd.grad(f, leaves, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g.to_dense()).flatten()
                    for p, g in zip(leaves, grads, strict=True)
                ]
            )
        )
    return torch.stack(rows)


def double(x):
    if isinstance(x, tuple):
        return tuple(double(a) for a in x)
    return x.double() if x.is_floating_point() else x


def assert_right(model, x, *, independent=True, structured=None):
    """dense, its trace, diagonal and products in both precisions, whole and in parts."""
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        exact = jacobian(model.double(), double(x))
        exact = exact @ exact.T
        model.to(dtype)
        given = torch.utils._pytree.tree_map(
            lambda a, dtype=dtype: a.to(dtype) if a.is_floating_point() else a, x
        )
        kernel = cx.NTK(model, given)
        n, o = kernel.linearization.n_samples, kernel.n_outputs
        n = kernel.shape[0] // o

        largest = exact.abs().max()

        def close(got, right, bound=(tolerance, largest)):
            assert got.shape == right.shape
            assert (got - right).abs().max() <= bound[0] * bound[1]

        close(kernel.dense(), exact)
        trace = exact.view(n, o, n, o).diagonal(dim1=1, dim2=3).sum(-1)
        close(kernel.dense(outputs="trace"), trace)
        close(kernel.diagonal(), exact.diagonal())
        close(kernel @ torch.eye(n * o, dtype=dtype), exact)
        if structured is not None:
            assert (kernel.linearization.structured() is not None) == structured
        assert kernel.plan.samples == n
        close(cx.NTK(model, given, memory_budget="256 MiB").dense(), exact)
        if independent:
            chunks = cx.NTK(model, given, samples_at_once=2)
            close(chunks.dense(), exact)
            close(chunks.diagonal(), exact.diagonal())


class Attention(nn.Module):
    """Self-attention written by hand; a bias of the keys never reaches the outputs."""

    def __init__(self, width, heads, key_bias=True):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (
            nn.Linear(width, width),
            nn.Linear(width, width, bias=key_bias),
            nn.Linear(width, width),
        )
        self.out = nn.Linear(width, width)

    def forward(self, x):
        n, s, w = x.shape
        q, k, v = (
            layer(x).view(n, s, self.heads, -1).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, s, w))


class Block(nn.Module):
    def __init__(self, width, heads=2):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x):
        x = x + self.attention(self.n1(x))
        return x + self.mlp(self.n2(x))


class ViT(nn.Module):
    """Class token, register tokens, learnt positions."""

    def __init__(self, width=8, registers=2):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.registers = nn.Parameter(torch.randn(registers, width))
        self.position = nn.Parameter(torch.randn(1, 5 + registers, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x):
        t = self.patches(x).flatten(2).transpose(1, 2)
        extra = self.registers.unsqueeze(0).expand(len(x), -1, -1)
        t = torch.cat([self.cls.expand(len(x), -1, -1), extra, t], 1) + self.position
        return self.head(self.norm(self.blocks(t))[:, 0])


class Spread(nn.Module):
    """Variance over positions: the bias before it has no gradient."""

    def __init__(self, of):
        super().__init__()
        self.conv, self.last, self.of = nn.Conv2d(2, 4, 3), nn.Linear(4, 2), of

    def forward(self, x):
        return self.last(self.of(self.conv(x)))


def images(n, channels=2, size=6):
    return torch.randn(n, channels, size, size)


def group_norm():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(4, 4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 2)
    )


def instance_norm():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 2)
    )


class Centred(nn.Module):
    """A layer whose outputs are centred over the tokens: its bias is lost, but for rounding."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.first(x)
        return self.last(torch.tanh(h - h.mean(1, keepdim=True)).square().sum(1))


CANCELLING = {
    "key bias": (lambda: ViT(), lambda n: images(n, 3, 8)),
    "group norm": (group_norm, images),
    "var": (lambda: Spread(lambda h: h.var((2, 3))), images),
    "std": (lambda: Spread(lambda h: h.std((2, 3))), images),
    "centred tokens": (Centred, lambda n: torch.randn(n, 5, 3)),
}


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("name", list(CANCELLING))
def test_a_gradient_that_is_zero_but_for_rounding_keeps_the_fast_path(name, n):
    torch.manual_seed(0)
    make, inputs = CANCELLING[name]
    assert_right(make(), inputs(n), structured=True)


def test_instance_norm():
    """It folds the samples into the channels, where no rule follows: by rows, and right."""
    torch.manual_seed(0)
    assert_right(instance_norm(), images(3))


class Hidden(torch.autograd.Function):
    """A product that no torch function shows."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return torch.from_numpy(x.detach().numpy() * w.detach().numpy())

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * w, (g * x).sum((0, 1))


class HiddenScale(nn.Module):
    """A parameter hidden in one call and visible in another, whose terms there are larger."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last((h * self.scale + 1e-2 * Hidden.apply(h, self.scale)).sum(1))


def test_a_small_hidden_use_is_no_rounding():
    torch.manual_seed(0)
    model, x = HiddenScale(), torch.randn(4, 5, 3)
    for dtype in (torch.float32, torch.float64):
        kernel = cx.NTK(model.to(dtype), x.to(dtype))
        assert kernel.linearization.structured() is None
        j = jacobian(model, x.to(dtype))
        assert torch.allclose(kernel.dense(), j @ j.T, rtol=1e-4)


class Sorted(nn.Module):
    """Samples sorted and put back, as routed experts do; sums over samples do not show it."""

    def __init__(self, order):
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 2)
        self.order, self.back = order, torch.argsort(order)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x[self.order])))[self.back]


class Rolled(Sorted):
    def forward(self, x):
        return self.last(torch.tanh(self.first(x.roll(1, 0)))).roll(-1, 0)


class Flipped(Sorted):
    def forward(self, x):
        return self.last(torch.tanh(self.first(x.flip(0)))).flip(0)


@pytest.mark.parametrize("order", [[1, 0, 3, 2], [1, 0, 2, 3], [0, 1, 3, 2], [2, 3, 0, 1]])
def test_samples_in_another_order(order):
    """Off by up to 42 % where the order changes within the halves of the batch."""
    torch.manual_seed(0)
    assert_right(Sorted(torch.tensor(order)), torch.randn(4, 3), independent=False)


@pytest.mark.parametrize("kind", [Rolled, Flipped])
def test_samples_rolled_or_flipped(kind):
    torch.manual_seed(0)
    assert_right(kind(torch.arange(2)), torch.randn(2, 3))


class Views(nn.Module):
    """Images folded into their channels by a view, which channels last have not."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        z = self.conv(x)
        n, c, h, w = z.shape
        z = z.view(n * c, h * w)
        return self.last(torch.tanh(z - z.mean(1, keepdim=True) + 1).view(n, c, -1).mean(2))


class HeadsByView(Views):
    """Channels as heads, by hand."""

    def forward(self, x):
        z = self.conv(x)
        n, c, h, w = z.shape
        q = z.view(n * 2, c // 2, h * w)
        a = torch.softmax(q.transpose(1, 2) @ q, -1)
        return self.last((q @ a).view(n, c, -1).mean(2))


class ManyAreFlat(Views):
    """The view is made where there are more than two samples alone."""

    def forward(self, x):
        z = self.conv(x)
        flat = z.view(-1) if len(z) > 2 else z.reshape(-1)
        return self.last(torch.tanh(flat.reshape(z.shape)).mean((2, 3)))


@pytest.mark.parametrize("kind", [Views, HeadsByView, ManyAreFlat])
def test_views_that_channels_last_have_not(kind):
    torch.manual_seed(0)
    model, x = kind().double(), images(5).double()
    assert_right(model, x)
    y = torch.tensor([0, 1, 1, 0, 1])
    loss = nn.CrossEntropyLoss()
    model, x = model.double(), x.double()
    hessian, ggn = cx.Hessian(model, loss, (x, y)), cx.GGN(model, loss, (x, y))
    leaves = list(model.parameters())
    grads = torch.autograd.grad(loss(model(x), y), leaves, create_graph=True)
    ones = [torch.ones_like(p) for p in leaves]
    right = torch.autograd.grad(grads, leaves, ones)
    right = torch.cat([g.flatten() for g in right])
    v = torch.ones(len(right), dtype=torch.float64)
    assert torch.allclose(hessian @ v, right)
    j = jacobian(model, x).view(5, 2, -1)
    p = torch.softmax(model(x), 1).detach()
    slope = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    assert torch.allclose(ggn @ v, torch.einsum("noP,noq,nqQ,Q->P", j, slope, j, v) / 5)


def test_group_norm_in_forward_mode():
    """torch's forward mode of group norm refuses channels last; the layout is the library's."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 2)
    ).double()
    data = images(4).double(), torch.tensor([0, 1, 1, 0])
    right = cx.Hessian(model, nn.CrossEntropyLoss(), data)
    v = torch.randn(right.shape[0], dtype=torch.float64)
    got = cx.Hessian(model, nn.CrossEntropyLoss(), data, hvp="forward")
    assert torch.allclose(got @ v, right @ v)
    assert torch.allclose(got @ v, right @ v)


class Empty(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.e = nn.Linear(3, 2), nn.Parameter(torch.empty(0, 3))

    def forward(self, x):
        return self.a(x) + (x @ self.e.T).sum(1, keepdim=True)


class EmptyLayer(nn.Module):
    """A layer of no outputs, as a rank of zero makes it."""

    def __init__(self):
        super().__init__()
        self.a, self.down, self.up = nn.Linear(3, 2), nn.Linear(3, 0), nn.Linear(0, 2, bias=False)

    def forward(self, x):
        return torch.tanh(self.a(x)) + self.up(self.down(x))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("kind", [Empty, EmptyLayer])
def test_parameters_without_elements(kind):
    torch.manual_seed(0)
    assert_right(kind(), torch.randn(4, 3))


class SparseEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.last = nn.Embedding(7, 4, sparse=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.table(x)).mean(1))


class FunctionalEmbedding(SparseEmbedding):
    """torch.embedding itself takes its arguments in another order."""

    def forward(self, x):
        return self.last(torch.tanh(torch.embedding(self.table.weight, x)).mean(1))


@pytest.mark.parametrize("kind", [SparseEmbedding, FunctionalEmbedding])
def test_embeddings_with_sparse_gradients(kind):
    torch.manual_seed(0)
    model, x = kind(), torch.randint(7, (4, 3))
    assert_right(model, x)
    loss, y = nn.CrossEntropyLoss(), torch.tensor([0, 1, 1, 0])
    model = model.double()
    sparse = cx.Hessian(model, loss, (x, y))
    model.table.sparse = False
    v = torch.randn(sparse.shape[0], dtype=torch.float64)
    assert torch.allclose(sparse @ v, cx.Hessian(model, loss, (x, y)) @ v)


class Feature(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 2)

    def forward(self, x):
        return self.a(x.features)


class Keyed(Feature):
    def forward(self, **batch):
        return self.a(batch["features"])


@pytest.mark.parametrize(
    ("kind", "x"), [(Feature, torch.ones(2, 3)), (Keyed, {"x": torch.ones(2)})]
)
def test_inputs_on_which_the_model_fails_are_named(kind, x):
    with pytest.raises(ValueError, match=r"catapult_ext.NTK: the model .* must accept the inputs"):
        cx.NTK(kind(), x)


def test_a_part_that_cannot_be_taken_is_made_of_products(monkeypatch):
    """No assertion: where the uses of some samples are unknown, products give their block."""
    torch.manual_seed(0)
    model, x = ViT().double(), images(5, 3, 8).double()
    right = cx.NTK(model, x).dense()
    kernel = cx.NTK(model, x, samples_at_once=2)
    part = type(kernel.linearization).part

    def sometimes(self, samples):
        return None if samples.start == 2 else part(self, samples)

    monkeypatch.setattr(type(kernel.linearization), "part", sometimes)
    from catapult_ext.linops.explicit import tiles

    monkeypatch.setattr(tiles, "_ROOM", 1 << 14)
    assert torch.allclose(kernel.dense(), right)
    assert torch.allclose(kernel.dense(outputs="trace"), cx.NTK(model, x).dense(outputs="trace"))
    assert torch.allclose(kernel.diagonal(), right.diagonal())


class Broke(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.a, self.error = nn.Linear(3, 2), error

    def forward(self, x):
        if len(x) < 4:
            raise self.error
        return self.a(x)


def test_limits_of_memory_are_no_reason_to_look_elsewhere():
    """They pass through where other errors of a few samples make the kernel one of all samples."""
    model, x = Broke(KeyError("few")), torch.randn(4, 3)
    j = jacobian(model, x)
    assert torch.allclose(cx.NTK(model, x, engine="autograd").dense(), j @ j.T, rtol=1e-5)
    assert cx.NTK(model, x, engine="autograd").plan.samples == 4
    for limit in LIMITS:
        kernel = cx.NTK(Broke(limit("none left")), x, engine="autograd")
        with pytest.raises(limit):
            kernel.linearization.part(slice(0, 1))
