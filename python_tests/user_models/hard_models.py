"""Models that keep state in odd places, with float64 inputs: the function is plain, the module not.

``MODELS`` maps a name to ``make()``, which returns a model with outputs (N, 2) and its inputs.
"""

import threading
import warnings
from collections import deque

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm


class Twice(nn.Module):
    """A module registered under two names, and parameters tied across modules."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.again, self.b, self.o = self.a, nn.Linear(4, 4), nn.Linear(4, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.o(self.b(torch.tanh(self.again(torch.sin(self.a(x))))))


def sequential_twice():
    lin = nn.Linear(4, 4)
    return nn.Sequential(lin, nn.Tanh(), lin, nn.Tanh(), nn.Linear(4, 2))


class Rotary(nn.Module):
    """Frequencies cached in a buffer, the length that is cached in an attribute."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("cached", torch.zeros(64, 4), persistent=False)
        self.length = 0

    def forward(self, x):
        n = x.shape[1]
        if n > self.length:
            self.cached[:n] = torch.arange(n)[:, None] * torch.tensor([1.0, 0.5, 0.2, 0.1])
            self.length = n
        return self.o(torch.tanh(self.a(x)) * self.cached[:n].cos()).mean(1)


class CachedBias(nn.Module):
    """A tensor made of a parameter and kept in a dictionary in evaluation mode, as LeViT's."""

    def __init__(self):
        super().__init__()
        self.bias, self.a = nn.Parameter(torch.randn(3)), nn.Linear(4, 4)
        self.o, self.cache = nn.Linear(4, 2), {}
        self.register_buffer("index", torch.tensor([0, 2, 1, 0]), persistent=False)

    def forward(self, x):
        if self.training or "cpu" not in self.cache:
            self.cache["cpu"] = self.bias[self.index]
        return self.o(torch.tanh(self.a(x) + self.cache["cpu"]))


class Carried(nn.Module):
    """A recurrent state kept from pass to pass: in a buffer and in an attribute."""

    def __init__(self):
        super().__init__()
        self.cell, self.o, self.h = nn.Linear(8, 4), nn.Linear(4, 2), None
        self.register_buffer("steps", torch.zeros(()))
        self.seen = deque(maxlen=3)

    def forward(self, x):
        h = torch.zeros_like(x[:1]) if self.h is None else self.h
        new = torch.tanh(self.cell(torch.cat([x, h.expand_as(x)], 1)))
        self.h = new.detach().mean(0, keepdim=True)
        self.steps += 1
        self.seen.append(float(self.steps))
        return self.o(new) * (1 + 0.1 * self.steps)


class Keeps(nn.Module):
    """Keeps a feature map with its graph, a lock, and generators of torch and of Python."""

    def __init__(self):
        super().__init__()
        self.a, self.o, self.map = nn.Linear(4, 4), nn.Linear(4, 2), None
        self.lock, self.random = threading.Lock(), torch.Generator().manual_seed(1)
        self.numbers = (k for k in range(3))
        self.scale = torch.ones(4)

    def forward(self, x):
        with self.lock:
            self.map = torch.tanh(self.a(x))
        self.scale.mul_(1.0)
        return self.o(self.map * self.scale)


class Aliased(nn.Module):
    """Parameters used through a plain list, and by a closure made in ``__init__``."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)])
        self.weights = list(self.layers.parameters())
        shift = self.layers[1].bias
        self.act = lambda x: torch.tanh(F.linear(x, self.layers[1].weight) + shift)

    def forward(self, x):
        return self.layers[2](self.act(torch.sin(F.linear(x, *self.weights[:2]))))


class Int8(nn.Parameter):
    """Frozen weights of a class and with attributes of their own, as of int8 adapters."""

    def __new__(cls, data, scale):
        out = torch.Tensor._make_subclass(cls, data, False)
        out.codes, out.scale = data, scale
        return out


class Quantised(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Module()
        self.q.weight = Int8(torch.randint(-9, 9, (4, 4), dtype=torch.int8), 0.1)
        self.a, self.o = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        base = x @ (self.q.weight.codes.to(x) * self.q.weight.scale).T
        return self.o(torch.tanh(base + self.a(x)))


class Hooked(nn.Module):
    """Forward hooks: one that records in a list, one that changes the output."""

    def __init__(self):
        super().__init__()
        self.a, self.o, self.fired = nn.Linear(4, 4), nn.Linear(4, 2), []
        fired = self.fired
        self.a.register_forward_hook(lambda _, given, out: fired.append(out))
        self.a.register_forward_hook(lambda _, given, out: torch.tanh(out) * 1.5)
        self.o.register_full_backward_hook(lambda *_: fired.append("backward"))

    def forward(self, x):
        return self.o(self.a(x))


class InPlace(nn.Module):
    """Normalises its input in place."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x -= x.mean(1, keepdim=True)
        x.mul_(2)
        return self.o(torch.tanh(self.a(x)))


class Rescales(nn.Module):
    """Rescales a buffer in its first pass and notes that in a flag, as RWKV does weights."""

    def __init__(self):
        super().__init__()
        self.a, self.o, self.done = nn.Linear(4, 4), nn.Linear(4, 2), False
        self.register_buffer("scale", torch.full((4,), 4.0))

    def forward(self, x):
        if not self.done:
            self.scale.div_(2)
            self.done = True
        return self.o(torch.tanh(self.a(x)) * self.scale)


def derived(change):
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change(model[0])
    return model


def used(model, x):
    """After a pass of the user's own, which leaves derived weights and feature maps behind."""
    model(x.clone())
    return model


def vectors():
    return torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def tokens():
    return torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


_PLAIN = {
    "twice": (Twice, vectors),
    "sequential_twice": (sequential_twice, vectors),
    "rotary": (Rotary, tokens),
    "cached_bias": (CachedBias, vectors),
    "carried": (Carried, vectors),
    "keeps": (Keeps, vectors),
    "aliased": (Aliased, vectors),
    "quantised": (Quantised, vectors),
    "hooked": (Hooked, vectors),
    "in_place": (InPlace, vectors),
    "rescales": (Rescales, vectors),
    "weight_norm": (lambda: derived(old_weight_norm), vectors),
    "spectral_norm": (lambda: derived(old_spectral_norm), vectors),
    "pruned": (lambda: derived(lambda m: prune.l1_unstructured(m, "weight", 0.4)), vectors),
    "orthogonal": (lambda: derived(parametrizations.orthogonal), vectors),
    "scripted": (
        lambda: nn.Sequential(torch.jit.script(nn.Linear(4, 4)), *sequential_twice()),
        vectors,
    ),
}
AFTER_A_PASS = ("keeps", "weight_norm", "spectral_norm", "pruned", "rotary", "rescales", "carried")


def _maker(make, inputs, first):
    def made():
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, x = make().double().eval(), inputs()
        return (used(model, x) if first else model), x

    return made


MODELS = {name: _maker(make, inputs, False) for name, (make, inputs) in _PLAIN.items()}
MODELS |= {f"{name}_used": _maker(*_PLAIN[name], True) for name in AFTER_A_PASS}
