"""The recorded tangent program against the backward of the backward pass, and what it refuses."""

import threading

import pytest
import torch
from linops import zoo
from torch import Tensor, nn

import catapult_ext as cx
from catapult_ext.linops.engines.autograd import AutogradLinearization
from catapult_ext.linops.model.policy import Policy
from catapult_ext.linops.model.snapshot import Snapshot
from catapult_ext.linops.tracing import tangent_rules
from catapult_ext.linops.tracing.tangent_program import TangentTracer


def proofs(frozen):
    """What was proven of the last series of operations, by route and precision."""
    return {key[:2]: why for key, why in frozen.snapshot.proofs.items()}


def recorded(model, x, **options):
    """(frozen model, why it has no program)."""
    snapshot = Snapshot(model, x, "NTK", **options)
    tracer = TangentTracer(list(snapshot.params.values()))
    outputs = snapshot.forward(tracer)
    tracer.finish(snapshot.take_raw_output())
    return AutogradLinearization(snapshot, outputs, tracer), tracer.why


def both(frozen):
    t = torch.randn(frozen.n_params, 2, generator=torch.Generator().manual_seed(3)).to(
        frozen.outputs
    )
    return frozen.jvp(t), frozen._backward_of_backward(t)


class Of(nn.Module):
    """A layer between two others, written as a function."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(5, 6), nn.Linear(6, 3), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def of(function):
    torch.manual_seed(0)
    return Of(function).double(), torch.randn(4, 5, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(set(zoo.ZOO) - {"wrn_16_1"}))  # as resnet20, slower
def test_program_of_the_zoo(name):
    frozen, why = recorded(*zoo.build(name))
    assert not why
    replayed, exact = both(frozen)
    assert proofs(frozen) == {("replay", False): ""}
    assert (replayed - exact).abs().max() <= 1e-12 * exact.abs().max()


@pytest.mark.parametrize("params", [None, "2.*", ["1.weight", "3.bias"], ["1.bias", "3.weight"]])
@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.3}]
)
def test_batch_norm_by_the_statistics_of_the_batch(params, options):
    """Through the statistics: by input, weight and bias, each with and without the others."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, **options)
    if params is not None and norm.affine is False:
        params = "0.*"
    body = (nn.Conv2d(2, 4, 3), norm, nn.Conv2d(4, 3, 2, stride=2), nn.BatchNorm2d(3), nn.Tanh())
    model = nn.Sequential(*body, nn.Flatten()).double()
    for p in model.parameters():
        nn.init.normal_(p)
    x = torch.randn(5, 2, 6, 6, dtype=torch.float64) + 3
    frozen, why = recorded(model, x, params=params, policy=Policy("coupled"))
    assert not why
    replayed, exact = both(frozen)
    assert proofs(frozen) == {("replay", False): ""}
    assert (replayed - exact).abs().max() <= 1e-12 * exact.abs().max()


def scaled_in_place(x):
    y = 2 * x
    y.mul_(x)
    y += 1
    y -= x
    y.div_(3.0)
    return y.tanh_()


def written_through_a_view(x):
    y = 2 * x
    y[:, :2].mul_(3.0)
    return y


def saved_then_changed(x):
    y = 2 * x
    z = y.exp()  # whose graph keeps z, and whose tangent program y
    return y.add_(1.0) + z


FUNCTIONS = {
    "scalars": lambda x: (3 - x) * 2 / 5 + 1,
    "reflected": lambda x: 1 / (2 + x.square()) - torch.rsub(x, 1),
    "broadcast": lambda x: x - x.mean(1, keepdim=True) + x.amax(0),
    "products": lambda x: (x @ x.T.tanh() @ x).softmax(1) * x,
    "batched products": lambda x: (x.view(-1, 2, 3).mT @ x.view(-1, 2, 3)).sum(1).repeat(1, 2),
    "pieces": lambda x: torch.cat([*x.split(2, 1)[::-1], torch.zeros_like(x[:, :0])], 1),
    "stacked": lambda x: torch.stack([x, torch.ones_like(x), x.exp()]).prod(0),
    "einsum": lambda x: torch.einsum("ni,mi,mj->nj", x, x, x),
    "in place": scaled_in_place,
    "sorted": lambda x: x.sort(1).values + x.cumsum(1),
    "gathered": lambda x: x[:, [3, 1, 2, 0, 5, 4]].where(x > 0, x.abs().sqrt()),
    "detached": lambda x: x * x.detach() + x.norm(dim=1, keepdim=True),
    "pooled": lambda x: nn.functional.max_pool1d(x[:, None], 3, 1, 1)[:, 0],
    "padded": lambda x: nn.functional.pad(x, (1, 1), mode="reflect")[:, 1:-1],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_program_of_functions(name):
    frozen, why = recorded(*of(FUNCTIONS[name]))
    assert not why
    replayed, exact = both(frozen)
    assert frozen._program is not None
    assert (replayed - exact).abs().max() <= 1e-12 * exact.abs().max()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (written_through_a_view, "writes in place by mul_"),
        (lambda x: nn.functional.pad(x, (1, 1), mode="circular")[:, 1:-1], "in place by copy_"),
        (saved_then_changed, "changes a saved tensor"),
    ],
)
def test_what_is_not_replayed_is_exact_all_the_same(function, reason):
    model, x = of(function)
    _, why = recorded(model, x)
    assert reason in why
    j = zoo.jacobian(model, x)
    v = torch.randn(j.shape[0], dtype=torch.float64)
    assert torch.allclose(cx.NTK(model, x) @ v, j @ (j.T @ v), rtol=1e-10)


