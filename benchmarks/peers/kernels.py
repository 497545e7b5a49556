"""Rows: full empirical NTK, and its products."""

from __future__ import annotations

from typing import Any

import torch
from jax_side import remote
from problems import KernelOracle, gaussian, mlp, ntk_product
from timing import Contender, Row
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import catapult_ext as cx


def contraction(model: nn.Module, x: Tensor, compiled: bool = False) -> Any:
    """torch.func: per-sample Jacobians, contracted; (N*O, N*O)."""
    params = {k: p.detach() for k, p in model.named_parameters()}

    def single(p: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, p, (sample.unsqueeze(0),)).squeeze(0)

    def kernel(p: dict[str, Tensor], points: Tensor) -> Tensor:
        rows = vmap(jacrev(single), (None, 0))(p, points).values()
        flat = [j.flatten(0, 1).flatten(1) for j in rows]
        return sum((j @ j.T for j in flat[1:]), flat[0] @ flat[0].T)

    call = torch.compile(kernel) if compiled else kernel
    return lambda _: call(params, x)


def vector_products(model: nn.Module, x: Tensor, outputs: int) -> Any:
    """torch.func: the kernel times the identity, 64 columns at a time."""
    params = {k: p.detach() for k, p in model.named_parameters()}

    def f(p: dict[str, Tensor]) -> Tensor:
        return functional_call(model, p, (x,))

    def call(_: int) -> Tensor:
        n = len(x) * outputs
        _, back = torch.func.vjp(f, params)

        def product(u: Tensor) -> Tensor:
            return torch.func.jvp(f, (params,), back(u.view(len(x), outputs)))[1].reshape(-1)

        return vmap(product, chunk_size=64)(torch.eye(n))

    return call


def nngeometry(model: nn.Module, x: Tensor, outputs: int) -> Any:
    """Nngeometry 0.4: GramMatrix, layout (O, N, O, N) made flat."""
    from nngeometry import GramMatrix
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(x), batch_size=len(x))

    def call(_: int) -> Tensor:
        gram = GramMatrix(model=model, loader=loader, function=lambda *d: model(d[0]))
        blocks = gram.to_torch() if hasattr(gram, "to_torch") else gram.get_dense_tensor()
        n = len(x) * outputs
        return blocks.permute(1, 0, 3, 2).reshape(n, n).detach()

    return call


def layer_gram(model: nn.Module, x: Tensor) -> Any:
    """The layer identity by hand in plain torch, bias-free ReLU chain only."""
    weights = [p.detach() for p in model.parameters()]

    def call(_: int) -> Tensor:
        h, inputs, masks = x, [], []
        for i, w in enumerate(weights):
            inputs.append(h)
            h = h @ w.T
            if i < len(weights) - 1:
                masks.append((h > 0).float())
                h = h * masks[-1]
        n, o = h.shape
        g = torch.eye(o).repeat(n, 1)
        theta = torch.zeros(n * o, n * o)
        for i in reversed(range(len(weights))):
            a = inputs[i] @ inputs[i].T
            theta += (g @ g.T) * a.repeat_interleave(o, 0).repeat_interleave(o, 1)
            if i:
                g = (g @ weights[i]) * masks[i - 1].repeat_interleave(o, 0)
        return theta

    return call


def full(name: str, words: str, model: Any, x: Tensor, outputs: int, skip: tuple = ()) -> Row:
    """One row of full kernels; ``skip`` names methods that would take minutes."""
    oracle = KernelOracle(model, x, outputs)
    entries = {
        "torch.func Jacobian contraction": contraction(model, x),
        "torch.func contraction, torch.compile": contraction(model, x, compiled=True),
        "torch.func vjp + jvp on the identity": vector_products(model, x, outputs),
        "nngeometry 0.4 GramMatrix": nngeometry(model, x, outputs),
    }
    if name.startswith("ntk-mlp"):
        entries["layer Gram by hand in torch"] = layer_gram(model, x)
    ours = Contender(
        "catapult_ext", {"": lambda _: cx.NTK(model, x).dense()}, ours=True
    )  # freezing included
    rows = [Contender(n, {"": call}) for n, call in entries.items() if n not in skip]
    kind = "mlp" if name.startswith("ntk-mlp") else "cnn" if name == "ntk-cnn" else ""
    if kind:
        weights = [p.detach().numpy() for p in model.parameters()]
        for number, method in ((3, "structured"), (1, "contraction"), (2, "vector products")):
            title = f"neural-tangents 0.6.5 {method}"
            if title not in skip:
                call = remote("ntk", kind=kind, implementation=number, x=x.numpy(), w=weights)
                rows.append(Contender(title, {"": call}, remote=True))

    def error(_: int, kernel: Tensor) -> float:
        return oracle.error(kernel)

    return Row(name, words, [ours, *rows], error, 1e-4)


def ntk_mlp_o1() -> Row:
    """O = 1."""
    model = mlp(1)
    return full("ntk-mlp-o1", "full NTK, MLP 784-512x3-1, N = 128", model, gaussian(128, 784), 1)


SLOW = (
    "neural-tangents 0.6.5 contraction",
    "neural-tangents 0.6.5 vector products",
    "torch.func Jacobian contraction",
    "torch.func vjp + jvp on the identity",
    "nngeometry 0.4 GramMatrix",
    "torch.func contraction, torch.compile",
)


