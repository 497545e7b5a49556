"""NTK, GGN and Hessian of a zoo of models against brute force, by every engine that can."""

import pytest
import torch
from linops import zoo
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.engines.autograd import AutogradLinearization
from catapult_ext.linops.model.pass_tree import Tree
from catapult_ext.testing.tolerances import assert_close as close

CASES = [
    (name, engine)
    for name, (_, _, chosen) in zoo.ZOO.items()
    for engine in ("dense-chain", "autograd")
    if chosen == "dense-chain" or engine == "autograd"
]
LINEARIZED = ("gpt", "smooth", "unused", "conv", "tied", "counting", "functional", "frozen_parts")
CASES += [(name, "linearize") for name in LINEARIZED]


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("name", "engine"), CASES)
def test_ntk(name, engine):
    model, x = zoo.build(name)
    j = zoo.jacobian(model, x)
    exact = j @ j.T
    kernel = cx.NTK(model, x, engine=engine)
    assert kernel.engine == engine
    assert kernel.shape == tuple(exact.shape)
    close(kernel.dense(), exact)
    v = random(len(exact), 5)
    close(kernel @ v, exact @ v)
    close(kernel @ v[:, 0], exact @ v[:, 0])
    close(kernel.diagonal(), exact.diagonal())
    close(kernel.trace(), exact.trace())
    o = kernel.n_outputs
    blocks = exact.reshape(-1, o, len(exact) // o, o).permute(0, 2, 1, 3)
    close(kernel.dense(layout="blocks"), blocks)
    close(kernel.dense(outputs="trace"), blocks.diagonal(dim1=2, dim2=3).sum(-1))


@pytest.mark.parametrize("name", zoo.ZOO)
def test_engine_chosen(name):
    model, x = zoo.build(name)
    assert cx.NTK(model, x).engine == zoo.ZOO[name][2]


@pytest.mark.parametrize(("name", "engine"), CASES)
def test_jacobian_products(name, engine):
    model, x = zoo.build(name)
    j = zoo.jacobian(model, x)
    frozen = cx.NTK(model, x, engine=engine).linearization
    u, t = random(len(j), 3), random(j.shape[1], 3)
    close(frozen.vjp(u), j.T @ u)
    close(frozen.jvp(t), j @ t)


@pytest.mark.parametrize("engine", ["dense-chain", "autograd"])
@pytest.mark.parametrize(
    "name", ["smooth", "kinked", "ntk_chain", "unused", "frozen_parts", "first_frozen"]
)
def test_cross_kernel(name, engine):
    model, x = zoo.build(name)
    x2 = torch.cat([x[:2], random(*x.shape)])
    exact = zoo.jacobian(model, x) @ zoo.jacobian(model, x2).T
    kernel = cx.NTK(model, x, x2, engine=engine)
    close(kernel.dense(), exact)
    v = random(exact.shape[1], 2)
    close(kernel @ v, exact @ v)
    same = cx.NTK(model, x, x, engine=engine)
    close(same.dense(), cx.NTK(model, x).dense())


CROSSED = "tied reused weight_norm weight_norm_conv spectral_norm scalar conv conv_1d conv_3d lenet"
CROSSED += " resnet20 lstm gru attention vit gpt"


@pytest.mark.parametrize("name", CROSSED.split())
def test_cross_kernel_of_any_model(name):
    model, x = zoo.build(name)
    other = random(*x.shape) if x.is_floating_point() else (x + 1) % 7
    x2 = torch.cat([x[:2], other])
    exact = zoo.jacobian(model, x) @ zoo.jacobian(model, x2).T
    kernel = cx.NTK(model, x, x2)
    close(kernel.dense(), exact)
    v = random(exact.shape[1], 5)
    close(kernel @ v, exact @ v)


LOSSES = {
    "half_mse": ("half_mse", "float"),
    "half_mse_mean": ("half_mse_mean", "float"),
    "mse": (nn.MSELoss(), "float"),
    "ce": (nn.CrossEntropyLoss(label_smoothing=0.1), "label"),
    "ce_soft": (nn.CrossEntropyLoss(reduction="sum"), "float"),
    "bce": (nn.BCEWithLogitsLoss(), "float"),
    "ce_ignore": (nn.CrossEntropyLoss(ignore_index=1), "label"),
    "ce_weighted": (nn.CrossEntropyLoss(torch.tensor([0.5, 2.0, 1.0]).double()), "label"),
    "ce_all": (
        nn.CrossEntropyLoss(
            torch.tensor([0.5, 2.0, 1.0]).double(), ignore_index=0, label_smoothing=0.2
        ),
        "label",
    ),
    "bce_weighted": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0).double()), "float"),
}
THREE_OUTPUTS = ("ce_weighted", "ce_all")  # class weights are for three classes


