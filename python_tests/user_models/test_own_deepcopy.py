"""Modules with a ``__deepcopy__`` of their own that makes no independent copy."""

import copy

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext._module_copy import origins, own_copy

torch.manual_seed(5)
X, Y = torch.randn(7, 3).double(), torch.tensor([0, 1, 1, 0, 1, 0, 1])


class Itself(nn.Linear):
    """Frozen encoders do so, in order that a trainer's copy of the model shares them."""

    def __deepcopy__(self, memo):
        return self


class Shallow(nn.Linear):
    """Another module that shares the dictionaries of its tensors."""

    def __deepcopy__(self, memo):
        return copy.copy(self)


class Other(nn.Linear):
    """Something else than a module."""

    def __deepcopy__(self, memo):
        return None


class Whole(nn.Sequential):
    def __deepcopy__(self, memo):
        return self


def inner(kind):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), kind(4, 2)).double()


def whole():
    return Whole(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


MODELS = {
    "the model itself": whole,
    "a layer": lambda: inner(Itself),
    "a shallow copy": lambda: inner(Shallow),
    "no module": lambda: inner(Other),
}


def dense_hessian(model):
    weights = list(model.parameters())
    loss = nn.functional.cross_entropy(model(X), Y)
    gradient = torch.autograd.grad(loss, weights, create_graph=True)
    rows = [
        torch.autograd.grad(g, weights, retain_graph=True, materialize_grads=True)
        for g in torch.cat([g.reshape(-1) for g in gradient])
    ]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


@pytest.mark.parametrize("name", MODELS)
def test_numbers_are_right_and_the_model_is_left_alone(name):
    model = MODELS[name]()
    before = {key: (p, p.detach().clone()) for key, p in model.named_parameters()}
    expected = torch.linalg.eigvalsh(dense_hessian(model))[-1].item()
    loss = nn.CrossEntropyLoss()
    window = cx.learning_rate_window(model, loss, (X, Y), trial_steps=4)
    assert window.eta_c is not None
    tracker = cx.CurvatureTracker(model, loss, (X, Y), quantity="hessian", tol=1e-6)
    tracker.start()
    values = [
        tracker.probes[-1]["values"][0],
        cx.eigsh(cx.Hessian(model, loss, (X, Y)), tol=1e-6).eigenvalues.item(),
        cx.eigsh(cx.Hessian(own_copy(model), loss, (X, Y)), tol=1e-6).eigenvalues.item(),
    ]
    assert values == pytest.approx([expected] * 3, rel=1e-4)
    for key, p in model.named_parameters():
        assert p is before[key][0]
        assert torch.equal(p, before[key][1])


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_is_never_the_original(name):
    model = MODELS[name]()
    moved = own_copy(model)
    again = own_copy(moved)
    assert origins(again) == [moved, model]
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert one is not other
        assert one.data_ptr() != other.data_ptr()
        assert torch.equal(one, other)
