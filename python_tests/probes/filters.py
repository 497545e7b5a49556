"""Optimizers that filter their gradients linearly, for the tests of thresholds and edges."""

import math

import torch


class Filtered(torch.optim.Optimizer):
    """u_t = sum of b_j g_{t-j} - sum over j >= 1 of a_j u_{t-j}; theta <- theta - lr u."""

    def __init__(self, params, lr, numerator, denominator=(1.0,)):
        super().__init__(params, {"lr": lr, "b": list(numerator), "a": list(denominator)})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                inputs = [p.grad.clone(), *state.get("inputs", [])][: len(group["b"])]
                past = state.get("outputs", [])
                u = sum(b * g for b, g in zip(group["b"], inputs, strict=False))
                u = u - sum(a * o for a, o in zip(group["a"][1:], past, strict=False))
                state["inputs"], state["outputs"] = inputs, [u, *past][: len(group["a"]) - 1]
                p.sub_(group["lr"] * u)


def ema(beta):
    return (1 - beta,), (1.0, -beta)


def qhm(beta, nu):
    """(1 - nu) g + nu * EMA of g."""
    return (1 - nu + nu * (1 - beta), -(1 - nu) * beta), (1.0, -beta)


def two_poles(one, two):
    return ((1 - one) * (1 - two),), (1.0, -(one + two), one * two)


def multipliers(k, numerator, denominator):
    """Roots of (z - 1) A(z) + k B(z), with A and B in powers of 1/z."""
    import numpy as np

    size = max(len(numerator), len(denominator) + 1)
    a = np.pad(np.convolve([1.0, -1.0], denominator), (0, size - len(denominator) - 1))
    b = np.pad(np.asarray(numerator, float), (1, 0))
    b = np.pad(b, (0, max(0, len(a) - len(b))))
    a = np.pad(a, (0, len(b) - len(a)))
    return np.roots(a + k * b)


def spectral_radius(k, numerator, denominator):
    return float(abs(multipliers(k, numerator, denominator)).max())


def random_filter(generator):
    """A stable filter of up to four poles (radius at most 0.75) with a positive gain at z = 1."""
    import numpy as np

    while True:
        poles = []
        for _ in range(generator.integers(0, 3)):
            r, angle = generator.uniform(0, 0.75), generator.uniform(0, math.pi)
            poles += [r * np.exp(1j * angle), r * np.exp(-1j * angle)]
        if generator.random() < 0.5:
            poles.append(generator.uniform(-0.75, 0.75))
        denominator = np.poly(poles).real if poles else np.ones(1)
        numerator = generator.normal(size=generator.integers(1, 4))
        gain = numerator.sum() / denominator.sum()
        if abs(gain) > 0.05:
            return numerator * np.sign(gain), denominator
