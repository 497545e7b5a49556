"""What users of other libraries suffered from, each with its thread; the answer of the operators.

Tested elsewhere: batch norm (functorch #273, #622, #867, #986; pytorch #85533; backpack #202, #240,
#322) and dropout (functorch #408, pytorch #92283) in test_policies.py; budgets (neural-tangents
#30, #89, #100; functorch #334, #680) in test_plan.py; grouped and dilated convolutions, LayerNorm,
GroupNorm (opacus #78, #137; backpack #149, #263, #328) and dict inputs in the zoo of
test_operators.py; conventions (peers' losses and traces) in test_convert.py.
"""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from linops import zoo
from torch import nn

import catapult_ext as cx
from catapult_ext.testing.tolerances import assert_close as close


def operators(model, x, y, **options):
    yield cx.NTK(model, x, **options)
    yield cx.GGN(model, "half_mse", (x, y), **options)
    yield cx.Hessian(model, "half_mse", (x, y), **options)
    yield cx.Jacobian(model, x, **options)


def live():
    gc.collect()
    held = [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)]
    return len(held), sum(t.numel() * t.element_size() for t in held)


# Leaks with create_graph: PyHessian #25, backpack #238 and #258, pytorch #82528, #71068, #16744.
# Memory that grows: fairchem #2099, #2100; tangents kept alive: pytorch #151782.
@pytest.mark.filterwarnings("error:.*create_graph")
@pytest.mark.parametrize("chunks", [None, 2])
def test_200_products_leave_nothing_behind(chunks):
    model, x = zoo.build("tied")
    y = torch.zeros(6, 2).double()
    for a in operators(model, x, y, samples_at_once=chunks):
        v = torch.ones(a.shape[1], dtype=torch.float64)
        a @ v
        before = live()
        for _ in range(200 if chunks is None else 5):
            a @ v
        assert live() == before, a.name


# Memory not given back: neural-tangents #146; the cycle of create_graph, pytorch #82528.
def test_a_deleted_operator_frees_its_memory_at_once():
    model, x = zoo.build("weight_norm_conv")
    y = torch.zeros(4, 3).double()
    for a in operators(model, x, y):
        a @ torch.ones(a.shape[1], dtype=torch.float64)
        held = a.snapshot if a.name == "Hessian" else a.linearization.snapshot
        leaves = [weakref.ref(p) for p in held.params.values()]
        gc.disable()  # no cycle that waits for the collector
        del a, held
        alive = [r for r in leaves if r() is not None]
        gc.enable()
        assert not alive


# A diagonal that went through the full Jacobian and asked for 7 TB: Laplace #281, #232.
def test_the_diagonal_needs_no_jacobian():
    model = nn.Sequential(nn.Linear(40, 1000), nn.Tanh(), nn.Linear(1000, 200))
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    for engine in ("dense-chain", "autograd"):
        kernel = cx.NTK(model, x[: 50 if engine == "dense-chain" else 1], engine=engine)
        # 10 000 rows of 240 000 parameters would be 10 GB
        assert kernel.diagonal().shape == (kernel.shape[0],)
    some = cx.NTK(model, x[:1], params="2.*").diagonal()
    hidden = torch.tanh(model[0](x[:1])).square().sum() + 1
    close(some, hidden.detach().expand(200), 1e-4)


