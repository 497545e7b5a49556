"""toy_gd, loss at every step, against lean batched torch and a loop for this one problem size."""

import pytest
import torch
from harness import Case
from single_pass import compiled

from catapult_ext import ops
from catapult_ext.testing.toy_cases import ToyProblem, lean_torch_gd, toy_problem


def _bytes(problem, steps):
    """Weights in and out once, loss and weight norm of every step: all that leaves the caches."""
    weights, records = problem.U.numel() + problem.v.numel(), 2 * len(problem.U) * (steps + 1)
    return 4 * (2 * weights + records)


@pytest.mark.parametrize("curvature_every", [0, 10])
def test_toy_gd(measure, quick, curvature_every):
    replicas = 64
    width = 1024
    inputs = 16
    samples = 32
    steps = 10 if quick else 100
    c = torch.linspace(0.5, 3.5, replicas)
    problem = toy_problem(c, width=width, inputs=inputs, samples=samples, dtype=torch.float32)

    def fresh():
        return (ToyProblem(*(t.clone() for t in problem)),)

    def ours(mine):
        return ops.toy_gd(*mine, steps, curvature_every=curvature_every)

    def check():
        want = lean_torch_gd(*fresh(), steps)
        got = ours(*fresh()).loss
        assert ((got - want).abs().amax(1) / want.amax(1)).max() < 1e-3

    baselines = {"lean torch": lambda mine: lean_torch_gd(mine, steps)}
    if (loop := compiled(inputs, samples)) is not None:
        torch.testing.assert_close(
            loop(*fresh(), steps), lean_torch_gd(*fresh(), steps), rtol=1e-3, atol=1e-5
        )
        baselines["single-pass loop"] = lambda mine: loop(mine, steps)
    measure(
        Case(
            ours=ours,
            baselines=baselines,
            check=check,
            prepare=fresh,
            flops=replicas * steps * (6 * width * inputs + 4 * samples * inputs),
            bytes=_bytes(problem, steps),
            unit=("replica-steps", replicas * steps),
            target={"lean torch": 12.0, "single-pass loop": 0.8},
        )
    )


@pytest.mark.parametrize("curvature_every", [0, 10])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_toy_activation(measure, quick, activation, curvature_every):
    """Flops are those of the products; W N evaluations of phi and phi' a step come on top."""
    replicas = 64
    width = 1024
    inputs = 16
    samples = 32
    steps = 5 if quick else 20
    c = torch.linspace(0.25, 1.75, replicas)
    problem = toy_problem(c, width=width, inputs=inputs, samples=samples, dtype=torch.float32)

    def fresh():
        return (ToyProblem(*(t.clone() for t in problem)),)

    def ours(mine):
        return ops.toy_gd(*mine, steps, curvature_every=curvature_every, activation=activation)

    def check():
        want = lean_torch_gd(*fresh(), steps, activation)
        got = ours(*fresh()).loss
        assert ((got - want).abs().amax(1) / want.amax(1)).max() < 1e-3

    measure(
        Case(
            ours=ours,
            baselines={"lean torch": lambda mine: lean_torch_gd(mine, steps, activation)},
            check=check,
            prepare=fresh,
            flops=replicas * steps * 4 * width * inputs * samples,
            bytes=_bytes(problem, steps),
            unit=("replica-steps", replicas * steps),
        )
    )