class Hidden(torch.autograd.Function):
    """x^2 with the derivative of 3 x: nothing but the graph can know."""

    @staticmethod
    def forward(ctx, x):
        return x.square()

    @staticmethod
    def backward(ctx, g):
        return 3 * g


def test_a_hidden_derivative_is_found_out():
    model, x = of(lambda a: a + Hidden.apply(a))
    frozen, _ = recorded(model, x)
    replayed, exact = both(frozen)
    assert frozen._program is None
    assert proofs(frozen)["replay", False].startswith("wrong or missing derivatives by first.")
    assert torch.equal(replayed, exact)


def test_padding_of_an_embedding():
    """Its row has no gradient: a product proves the tangents for all vectors."""

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(20, 8, padding_idx=0)
            self.hidden, self.out = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, ids):
            return self.out(torch.tanh(self.hidden(self.table(ids).mean(1))))

    torch.manual_seed(0)
    model = Text().double()
    nn.init.normal_(model.table.weight)
    ids = torch.randint(1, 20, (10, 6))
    ids[:, 3:] = 0
    j = zoo.jacobian(model, ids)
    frozen, why = recorded(model, ids)
    assert not why
    t = torch.randn(frozen.n_params, 3, dtype=torch.float64)
    assert torch.allclose(frozen.jvp(t), j @ t, rtol=1e-10, atol=1e-12)
    assert proofs(frozen) == {("replay", False): ""}
    operator = cx.GGN(model, "half_mse", (ids, torch.randn(10, 3, dtype=torch.float64)))
    cx.eigsh(operator)
    assert torch.allclose(operator.dense(), j.T @ j / 10, rtol=1e-10, atol=1e-12)


def test_one_column_proves_nothing_for_others():
    """The derivative that only the second output hides is found out whatever comes first."""

    def second_hidden(a):
        return torch.cat([a[:, :3], Hidden.apply(a[:, 3:])], 1)

    model = nn.Sequential(nn.Linear(5, 6), Lambda(second_hidden)).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    j = zoo.jacobian(model, x)
    kernel = cx.NTK(model, x, engine="autograd", check=False)
    first = torch.zeros(24, dtype=torch.float64)
    first[0] = 1
    kernel @ first
    eye = torch.eye(24, dtype=torch.float64)
    assert torch.allclose(kernel @ eye, j @ j.T, rtol=1e-10, atol=1e-12)


def test_parts_of_a_model_are_proven_once(monkeypatch):
    model, x = of(torch.tanh)
    tried = []
    plain = AutogradLinearization._blocks
    monkeypatch.setattr(
        AutogradLinearization, "_blocks", lambda s, *a: (tried.append(len(a[0])), plain(s, *a))[1]
    )
    kernel = cx.NTK(model, x, engine="autograd", samples_at_once=2)
    v = torch.randn(len(x) * 3, dtype=torch.float64)
    kernel @ v
    first = len(tried)
    kernel @ v
    assert len(tried) - first < first


def test_threads_replay_formulas_at_once():
    kernels = [cx.NTK(*of(f)) for f in (torch.tanh, torch.erf, lambda x: x.softmax(1))]
    v = torch.randn(kernels[0].shape[0], dtype=torch.float64)
    exact = [k @ v for k in kernels]
    wrong = []

    def work(kernel, right):
        for _ in range(20):
            if not torch.equal(kernel @ v, right):
                wrong.append(1)

    threads = [threading.Thread(target=work, args=a) for a in zip(kernels, exact, strict=True)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_cudnn_has_the_rule_of_the_native_one(training):
    """torch takes it on CUDA: the same arguments, and a fourth result."""
    aten = torch.ops.aten
    x, w, b, mean, dx, dw, db = (
        torch.randn(shape, dtype=torch.float64)
        for shape in ((5, 3, 2, 2), 3, 3, 3, (5, 3, 2, 2), 3, 3)
    )
    args = (x, w, b, mean, torch.ones(3).double(), training, 0.1, 1e-5)
    tensors = [t for t in args if isinstance(t, Tensor)]

    def tangent(name, out):
        rules = tangent_rules.TANGENT_RULES
        call = tangent_rules.TensorCall(None, args, {}, out, tensors, [True] * 3 + [False] * 2)
        rule = rules[getattr(aten, name)](call)[0]
        call.forget()
        return rule([dx, dw, db, None, None])

    out = aten.native_batch_norm(*args[:3], *(t.clone() for t in args[3:5]), *args[5:])
    want = tangent("native_batch_norm", out)
    got = tangent("cudnn_batch_norm", (*out, torch.empty(0, dtype=torch.uint8)))
    assert len(got) == 4
    assert torch.equal(got[0], want[0])