def problem(name, kind):
    model, x = zoo.build(name)
    out = zoo.call(model, x)
    y = torch.rand(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return model, x, (torch.arange(len(out)) % out.shape[1] if kind == "label" else y)


def full_hessian(model, loss, x, y):
    """Double backward through the plain model, one row at a time."""
    params = zoo.trainable(model)
    known = cx.losses.resolve(loss)
    out = zoo.call(model, x)
    value = known(out[:, None] if out.dim() == 1 and known.convex else out, y)
    grads = torch.autograd.grad(value, params, create_graph=True, allow_unused=True)
    flat = torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).reshape(-1)
            for g, p in zip(grads, params, strict=True)
        ]
    )
    rows = []
    for entry in flat:
        second = [None] * len(params)
        if entry.requires_grad:
            second = torch.autograd.grad(entry, params, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if s is None else s).reshape(-1)
                    for s, p in zip(second, params, strict=True)
                ]
            )
        )
    return torch.stack(rows)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["ntk_chain", "conv", "tied", "unused"])
def test_ggn(name, loss):
    if loss in THREE_OUTPUTS and name != "conv":
        pytest.skip("the model has two outputs")
    loss, kind = LOSSES[loss]
    model, x, y = problem(name, kind)
    j = zoo.jacobian(model, x)
    out = zoo.call(model, x).detach()
    known = cx.losses.resolve(loss)
    by_torch = loss if isinstance(loss, nn.Module) else known
    h = torch.func.hessian(lambda f: by_torch(f, y))(out).reshape(len(j), len(j))
    exact = j.T @ h @ j
    ggn = cx.GGN(model, loss, (x, y))
    v = random(len(exact), 3)
    close(ggn @ v, exact @ v)
    dual = ggn.dual()
    assert dual is not None
    m = dual.operator.dense()
    close(m, m.T)
    top = torch.linalg.eigvalsh(exact)[-4:]
    close(torch.linalg.eigvalsh(m)[-4:], top)
    u = random(len(j), 2)
    t = random(j.shape[1], 2)
    close((dual.lift(u) * t).sum(), (u * dual.restrict(t)).sum())


@pytest.mark.parametrize("loss", ["half_mse", "ce", "bce"])
@pytest.mark.parametrize(
    "name", ["functional", "unused", "tied", "counting", "conv", "frozen_parts"]
)
def test_hessian(name, loss):
    loss, kind = LOSSES[loss]
    if name == "functional" and kind == "label":
        kind = "float"
    model, x, y = problem(name, kind)
    exact = full_hessian(model, loss, x, y)
    hessian = cx.Hessian(model, loss, (x, y))
    v = random(len(exact), 3)
    close(hessian @ v, exact @ v)
    close(hessian @ v[:, 1], exact @ v[:, 1])
    if len(exact) < 100:
        close(hessian.dense(), exact)
        close(hessian.diagonal(), exact.diagonal())


def test_hessian_takes_any_callable_and_its_outputs_as_they_are():
    model, x = zoo.build("functional")
    y = random(6)

    def loss(f, target):
        assert f.shape == (6,)
        return ((f - target) ** 4).sum()

    close(cx.Hessian(model, loss, (x, y)).dense(), full_hessian(model, loss, x, y))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", ["ntk_chain", "conv", "unused"])
def test_eigsh_of_ggn_through_its_dual(name, k):
    model, x, y = problem(name, "float")
    ggn = cx.GGN(model, "half_mse", (x, y))
    result = cx.eigsh(ggn, k, tol=1e-8)
    exact = torch.linalg.eigvalsh(ggn.dense()).flip(0)
    assert result.converged
    assert bool(((result.eigenvalues - exact[:k]).abs() <= result.errors).all())
    vectors = result.eigenvectors
    assert vectors.shape == (ggn.shape[0], k)
    rest = (ggn @ vectors - vectors * result.eigenvalues).norm(dim=0)
    close(rest, result.residuals, exact[0])
    torch.testing.assert_close(
        vectors.T @ vectors, torch.eye(k, dtype=torch.float64), atol=1e-6, rtol=0
    )
    warm = cx.eigsh(ggn, k, v0=vectors, tol=1e-8)
    close(warm.eigenvalues, result.eigenvalues, exact[0])


def test_eigsh_from_a_start_in_the_null_space():
    torch.manual_seed(0)
    model = nn.Linear(6, 2, bias=False).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    x[:, 0] = 0
    ggn = cx.GGN(model, "half_mse", (x, torch.zeros(3, 2, dtype=torch.float64)))
    start = torch.zeros(12, 2, dtype=torch.float64)
    start[0] = 1  # the weight of an input that is zero
    want = torch.linalg.eigvalsh(ggn.dense())[-1:]
    close(cx.eigsh(ggn, v0=start, tol=1e-12).eigenvalues, want)
    start[1, 1] = 1
    close(cx.eigsh(ggn, v0=start, tol=1e-12).eigenvalues, want)


