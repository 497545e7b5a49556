"""toy_gd_reduced against the leanest torch descent on the weights it stands for, at any width."""

import pytest
import torch
from harness import Case

from catapult_ext import ops, reference
from catapult_ext.testing.toy_cases import (
    ReducedProblem,
    ToyProblem,
    lean_torch_gd,
    reduced_state,
    toy_problem,
)

REPLICAS = 4096
FEW = 64
WIDTH = 1024
INPUTS = 16
SAMPLES = 32


def _weights():
    c = torch.linspace(0.5, 3.5, FEW)
    return toy_problem(c, width=WIDTH, inputs=INPUTS, samples=SAMPLES, dtype=torch.float32)


def _states(few, growth=1.0):
    """REPLICAS states; ``growth`` times as wide, at the same curvature and outputs."""
    w, S, q, x, y, eta = reduced_state(few)
    copies = REPLICAS // FEW
    w, S, q = (t.repeat(copies, *[1] * (t.dim() - 1)) for t in (w, S, q))
    return ReducedProblem(w * growth**0.5, S * growth, q * growth, x, y, eta.repeat(copies))


def _flops(steps):
    return REPLICAS * steps * (4 * INPUTS**2 + 4 * SAMPLES * INPUTS)


def _bytes(steps):
    """The states in and out once, loss and weight norm of every step."""
    return 4 * REPLICAS * (2 * (INPUTS**2 + INPUTS + 1) + 2 * (steps + 1))


@pytest.mark.parametrize("curvature_every", [0, 10])
def test_toy_gd_reduced(measure, quick, curvature_every):
    """Per replica and step at least 300 times lean torch, which descends on 1 / 64 of them."""
    steps = 5 if quick else 100
    weights = _weights()
    problem = _states(weights)
    every = {"curvature_every": curvature_every}

    def fresh():
        return ReducedProblem(*(t.clone() for t in problem)), ToyProblem(
            *(t.clone() for t in weights)
        )

    def ours(mine, _):
        return ops.toy_gd_reduced(*mine, WIDTH, steps, **every)

    def check():
        want = reference.toy_gd_reduced(*fresh()[0], WIDTH, steps, **every)[0]
        got = ours(*fresh()).loss
        assert ((got - want).abs().amax(1) / want.amax(1)).max() < 1e-2

    measure(
        Case(
            ours=ours,
            baselines={"lean torch, 1/64": lambda _, few: lean_torch_gd(few, steps)},
            check=check,
            prepare=fresh,
            flops=_flops(steps),
            bytes=_bytes(steps),
            unit=("replica-steps", REPLICAS * steps),
            target={"lean torch, 1/64": 300 * FEW / REPLICAS},
        )
    )


def test_width_costs_nothing(measure, quick):
    """Width 1e3 against 1e12: the ratio is 1."""
    steps = 5 if quick else 100
    weights = _weights()
    narrow, wide = _states(weights, 1e3 / WIDTH), _states(weights, 1e12 / WIDTH)

    def fresh():
        return tuple(ReducedProblem(*(t.clone() for t in one)) for one in (narrow, wide))

    def check():
        records = [
            ops.toy_gd_reduced(*state, width, 1)
            for state, width in zip(fresh(), (1e3, 1e12), strict=True)
        ]
        torch.testing.assert_close(records[0].loss[:, 0], records[1].loss[:, 0], rtol=1e-3, atol=0)

    measure(
        Case(
            ours=lambda narrow, _: ops.toy_gd_reduced(*narrow, 1e3, steps),
            baselines={"width 1e12": lambda _, wide: ops.toy_gd_reduced(*wide, 1e12, steps)},
            check=check,
            prepare=fresh,
            flops=_flops(steps),
            bytes=_bytes(steps),
            unit=("replica-steps", REPLICAS * steps),
        )
    )
