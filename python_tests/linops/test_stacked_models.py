"""What operators of several models take, and what they refuse."""

import copy

import pytest
import torch
from linops.stacked_nets import KINDS, build, close, mlp, operator_of, operators
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.stacked import replicas as replicas_module


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_state(kind):
    nets, inputs, o = build("resnet20", 3)
    stacked = (*torch.func.stack_module_state(nets), copy.deepcopy(nets[0]).to("meta"))
    one, other = operator_of(kind, nets, inputs[0], o), operator_of(kind, stacked, inputs[0], o)
    u = torch.randn(one.shape[:2], dtype=torch.float64)
    close(other @ u, one @ u)


@pytest.mark.parametrize("name", ["chain", "cnn"])
def test_stacked_state_alone_makes_no_modules(name, monkeypatch):
    """Besides the one that is traced: thousands of replicas are no thousand copies of a module."""
    nets, inputs, _ = build(name, 5)
    made = []
    whole = replicas_module._with_state

    def counted(module, state):
        made.append(state)
        return whole(module, state)

    monkeypatch.setattr(replicas_module, "_with_state", counted)
    params, buffers = torch.func.stack_module_state(nets)
    found = cx.NTK((params, buffers, nets[0]), inputs[0])
    assert len(made) == 1
    u = torch.randn(found.shape[:2], dtype=torch.float64)
    close(found @ u, cx.NTK(nets, inputs[0]) @ u)


def no_rows(params, buffers, module):
    return {k: p[0] for k, p in params.items()}, buffers, module


def no_replica(params, buffers, module):
    return {k: p[:0] for k, p in params.items()}, buffers, module


def other_counts(params, buffers, module):
    return {**params, "0.bias": params["0.bias"][:1]}, buffers, module


def without_one(params, buffers, module):
    return {k: p for k, p in params.items() if k != "0.bias"}, buffers, module


def no_buffers(params, buffers, module):
    return params, None, module


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (no_rows, ValueError, r"0.weight \(R, \(7, 5\)\), got \(7, 5\)"),
        (no_replica, ValueError, "at least one model, got R = 0"),
        (other_counts, ValueError, r"must have one R, got \[1, 2\]"),
        (without_one, ValueError, r"names of the module, got \['0.bias'\]"),
        (no_buffers, TypeError, r"must be modules, or \(params, buffers, module\)"),
    ],
)
def test_stacked_state_that_does_not_fit(spoil, error, text):
    nets, inputs, _ = build("chain", 2)
    state = (*torch.func.stack_module_state(nets), nets[0])
    with pytest.raises(error, match=text):
        cx.NTK(spoil(*state), inputs[0])


def test_models_by_their_name():
    nets, inputs, _ = build("chain", 2)
    assert cx.NTK(model=nets, x=inputs[0]).shape == (2, 9, 9)


def test_parametrized_modules_are_alike():
    """Each has a class of its own."""
    nets, inputs, _ = build("chain", 3)
    for net in nets:
        nn.utils.parametrizations.weight_norm(net[2])
    batched, single = cx.NTK(nets, inputs[0]), [cx.NTK(net, inputs[0]) for net in nets]
    u = torch.randn(batched.shape[:2], dtype=torch.float64)
    close(batched @ u, torch.stack([a @ v for a, v in zip(single, u, strict=True)]))
    plain = build("chain", 1)[0]
    with pytest.raises(ValueError, match=r"models\[1\] module '2' must be ParametrizedLinear"):
        cx.NTK([nets[0], *plain], inputs[0])


@pytest.mark.parametrize("name", ["chain", "cnn"])
@pytest.mark.parametrize("shared", [True, False])
def test_what_the_user_changes_afterwards_changes_nothing(name, shared):
    nets, inputs, o = build(name, 2)
    labels = [torch.randint(o, (len(x),)) for x in inputs]
    batches = list(zip(inputs, labels, strict=True))
    batched = cx.GGN(nets, "cross_entropy", batches[0] if shared else batches)
    u = torch.randn(batched.shape[:2], dtype=torch.float64)
    before, some = batched @ u, batched.replicas([1]) @ u[1:]
    with torch.no_grad():
        for net in nets:
            for p in net.parameters():
                p.zero_()
        for t in (*inputs, *labels):
            t.zero_()
    torch.testing.assert_close(batched @ u, before, rtol=0, atol=0)
    torch.testing.assert_close(batched.replicas([1]) @ u[1:], some, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["chain", "cnn"])
def test_half_precision_is_held_in_float32(name):
    nets, inputs, _ = build(name, 2)
    nets, xs = [net.bfloat16() for net in nets], [x.bfloat16() for x in inputs]
    batched, single = cx.NTK(nets, xs), [cx.NTK(net, x) for net, x in zip(nets, xs, strict=True)]
    assert batched.dtype == torch.float32
    assert "at once" in batched.plan
    u = torch.randn(batched.shape[:2])
    close(batched @ u, torch.stack([a @ v for a, v in zip(single, u, strict=True)]), 1e-5)


def test_some_of_the_parameters():
    nets, inputs, o = build("chain", 3)
    for kind in KINDS:
        batched, single = operators(kind, nets, inputs, o, False, params="2.*")
        assert batched.parameter_names == ("2.weight", "2.bias")
        u = torch.randn(batched.shape[:2], dtype=torch.float64)
        close(batched @ u, torch.stack([a @ v for a, v in zip(single, u, strict=True)]))