def ntk_mlp_o1_n512() -> Row:
    """O = 1, more samples: the fast methods only."""
    words = "full NTK, MLP 784-512x3-1, N = 512"
    return full("ntk-mlp-o1-n512", words, mlp(1), gaussian(512, 784), 1, SLOW)


def ntk_mlp_w1024() -> Row:
    """O = 1, wider: the fast methods only."""
    words = "full NTK, MLP 784-1024x3-1, N = 512"
    return full("ntk-mlp-w1024", words, mlp(1, width=1024), gaussian(512, 784), 1, SLOW)


def ntk_mlp_o10() -> Row:
    """O = 10."""
    skip = ("neural-tangents 0.6.5 contraction",)  # 27 s a call
    words = "full NTK, MLP 784-512x3-10, N = 64"
    return full("ntk-mlp-o10", words, mlp(10), gaussian(64, 784), 10, skip)


def ntk_mlp_o10_n128() -> Row:
    """O = 10, more samples: the fast methods only."""
    words = "full NTK, MLP 784-512x3-10, N = 128"
    return full("ntk-mlp-o10-n128", words, mlp(10), gaussian(128, 784), 10, SLOW)


def ntk_cnn() -> Row:
    """Two convolutions."""
    model = cx.models.small_cnn(32, 10, in_channels=3, channels=32, parameterisation="standard")
    words = "full NTK, CNN 3-32-32, pool, dense, 32 x 32, O = 10, N = 16"
    return full("ntk-cnn", words, model.requires_grad_(), gaussian(16, 3, 32, 32), 10)


def ntk_wrn() -> Row:
    """WRN-16-1, batch normalisation with running statistics."""
    model = cx.models.wide_resnet(16, 1, 10).eval()
    words = "full NTK, WRN-16-1 (running statistics), 32 x 32, O = 10, N = 16"
    row = full("ntk-wrn", words, model.requires_grad_(), gaussian(16, 3, 32, 32), 10)
    row.notes.append("neural-tangents: no WRN written for it here")
    return row


def product(columns: int) -> Row:
    """Theta V with the model frozen; set-up outside the timing for whoever has one."""
    model, x = mlp(10, width=1024), gaussian(512, 784)
    oracle = KernelOracle(model, x, 10, columns)
    v = oracle.v.float()
    kernel = cx.NTK(model, x)
    params = {k: p.detach() for k, p in model.named_parameters()}

    def f(p: dict[str, Tensor]) -> Tensor:
        return functional_call(model, p, (x,))

    plain = ntk_product(model, x)

    def one(p: dict[str, Tensor], u: Tensor) -> Tensor:
        def g(q: dict[str, Tensor]) -> Tensor:
            return functional_call(model, q, (x,))

        _, back = torch.func.vjp(g, p)
        return torch.func.jvp(g, (p,), back(u.view(512, 10)))[1].reshape(-1)

    compiled = torch.compile(one)
    stored = torch.func.vjp(f, params)[1]
    linear = torch.func.linearize(f, params)[1]

    def each(call: Any) -> Any:
        return lambda _: torch.stack([call(u) for u in v.T], 1)

    from curvlinops import JacobianLinearOperator, TransposedJacobianLinearOperator

    data, weights = [(x, torch.zeros(512, 10))], list(model.parameters())
    forth = JacobianLinearOperator(model, weights, data, check_deterministic=False)
    back = TransposedJacobianLinearOperator(model, weights, data, check_deterministic=False)
    calls = {
        "torch.func vjp + jvp": lambda _: plain(v),
        "torch.func vjp + jvp, torch.compile": each(lambda u: compiled(params, u)),
        "torch.func linearize + stored vjp": each(
            lambda u: linear(stored(u.view(512, 10))[0]).reshape(-1)
        ),
        "curvlinops 3.0.1 J (J' V)": lambda _: forth @ (back @ v),
    }
    if columns > 1:
        batched = vmap(lambda u: linear(stored(u.view(512, 10))[0]).reshape(-1), 1, 1)
        calls["torch.func linearize + stored vjp, vmap"] = lambda _: batched(v)
    entries = [Contender(n, {"": c}) for n, c in calls.items()]
    ws = [p.detach().numpy() for p in model.parameters()]
    for method in ("neural-tangents 0.6.5 vp", "jax.linearize + vjp"):
        call = remote("vp", method=method, x=x.numpy(), w=ws, v=v.numpy())
        entries.append(Contender(method, {"": call}, remote=True))
    ours = Contender("catapult_ext", {"": lambda _: kernel @ v}, ours=True)

    def error(_: int, got: Tensor) -> float:
        return oracle.product_error(torch.as_tensor(got))

    words = f"NTK product, K = {columns}, MLP 784-1024x3-10, N = 512"
    return Row(f"product-k{columns}", words, [ours, *entries], error, 1e-4)


ROWS = {
    "ntk-mlp-o1": ntk_mlp_o1,
    "ntk-mlp-o1-n512": ntk_mlp_o1_n512,
    "ntk-mlp-w1024": ntk_mlp_w1024,
    "ntk-mlp-o10": ntk_mlp_o10,
    "ntk-mlp-o10-n128": ntk_mlp_o10_n128,
    "ntk-cnn": ntk_cnn,
    "ntk-wrn": ntk_wrn,
    "product-k1": lambda: product(1),
    "product-k8": lambda: product(8),
}
