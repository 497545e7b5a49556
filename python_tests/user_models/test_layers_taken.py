"""Layers and options of models that were refused without need, against brute force in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import catapult_ext as cx

CE = nn.CrossEntropyLoss()
IDS, OFFSETS = torch.tensor([0, 1, 2, 2, 3, 5, 2]), torch.tensor([0, 2, 2, 4])
WEIGHTS = torch.tensor([0.5, -1.0, 2.0, 1.0, 0.3, 1.5, -0.7], dtype=torch.float64)


class Between(nn.Module):
    """A layer without parameters between two dense ones."""

    def __init__(self, layer):
        super().__init__()
        self.a, self.b, self.layer = nn.Linear(6, 8), nn.Linear(8, 3), layer

    def forward(self, x):
        return self.b(self.layer(self.a(x)))


class Bags(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.weighted = options.get("mode") == "sum"
        self.e, self.b = nn.EmbeddingBag(6, 4, **options), nn.Linear(4, 3)

    def forward(self, offsets):
        return self.b(torch.tanh(self.e(IDS, offsets, WEIGHTS if self.weighted else None)))


class BagsByHand(nn.Module):
    """The same, one bag after another."""

    def __init__(self, bags):
        super().__init__()
        self.e, self.b, self.weighted = bags.e, bags.b, bags.weighted

    def forward(self, offsets):
        ends = offsets.tolist()
        ends = ends if self.e.include_last_offset else [*ends, len(IDS)]
        bags = []
        for start, end in itertools.pairwise(ends):
            kept = [i for i in range(start, end) if IDS[i] != self.e.padding_idx]
            rows = self.e.weight[IDS[kept]]
            rows = rows * WEIGHTS[kept, None] if self.weighted else rows
            mean = rows.mean(0) if self.e.mode == "mean" else rows.sum(0)
            empty = self.e.weight.new_zeros(4)
            bags.append(empty if not kept else rows.amax(0) if self.e.mode == "max" else mean)
        return self.b(torch.tanh(torch.stack(bags)))


class ChosenAttention(nn.Module):
    """Asks for a kernel that has no second derivative, as vit-pytorch and x-transformers do."""

    def __init__(self, chosen=True):
        super().__init__()
        self.a, self.b, self.chosen = nn.Linear(6, 24), nn.Linear(8, 3), chosen

    def forward(self, x):
        q, k, v = self.a(x.unsqueeze(1) * torch.arange(1, 5).unsqueeze(1)).chunk(3, -1)
        kinds = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
        with sdpa_kernel(kinds if self.chosen and q.dtype == torch.float64 else SDPBackend.MATH):
            h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])
        return self.b(h[:, 0].mean(1))


class Spectral(nn.Module):
    """A Fourier layer with complex weights, as neural operators have."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.w = nn.Parameter(torch.randn(5, dtype=torch.cdouble))

    def forward(self, x):
        return self.b(torch.tanh(torch.fft.irfft(torch.fft.rfft(self.a(x)) * self.w, n=8)))


class SpectralByParts(Spectral):
    """The same with the parts of the weights as one real parameter."""

    def __init__(self, of):
        super().__init__()
        self.a, self.b = of.a, of.b
        self.w = nn.Parameter(torch.view_as_real(of.w.detach()).clone())

    def forward(self, x):
        spectrum = torch.fft.rfft(self.a(x)) * torch.view_as_complex(self.w)
        return self.b(torch.tanh(torch.fft.irfft(spectrum, n=8)))


def x():
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _pair(layer, plain):
    model = Between(layer).double()
    other = Between(plain).double()
    other.load_state_dict(model.state_dict())
    return model, other, x()


def cond(h):
    return torch.cond(h.sum() > 0, lambda h: h.sin(), lambda h: (h * h).cos(), (h,))


def _bags(offsets=OFFSETS, **options):
    model = Bags(**options).double()
    return model, BagsByHand(model), offsets


def attention():
    model, other = ChosenAttention().double(), ChosenAttention(chosen=False).double()
    other.load_state_dict(model.state_dict())
    return model, other, x()


def spectral():
    model = Spectral().double()
    return model, SpectralByParts(model), x()


class OwnFunction(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, h):
        return self.function(h)


MODELS = {
    "RReLU in eval": lambda: _pair(nn.RReLU().eval(), nn.LeakyReLU((1 / 8 + 1 / 3) / 2)),
    "native dropout of nothing": lambda: _pair(
        OwnFunction(lambda h: torch.native_dropout(h.sin(), 0.0, True)[0]), OwnFunction(torch.sin)
    ),
    "native dropout in eval": lambda: _pair(
        OwnFunction(lambda h: torch.native_dropout(h.sin(), 0.5, False)[0]), OwnFunction(torch.sin)
    ),
    "cond": lambda: _pair(
        OwnFunction(cond), OwnFunction(lambda h: h.sin() if h.sum() > 0 else (h * h).cos())
    ),
    "bags": _bags,
    "weighted bags": lambda: _bags(mode="sum"),
    "largest of bags": lambda: _bags(mode="max"),
    "padded bags": lambda: _bags(padding_idx=2),
    "last offset": lambda: _bags(torch.tensor([0, 2, 2, 4, 7]), include_last_offset=True),
    "attention kernel chosen by the model": attention,
    "complex parameters": spectral,
}


