"""Models that refer to themselves weakly, to parameters as such, or to other things by closures."""

import copy
import threading
import weakref
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import catapult_ext as cx

N, D, C = 5, 4, 2


def inputs():
    return torch.randn(N, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def dense_jacobian(model, x):
    params = list(model.parameters())
    rows = []
    for out in model(x).flatten():
        grads = torch.autograd.grad(out, params, retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


def mlp():
    return nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, C)).double()


class Child(nn.Module):
    """Uses a weight of its parent, which it refers to weakly so that no module holds itself."""

    def __init__(self, parent, refer):
        super().__init__()
        self.out = nn.Linear(D, C)
        self.__dict__["parent"] = refer(parent)

    def forward(self, x):
        parent = self.parent() if isinstance(self.parent, weakref.ref) else self.parent
        return self.out(torch.tanh(F.linear(x, parent.first.weight)))


class Parent(nn.Module):
    def __init__(self, refer):
        super().__init__()
        self.first = nn.Linear(D, D)
        self.child = Child(self, refer)

    def forward(self, x):
        return self.child(torch.tanh(self.first(x)))


class Slots:
    """An object without a dictionary."""

    __slots__ = ("layer",)

    def __init__(self, layer):
        self.layer = layer


class Held(nn.Module):
    """Uses its layers through what ``hold`` makes of them."""

    def __init__(self, hold):
        super().__init__()
        self.layer, self.out = nn.Linear(D, D), nn.Linear(D, C)
        self.held = hold(self.layer)

    def forward(self, x):
        held = self.held
        if isinstance(held, Slots):
            layers = [held.layer]
        else:
            layers = held.values() if isinstance(held, weakref.WeakValueDictionary) else held
        for layer in list(layers):
            x = torch.tanh(layer(x))
        return self.out(x)


class TiedInForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, C)

    def forward(self, x):
        self.b.weight = self.a.weight
        return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))