def test_eigsh_of_ggn_beyond_its_rank():
    model, x, y = problem("unused", "float")
    ggn = cx.GGN(model, "half_mse", (x, y))
    exact = torch.linalg.eigvalsh(ggn.dense()).flip(0)
    k = 12  # of 12 outputs, so that some values may be zero
    result = cx.eigsh(ggn, k, tol=1e-6)
    assert bool(((result.eigenvalues - exact[:k]).abs() <= result.errors).all())


def test_lambda_of_half_mse_is_that_of_the_kernel_over_n():
    model, x, y = problem("ntk_chain", "float")
    kernel = cx.eigsh(cx.NTK(model, x), tol=1e-8).eigenvalues
    close(cx.eigsh(cx.GGN(model, "half_mse", (x, y)), tol=1e-8).eigenvalues, kernel / len(x))
    mse = cx.eigsh(cx.GGN(model, nn.MSELoss(), (x, y)), tol=1e-8).eigenvalues
    close(mse, 2 * kernel / y.numel())


def test_float32_matches_float64():
    for name in ("smooth", "ntk_chain", "conv"):
        exact = cx.NTK(*zoo.build(name)).dense()
        got = cx.NTK(*zoo.build(name, torch.float32)).dense()
        assert got.dtype == torch.float32
        assert (got - exact).abs().max() <= 2e-5 * exact.abs().max()


def test_to_scipy():
    from scipy.sparse.linalg import eigsh

    model, x = zoo.build("ntk_chain")
    kernel = cx.NTK(model, x)
    top = eigsh(kernel.to_scipy(), k=2, which="LA", return_eigenvectors=False)
    close(torch.from_numpy(top).flip(0), torch.linalg.eigvalsh(kernel.dense()).flip(0)[:2])
    wide = cx.NTK(model, x, x[:3]).to_scipy()
    assert wide.shape == (12, 6)


@pytest.mark.parametrize("name", ["ntk_chain", "conv", "counting", "attention", "statement"])
def test_the_model_is_left_alone(name):
    model, x = zoo.build(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    kernel = cx.NTK(model, x)
    v = random(kernel.shape[0])
    first = kernel @ v
    y = torch.zeros_like(zoo.call(model, x).detach())
    for k, b in model.state_dict().items():
        b.copy_(before[k])
    cx.eigsh(cx.Hessian(model, "half_mse", (x, y)), maxiter=2)
    assert all(torch.equal(b, before[k]) for k, b in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert modes == [m.training for m in model.modules()]
    with torch.no_grad():  # training afterwards changes nothing
        for p in zoo.trainable(model):
            p.add_(1.0)
    assert torch.equal(kernel @ v, first)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["ntk_chain", "conv"])
def test_works_without_grad_mode(name, guard):
    model, x = zoo.build(name)
    exact = cx.NTK(model, x).dense()
    with guard():
        kernel = cx.NTK(model, x)
        v = torch.ones(kernel.shape[0], dtype=torch.float64)
        close(kernel.dense(), exact)
        close(kernel @ v, exact @ v)
        cx.GGN(model, "half_mse", (x, torch.zeros(len(x), kernel.n_outputs).double())) @ (
            torch.ones(kernel.linearization.n_params, dtype=torch.float64)
        )


def test_rows_of_single_samples_need_no_grad_mode(monkeypatch):
    model, x = zoo.build("conv")
    exact = cx.NTK(model, x).dense()
    monkeypatch.setattr(AutogradLinearization, "structured", lambda _: None)
    with torch.inference_mode():
        close(cx.NTK(model, x).dense(), exact)


class Residual(nn.Module):
    """Dense layers and ReLU only, and yet no chain."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 5).double(), nn.Linear(5, 2).double()

    def forward(self, x):
        return self.last(x + self.first(x).relu_())


def test_a_net_that_only_its_forward_pass_shows_to_be_no_chain():
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(6, 5, dtype=torch.float64)
    kernel = cx.NTK(model, x)
    assert kernel.engine == "autograd"
    assert kernel.linearization._program is not None
    j = zoo.jacobian(model, x)
    close(kernel.dense(), j @ j.T)


def test_forward_runs_once(monkeypatch):
    model, x = zoo.build("conv")
    x = torch.cat([x, x + 1])
    calls, tried = [], []  # on all samples, and on some
    run = Tree.run

    def count(tree, given):
        (calls if len(given) == len(x) else tried).append(len(given))
        return run(tree, given)

    monkeypatch.setattr(Tree, "run", count)
    kernel = cx.NTK(model, x)
    kernel @ torch.ones(kernel.shape[0], 4, dtype=torch.float64)
    assert len(calls) == 2  # the second checks that the first repeats
    assert not tried  # the second decides the memory format as well
    kernel @ torch.ones(kernel.shape[0], 4, dtype=torch.float64)
    assert len(calls) == 2
    kernel.diagonal()
    assert len(calls) == 2  # its graph shows where parameters meet data
    cx.NTK(model, x, check=False)
    assert len(calls) == 3