# Crash on parameters without gradient: PyHessian #8, #19; hessian-eigenthings #30.
def test_unused_parameters_are_zero_blocks():
    model, x = zoo.build("unused")
    y = torch.zeros(6, 2).double()
    names = [n for n, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    for a in (cx.GGN(model, "half_mse", (x, y)), cx.Hessian(model, "half_mse", (x, y))):
        rows = (a @ torch.ones(a.shape[1], 1).double())[:, 0].split(sizes)
        for name, block in zip(names, rows, strict=True):
            assert block.any() != name.startswith("never")


# Shared layers silently wrong, integer inputs fail: nngeometry #94; tied embeddings.
@pytest.mark.parametrize("name", ["tied", "reused", "gpt"])
def test_tied_parameters_count_once_and_sum(name):
    model, x = zoo.build(name)
    j = zoo.jacobian(model, x)
    assert cx.Jacobian(model, x).shape[1] == sum(p.numel() for p in model.parameters())
    close(cx.NTK(model, x).dense(), j @ j.T)


# Which axis is which: neural-tangents #68, #7.  Logits summed before differentiation lose the
# cross-logit structure: TENAS #11.  Vector outputs unsupported: torchntk #2.
def test_layout_and_logits():
    model, x = zoo.build("conv")
    j = zoo.jacobian(model, x).reshape(4, 3, -1)
    kernel = cx.NTK(model, x)
    flat, blocks = kernel.dense(), kernel.dense(layout="blocks")
    n = 1
    m = 3
    o = 2
    q = 0
    entry = j[n, o] @ j[m, q]
    close(flat[n * 3 + o, m * 3 + q], entry)
    close(blocks[n, m, o, q], entry)
    close(kernel.dense(outputs="trace")[n, m], (j[n] * j[m]).sum())
    summed = j.sum(1) @ j.sum(1).T
    close(blocks.sum((2, 3)), summed)
    top = torch.linalg.eigvalsh(flat)[-1]
    assert (top - torch.linalg.eigvalsh(summed)[-1]).abs() > 0.01 * top


# Kernel not positive semi-definite, minimum -0.24 on a WideResNet: neural-tangents #134, #193.
def test_float32_kernels_are_positive_up_to_rounding():
    model, x = zoo.build("wrn_16_1", torch.float32)
    values = torch.linalg.eigvalsh(cx.NTK(model, x).dense().double())
    assert values[0] >= -1e-5 * values[-1]


# Batched and unbatched differ clearly: neural-tangents #122, #87, #206; opacus #692.
@pytest.mark.parametrize("name", ["conv", "vit", "lstm"])
def test_chunks_and_permutations_give_the_same_kernel(name):
    model, x = zoo.build(name)
    whole = cx.NTK(model, x).dense(layout="blocks")
    close(cx.NTK(model, x, samples_at_once=1).dense(layout="blocks"), whole)
    close(cx.NTK(model, x.flip(0)).dense(layout="blocks"), whole.flip(0, 1))
    close(cx.NTK(model, x[:1], x).dense(layout="blocks"), whole[:1])


# Half precision: hessian-eigenthings #34, #35; bf16 Grams spoil eigenvectors: bergson #239.
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_accumulate_in_float32(dtype):
    model, x = zoo.build("tied", torch.float32)
    model, x = model.to(dtype), x.to(dtype)
    y = torch.zeros(6, 2)
    exact, wide = zoo.jacobian(model.double(), x.double()), x
    model = model.to(dtype)
    for a in operators(model, wide, y):
        assert a.dtype == torch.float32
    close(cx.NTK(model, wide).dense().double(), exact @ exact.T, 1e-5)


# In-place operations under transforms: functorch #273, #867, pytorch #85533.
def test_in_place_operations():
    model, x = zoo.build("statement")
    j = zoo.jacobian(model, x)
    kernel = cx.NTK(model, x)
    close(kernel.dense(), j @ j.T)
    close(kernel @ j, j @ (j.T @ j))


class Attend(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        heads = [layer(x).view(3, 4, 2, 4).transpose(1, 2) for layer in (self.q, self.k, self.v)]
        return F.scaled_dot_product_attention(*heads).sum((1, 2))


# Fused attention has no second derivative or forward AD: pytorch #116350, #98164, #117629, #146901,
# #154226; learn2learn #429; diffusers #5678.
def test_fused_attention():
    torch.manual_seed(0)
    model, x = Attend(), torch.randn(3, 4, 8)  # float32: torch would take its flash kernel
    exact = zoo.jacobian(model.double(), x.double())
    model = model.float()
    v = torch.randn(len(exact), 2)
    close((cx.NTK(model, x) @ v).double(), exact @ (exact.T @ v.double()), 1e-5)
    y = torch.zeros(3, 4)
    reverse = cx.Hessian(model, "half_mse", (x, y))
    t = torch.randn(reverse.shape[0])
    close(cx.Hessian(model, "half_mse", (x, y), hvp="forward") @ t, reverse @ t, 1e-4)


# nn.MultiheadAttention's fast path and hooks that never fire: kfac-pytorch #267.
def test_multi_head_attention_has_all_its_parameters():
    model, x = zoo.build("vit")
    g = cx.Jacobian(model, x).T @ torch.ones(9).double()
    names = [n for n, _ in model.named_parameters()]
    for name, block in zip(names, g.split([p.numel() for p in model.parameters()]), strict=True):
        assert block.any(), name


# NaN instead of an error: neural-tangents #36, #76, #197; TensorNetwork #771.
def test_non_finite_values_are_named():
    model, x = zoo.build("tied")
    with torch.no_grad():
        model.a.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="outputs must be finite"):
        cx.NTK(model, x)


# torch.func.linearize fails on gradients: pytorch #124550; the error says what to do instead.
def test_linearize_that_fails_names_the_other_engine():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(5, 2)

        def forward(self, x):
            h = self.a(x)
            return h * 2 if h.sum().item() > 0 else h  # data decides: cannot be traced

    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="try engine='autograd'"):
        cx.NTK(Odd(), x, engine="linearize")
    assert cx.NTK(Odd(), x).engine == "autograd"