class CopiesAPart(nn.Module):
    """Runs a copy of a part, which no derivative passes."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return self.net(x) + copy.deepcopy(self.net)(x).detach()


class AsksForParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(D, D), nn.Linear(D, C)

    def forward(self, x):
        scale = 2.0 if isinstance(self.a.weight, nn.Parameter) else 1.0
        return self.out(torch.tanh(scale * self.a(x)))


class Threads(nn.Module):
    """Parts that run in threads of their own, where no dispatch mode sees them."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([mlp(), mlp()])

    def forward(self, x):
        found, graph = {}, torch.is_grad_enabled()

        def run(k):
            with torch.set_grad_enabled(graph):
                found[k] = self.parts[k](x)

        threads = [threading.Thread(target=run, args=(k,)) for k in range(2)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        return found[0] * found[1]


def watched():
    """A forward hook that asks to see a gradient."""
    model = mlp()
    model[0].register_forward_hook(lambda m, i, o: (o.register_hook(lambda g: None), None)[1])
    return model


def retaining():
    model = mlp()
    model[0].register_forward_hook(lambda m, i, o: o.retain_grad())
    return model


def tied_before():
    model = TiedInForward()
    model.b.weight = model.a.weight
    return model


MODELS = {
    "weak reference": lambda: Parent(weakref.ref),
    "weak proxy": lambda: Parent(weakref.proxy),
    "object with slots": lambda: Held(Slots),
    "weak set": lambda: Held(lambda layer: weakref.WeakSet([layer])),
    "weak keys": lambda: Held(lambda layer: weakref.WeakKeyDictionary({layer: 1.0})),
    "weak values": lambda: Held(lambda layer: weakref.WeakValueDictionary({"a": layer})),
    "tied in forward": tied_before,
    "asks for parameters": AsksForParameters,
    "copies a part": CopiesAPart,
    "threads": Threads,
    "gradient hook of a result": watched,
    "retained gradient": retaining,
}


@pytest.mark.parametrize("name", MODELS)
def test_products_and_dense_kernels_are_right(name):
    torch.manual_seed(0)
    model, x = MODELS[name]().double(), inputs()
    J = dense_jacobian(model, x)
    u = torch.randn(N * C, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    marks = [dict(vars(p)) for p in model.parameters()]
    for kernel in (cx.NTK(model, x), cx.NTK(model, x, samples_at_once=2)):
        torch.testing.assert_close(kernel @ u, J @ (J.T @ u))
    torch.testing.assert_close(cx.NTK(model, x).dense(), J @ J.T)
    batches = [(x[:2], torch.zeros(2, C).double()), (x[2:], torch.zeros(3, C).double())]
    t = torch.ones(J.shape[1], dtype=torch.float64)
    product = cx.StreamedGGN(model, nn.MSELoss(), batches) @ t
    torch.testing.assert_close(product, 2 * J.T @ (J @ t) / (N * C))
    assert [dict(vars(p)) for p in model.parameters()] == marks


def test_a_copy_refers_weakly_to_itself():
    model = Parent(weakref.ref).double()
    copied = cx._module_copy.own_copy(model)
    assert copied.child.parent() is copied
    outside = Child(model, weakref.ref)  # refers to a module that it does not contain
    alone = cx._module_copy.own_copy(outside)
    assert alone.parent() is not model
    torch.testing.assert_close(alone.double()(inputs()), outside.double()(inputs()))


def calls(net):
    return lambda model, x: net(x)


def test_one_function_with_another_closure_is_checked_again():
    model, x = mlp(), inputs()
    other = mlp()
    cx.NTK(model, x, forward=calls(model)) @ torch.ones(N * C, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"catapult_ext\.NTK.*must depend on a trainable parameter"
    ):
        cx.NTK(model, x, forward=calls(other)) @ torch.ones(N * C, dtype=torch.float64)


class Switched(nn.Module):
    shared = None

    def __init__(self):
        super().__init__()
        self.net, self.scale = mlp(), nn.Parameter(torch.randn(C, dtype=torch.float64))
        self.of_the_class = False

    def forward(self, x):
        return self.net(x) * (Switched.shared if self.of_the_class else self.scale)


def test_an_attribute_that_changes_what_is_used_is_checked_again():
    model, x = Switched(), inputs()
    Switched.shared = model.scale
    cx.NTK(model, x).dense()
    model.of_the_class = True
    with pytest.raises(ValueError, match="got scale of another reference"):
        cx.NTK(model, x).dense()


@dataclass
class Scaled:
    """Equality without a hash, as data classes have it."""

    factor: float

    def __call__(self, model, x):
        return self.factor * model(x)


def test_forward_may_be_any_callable():
    model, x = mlp(), inputs()
    torch.testing.assert_close(
        cx.NTK(model, x, forward=Scaled(2.0)).dense(), 4 * cx.NTK(model, x).dense()
    )


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return g * (s + x * s * (1 - s))


class Activation(nn.Module):
    def forward(self, x):
        return Swish.apply(x)


def test_forward_over_reverse_names_the_way_out_where_transforms_refuse_the_model():
    model = nn.Sequential(nn.Linear(D, 6), Activation(), nn.Linear(6, C)).double()
    data = (inputs(), torch.zeros(N, C, dtype=torch.float64))
    t = torch.ones(44, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"catapult_ext.Hessian: hvp='forward' .*leave hvp out"):
        cx.Hessian(model, nn.MSELoss(), data, hvp="forward") @ t
    assert bool((cx.Hessian(model, nn.MSELoss(), data) @ t).isfinite().all())


class Marked(torch.Tensor):
    """A tensor class of the user's own, which formats as an object does."""


def test_inputs_of_a_class_of_their_own_in_chunks():
    model, x = mlp(), inputs()
    u = torch.ones(N * C, dtype=torch.float64)
    product = cx.NTK(model, x.as_subclass(Marked), samples_at_once=2) @ u
    torch.testing.assert_close(product.as_subclass(torch.Tensor), cx.NTK(model, x) @ u)
