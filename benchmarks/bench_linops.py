"""NTK, GGN and Hessian products in units of a forward pass of the same model, and lambda_max."""

import pytest
import torch
from harness import Case
from torch import nn

import catapult_ext as cx

# width, hidden layers, N, K; "at most 2.6 forward passes" is a speed-up of 1 / 2.6 over one.
SHAPES = {
    "w1024-n512-k1": (1024, 3, 512, 1),
    "w1024-n256-k1": (1024, 3, 256, 1),
    "w1024-n512-k8": (1024, 3, 512, 8),
    "w64-n64-k1": (64, 2, 64, 1),
}
ASKED = {"w1024-n512-k1": 1 / 2.6}


def problem(width, depth, samples, outputs=10, inputs=784):
    torch.manual_seed(0)
    layers = []
    for i in range(depth):
        layers += [nn.Linear(inputs if i == 0 else width, width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, outputs))
    x = torch.randn(samples, inputs)
    return model, x, torch.randn(samples, outputs)


def forward(model, x):
    with torch.no_grad():
        return model(x)


def functional_product(model, x, v):
    """What a user writes with torch.func: the forward pass runs again in both halves."""
    params = {k: p.detach() for k, p in model.named_parameters()}

    def f(p):
        return torch.func.functional_call(model, p, (x,))

    _, back = torch.func.vjp(f, params)
    return torch.func.jvp(f, (params,), back(v.reshape(len(x), -1)))[1].reshape(-1)


def agrees(got, exact, tolerance=1e-4):
    assert (got - exact).norm() <= tolerance * exact.norm()


CASES = [(name, "dense-chain") for name in SHAPES]
CASES += [(name, "autograd") for name in ("w1024-n256-k1", "w64-n64-k1")]


@pytest.mark.parametrize(("name", "engine"), CASES)
def test_ntk_product(measure, name, engine):
    width, depth, samples, columns = SHAPES[name]
    model, x, _ = problem(width, depth, samples)
    kernel = cx.NTK(model, x, engine=engine)
    v = torch.randn(kernel.shape[0], columns)

    def each(product):
        return lambda: [product(v[:, k]) for k in range(columns)]

    measure(
        Case(
            ours=lambda: kernel @ v,
            baselines={
                "K forward passes": each(lambda _: forward(model, x)),
                "torch.func vjp + jvp": each(lambda u: functional_product(model, x, u)),
            },
            check=lambda: agrees(kernel @ v[:, 0], functional_product(model, x, v[:, 0])),
            target={"K forward passes": ASKED[name]}
            if engine == "dense-chain" and name in ASKED
            else {},
        )
    )


def images(model, samples):
    """The model and inputs in the memory format that its forward pass likes best on a CPU."""
    model = model.eval().to(memory_format=torch.channels_last)
    x = torch.randn(samples, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    return model, x


def resnet20(samples=128):
    torch.manual_seed(0)
    return images(cx.models.resnet(20, 10), samples)


def test_ntk_product_resnet20(measure):
    model, x = resnet20()
    kernel = cx.NTK(model, x)
    v = torch.randn(kernel.shape[0])
    measure(
        Case(
            ours=lambda: kernel @ v,
            baselines={
                "forward pass": lambda: forward(model, x),
                "torch.func vjp + jvp": lambda: functional_product(model, x, v),
            },
            check=lambda: agrees(kernel @ v, functional_product(model, x, v)),
            target={"torch.func vjp + jvp": 1.6, "forward pass": 1 / 3.2},
        )
    )


class ViT(nn.Module):
    """A small vision transformer: patches of 4 x 4, four layers of width 64."""

    def __init__(self, outputs=10, width=64, layers=4, heads=4):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn(1, 65, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        """(N, 3, 32, 32) to (N, outputs)."""
        patches = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], 1)
        return self.head(self.encoder(tokens + self.place)[:, 0])


def vit(samples=128):
    torch.manual_seed(0)
    return images(ViT(), samples)


# Few samples measure what a construction costs besides its passes, many the number of passes.
FREEZE = {
    "mlp": lambda: problem(1024, 3, 512)[:2],
    "mlp-small": lambda: problem(256, 2, 128)[:2],
    "resnet20": resnet20,
    "resnet20-n16": lambda: resnet20(16),
    "vit": vit,
    "vit-n16": lambda: vit(16),
}


@pytest.mark.parametrize("name", FREEZE)
def test_freeze(measure, name):
    model, x = FREEZE[name]()
    measure(
        Case(
            ours=lambda: cx.NTK(model, x),
            baselines={"forward pass": lambda: forward(model, x)},
            target={"forward pass": 1 / 3} if name in ("mlp", "resnet20") else {},
        )
    )


def test_dense_kernel(measure):
    samples = 128
    model, x, _ = problem(512, 3, samples)
    kernel = cx.NTK(model, x)
    measure(
        Case(
            ours=kernel.dense,
            baselines={"forward pass": lambda: forward(model, x)},
            check=lambda: agrees(kernel.dense()[:, 0], kernel @ torch.eye(samples * 10)[0]),
        )
    )


@pytest.mark.parametrize("kind", ["GGN", "Hessian"])
def test_lambda_max(measure, kind):
    model, x, y = problem(512, 3, 512)
    exact = cx.eigsh(getattr(cx, kind)(model, "half_mse", (x, y)), tol=1e-5).eigenvalues

    def solve():
        return cx.eigsh(getattr(cx, kind)(model, "half_mse", (x, y)))

    measure(
        Case(
            ours=solve,
            baselines={"forward pass": lambda: forward(model, x)},
            check=lambda: agrees(solve().eigenvalues, exact, 1e-3),
            unit=("products", solve().matvecs),
        )
    )