def brute_force(model, loss_of, inputs):
    """J (N*O, P) and the Hessian of the loss, row by row."""
    params = list(model.parameters())

    def flat(grads):
        parts = zip(grads, params, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in parts])

    def rows(values):
        keep = {"retain_graph": True, "allow_unused": True}
        none = torch.zeros_like(flat([None] * len(params)))
        return torch.stack(
            [
                flat(torch.autograd.grad(a, params, **keep)) if a.requires_grad else none
                for a in values
            ]
        )

    out = model(inputs)
    jacobian = rows(out.flatten())
    grads = torch.autograd.grad(loss_of(model(inputs)), params, create_graph=True)
    return jacobian.detach(), rows(flat(grads)).detach()


def close(got, right):
    assert (got - right).abs().max() <= 1e-10 * right.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_products_and_dense_kernels(name):
    torch.manual_seed(0)
    model, plain, inputs = MODELS[name]()
    y = torch.tensor([0, 2, 1, 1])
    order = [n for n, _ in model.named_parameters()]
    same = dict(plain.named_parameters())
    assert set(same) == set(order)
    jacobian, hessian = brute_force(plain, lambda f: CE(f, y), inputs)
    names = [n for n, p in same.items() for _ in range(p.numel())]
    at = torch.tensor([i for n in order for i, m in enumerate(names) if m == n])
    jacobian, hessian = jacobian[:, at], hessian[at][:, at]
    theta = jacobian @ jacobian.T
    kernel = cx.NTK(model, inputs)
    close(kernel.dense(), theta)
    close(kernel @ torch.eye(12, dtype=torch.float64), theta)
    operator = cx.Hessian(model, CE, (inputs, y))
    close(operator @ torch.eye(len(hessian), dtype=torch.float64), hessian)
    p = torch.softmax(plain(inputs).detach(), 1)
    blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    ggn = jacobian.T @ torch.block_diag(*blocks) @ jacobian / 4
    close(cx.GGN(model, CE, (inputs, y)) @ torch.eye(len(hessian), dtype=torch.float64), ggn)


def test_flags_of_attention_are_as_before():
    def flags():
        cuda = torch.backends.cuda
        return (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled())

    torch.manual_seed(0)
    model = ChosenAttention().double()
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        before = flags()
        cx.NTK(model, x())
        assert flags() == before
    cx.NTK(model, x())
    assert flags() == (True, True, True)


def test_complex_parameters_with_an_optimizer():
    """Adam takes the parts of a complex parameter as two real ones."""
    torch.manual_seed(0)
    model = Spectral().double()
    parts, y = SpectralByParts(model), torch.tensor([0, 2, 1, 1])
    tops = []
    for one in (model, parts):
        optimizer = torch.optim.Adam(one.parameters(), eps=1e-3)
        CE(one(x()), y).backward()
        with torch.no_grad():
            kept = [p.clone() for p in one.parameters()]
            optimizer.step()
            for p, value in zip(one.parameters(), kept, strict=True):
                p.copy_(value)
        ggn = cx.GGN(one, CE, (x(), y))
        tops.append(cx.eigsh(cx.Preconditioned(ggn, optimizer, one), tol=1e-10).eigenvalues)
        optimizer.zero_grad()
    close(*tops)


def test_outputs_of_another_precision():
    """A float64 model whose layer or loss computes in float32, as transformers' do."""
    torch.manual_seed(0)
    model, y = Between(nn.Tanh()).double(), torch.tensor([0, 2, 1, 1])
    right = cx.eigsh(cx.GGN(model, CE, (x(), y)), tol=1e-10).eigenvalues
    low = cx.eigsh(cx.GGN(model, CE, (x(), y), forward=lambda m, x: m(x).float()))
    assert low.eigenvalues.dtype == torch.float64
    assert (low.eigenvalues - right).abs() <= low.errors
    wide = cx.eigsh(cx.GGN(model.float(), CE, (x().float(), y), forward=lambda m, x: m(x).double()))
    assert wide.eigenvalues.dtype == torch.float32
    assert (wide.eigenvalues - right).abs() <= wide.errors


class SeedsItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
        return self.a(x + noise)


def test_a_generator_of_the_models_own():
    torch.manual_seed(0)
    model = SeedsItself().double()
    with pytest.raises(ValueError, match=r"NTK: the forward pass draws random .* dropout='fixed'"):
        cx.NTK(model, x())
    jacobian, _ = brute_force(model, lambda f: f.square().sum(), x())
    close(cx.NTK(model, x(), dropout="fixed").dense(), jacobian @ jacobian.T)
