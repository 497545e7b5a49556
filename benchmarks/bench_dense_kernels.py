"""Kernels of a vision transformer and a WRN-16-1 written out, against Jacobians of torch.func."""

import pytest
import torch
from harness import Case
from torch import nn

import catapult_ext as cx

WIDTH, BLOCKS, HEADS = 64, 4, 4
PATCH, SAMPLES, OUTPUTS = 4, 16, 10


class Block(nn.Module):
    """Eager attention; the keys with a bias as in transformers, or all three without."""

    def __init__(self, key_bias: bool) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=key_bias) for _ in range(3))
        self.o = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x):
        """(N, S, W) to the same."""
        n, s, w = x.shape
        z = self.n1(x)
        q, k, v = (
            layer(z).view(n, s, HEADS, -1).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        a = torch.softmax(q @ k.transpose(-1, -2) / (w // HEADS) ** 0.5, -1)
        x = x + self.o((a @ v).transpose(1, 2).reshape(n, s, w))
        return x + self.mlp(self.n2(x))


class ViT(nn.Module):
    """Class token, learnt positions, a linear head."""

    def __init__(self, key_bias: bool) -> None:
        super().__init__()
        tokens = (32 // PATCH) ** 2 + 1
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
        self.position = nn.Parameter(torch.randn(1, tokens, WIDTH) * 0.02)
        self.blocks = nn.Sequential(*(Block(key_bias) for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, OUTPUTS)

    def forward(self, x):
        """Images (N, 3, 32, 32) to (N, O)."""
        t = self.patches(x).flatten(2).transpose(1, 2)
        t = torch.cat([self.cls.expand(len(x), -1, -1), t], 1) + self.position
        return self.head(self.norm(self.blocks(t))[:, 0])


def contracted(model, x, jacobians):
    """Sum over the parameters of J_p J_p', as one matrix product each."""
    params = {k: p.detach() for k, p in model.named_parameters()}
    kernel = torch.zeros(len(x) * OUTPUTS, len(x) * OUTPUTS)
    for j in jacobians(model, params, x):
        rows = j.reshape(len(kernel), -1)
        kernel.addmm_(rows, rows.T)
    return kernel


def reverse(model, params, x):
    """Over the samples by vmap of jacrev, which is vmap over the outputs."""

    def one(p, a):
        return torch.func.functional_call(model, p, (a[None],))[0]

    return torch.vmap(torch.func.jacrev(one), (None, 0))(params, x).values()


def output_by_output(model, params, x):
    """A loop over the outputs of vmap over the samples of grad."""

    def one(p, a, o):
        return torch.func.functional_call(model, p, (a[None],))[0, o]

    rows = [
        torch.vmap(torch.func.grad(lambda p, a, o=o: one(p, a, o)), (None, 0))(params, x)
        for o in range(OUTPUTS)
    ]
    return [torch.stack([r[k] for r in rows], 1) for k in params]


@pytest.mark.parametrize("fresh", [False, True], ids=["kernel", "frozen-and-kernel"])
@pytest.mark.parametrize("key_bias", [False, True], ids=["no-bias", "key-bias"])
def test_vit(measure, key_bias, fresh):
    torch.manual_seed(0)
    model, x = ViT(key_bias).eval(), torch.randn(SAMPLES, 3, 32, 32)
    kernel = cx.NTK(model, x)
    ways = {
        "torch.func vmap(jacrev)": lambda: contracted(model, x, reverse),
        "torch.func vmap(grad) per output": lambda: contracted(model, x, output_by_output),
    }
    exact = contracted(model, x, reverse)

    def agrees():
        for got in (kernel.dense(), contracted(model, x, output_by_output)):
            assert (got - exact).abs().max() <= 1e-4 * exact.abs().max()

    measure(
        Case(
            ours=(lambda: cx.NTK(model, x).dense()) if fresh else kernel.dense,
            baselines=ways,
            check=agrees,
            target={} if fresh else {"torch.func vmap(jacrev)": 1.5},
        )
    )


@pytest.mark.parametrize("fresh", [False, True], ids=["kernel", "frozen-and-kernel"])
@pytest.mark.parametrize("samples", [16, 64])
def test_wide_resnet(measure, quick, samples, fresh):
    if quick and samples > 16:
        pytest.skip("the smaller one is enough")
    torch.manual_seed(0)
    model = cx.models.wide_resnet(16, 1, OUTPUTS).eval()
    x = torch.randn(2 if quick else samples, 3, 32, 32)
    kernel = cx.NTK(model, x)
    exact = contracted(model, x, reverse)

    def agrees():
        assert (kernel.dense() - exact).abs().max() <= 1e-4 * exact.abs().max()

    ways = {
        "torch.func vmap(jacrev)": lambda: contracted(model, x, reverse),
        "again": (lambda: cx.NTK(model, x).dense()) if fresh else kernel.dense,
    }
    measure(
        Case(
            ours=ways["again"],
            baselines=ways,
            check=agrees,
            target={"torch.func vmap(jacrev)": 1.2 if samples == 16 else 1.7},
        )
    )