def other_structure(nets):
    nets[2] = mlp(5, 7, 6, 3, act=nn.Tanh).double().eval()


def other_shape(nets):
    nets[1] = mlp(5, 8, 6, 3, act=nn.ReLU).double().eval()


def other_depth(nets):
    nets[1] = mlp(5, 7, 6, 4, 3, act=nn.ReLU).double().eval()


def without_bias(nets):
    nets[1][2].bias = None


def other_dtype(nets):
    nets[1].float()


def other_device(nets):
    nets[1][0].to("meta")


def other_mode(nets):
    nets[2][1].train()


def other_trainable(nets):
    nets[1][4].bias.requires_grad_(False)


def one_parameter(nets):
    nets[2][0].weight = nets[0][0].weight


def no_module(nets):
    nets[1] = "net"


def no_model(nets):
    nets.clear()


BAD = {
    other_structure: (ValueError, r"models\[2\] module '1' must be ReLU, got Tanh"),
    other_shape: (ValueError, r"models\[1\] 0.weight must have shape \(7, 5\), got \(8, 5\)"),
    other_depth: (ValueError, r"models\[1\] module '5' must be none, got ReLU"),
    without_bias: (ValueError, r"models\[1\] must have the parameter 2.bias"),
    other_dtype: (TypeError, r"models\[1\] 0.weight must have dtype torch.float64"),
    other_device: (ValueError, r"models\[1\] 0.weight must be on cpu, got meta"),
    other_mode: (ValueError, r"models\[2\] module '1' must be in eval mode, got train"),
    other_trainable: (ValueError, r"models\[1\] 4.bias must be trainable, .* got frozen"),
    one_parameter: (ValueError, r"one Parameter as models\[0\] 0.weight and models\[2\] 0.weight"),
    no_module: (TypeError, r"models\[1\] must be a torch.nn.Module, got str"),
    no_model: (ValueError, "models must hold at least one model, got none"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spoil", BAD)
def test_models_that_differ(spoil, kind):
    nets, inputs, o = build("chain", 3)
    spoil(nets)
    error, text = BAD[spoil]
    where = {"ntk": "NTK", "hessian": "Hessian"}.get(kind, "GGN")
    with pytest.raises(error, match=rf"^catapult_ext.{where}: .*{text}"):
        operator_of(kind, nets, inputs[0], o)


def test_batches_that_do_not_fit():
    nets, inputs, o = build("chain", 3)
    with pytest.raises(ValueError, match=r"a batch for each of the 3 models, got 2"):
        cx.NTK(nets, inputs[:2])
    with pytest.raises(ValueError, match=r"x\[2\] must be float64 \(3, 5\), got float64 \(2, 5\)"):
        cx.NTK(nets, [*inputs[:2], inputs[2][:2]])
    ys = [torch.randint(o, (3,)) for _ in nets]
    ys[1] = ys[1].double()
    with pytest.raises(ValueError, match=r"data\[1\] must be"):
        cx.GGN(nets, "cross_entropy", list(zip(inputs, ys, strict=True)))


def test_batch_norm_in_train_mode_is_refused():
    nets, inputs, o = build("resnet20", 2)
    for model in nets:
        model.train()
    for kind in KINDS:
        with pytest.raises(ValueError, match="BatchNorm must be in eval mode"):
            operator_of(kind, nets, inputs[0], o)


def test_right_hand_sides_are_checked():
    nets, inputs, _ = build("chain", 2)
    batched = cx.NTK(nets, inputs[0])
    with pytest.raises(ValueError, match=r"must be \(2, 9\) or \(2, 9, K\), got \(9,\)"):
        batched @ torch.randn(9, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"must be \(2, 9\) or \(2, 9, K\), got \(9, 2\)"):
        batched @ torch.randn(9, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"must be torch\.float64, got torch\.float32"):
        batched @ torch.randn(2, 9)
    with pytest.raises(TypeError, match=r"must be a torch\.Tensor, got list"):
        batched @ [1.0]
    assert (batched @ torch.zeros(2, 9, 0, dtype=torch.float64)).shape == (2, 9, 0)
    for index, text in (([], "at least one"), ([2], "of 2 replicas"), ([[0]], "one-dimensional")):
        with pytest.raises(ValueError, match=text):
            batched.replicas(index)
    with pytest.raises(TypeError, match="integers or a mask"):
        batched.replicas([0.5])
    with pytest.raises(ValueError, match=r"a mask must be \(2,\)"):
        batched.replicas(torch.ones(3, dtype=torch.bool))


class Gain(nn.Module):
    """Has a parameter without dimensions."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 2)
        self.gain = nn.Parameter(torch.rand(()))

    def forward(self, x):
        return self.b(torch.tanh(self.a(x))) * self.gain


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_without_dimensions(kind):
    torch.manual_seed(0)
    nets, x = [Gain().double() for _ in range(3)], torch.randn(6, 5, dtype=torch.float64)
    batched = operator_of(kind, nets, x, 2)
    assert "at once" in batched.plan
    close(batched.dense(), torch.stack([operator_of(kind, net, x, 2).dense() for net in nets]))
