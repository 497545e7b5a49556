"""toy_gd_reduced against the batched torch composition of the weights it stands for."""

import pytest
import torch
from harness import Case

from catapult_ext import ops, reference
from catapult_ext.testing.toy_cases import ReducedProblem, reduced_state, toy_problem


@pytest.mark.parametrize("curvature_every", [0, 10])
def test_toy_gd_reduced(measure, quick, curvature_every):
    replicas, width, inputs, samples = 4096, 1024, 16, 32
    steps = 5 if quick else 100
    few = toy_problem(
        torch.linspace(0.5, 3.5, 64),
        width=width,
        inputs=inputs,
        samples=samples,
        dtype=torch.float32,
    )
    w, S, q, x, y, eta = reduced_state(few)
    problem = ReducedProblem(
        *(t.repeat(replicas // 64, *[1] * (t.dim() - 1)) for t in (w, S, q)),
        x,
        y,
        eta.repeat(replicas // 64),
    )

    def fresh():
        return (ReducedProblem(*(t.clone() for t in problem)),)

    def ours(mine):
        return ops.toy_gd_reduced(*mine, width, steps, curvature_every=curvature_every)

    def composition(mine):
        return reference.toy_gd_reduced(*mine, width, steps, curvature_every=curvature_every)

    def check():
        want, got = composition(*fresh())[0], ours(*fresh()).loss
        assert ((got - want).abs().amax(1) / want.amax(1)).max() < 1e-2

    measure(
        Case(
            ours=ours,
            baselines={"batched torch": composition} if quick else {},
            check=check,
            prepare=fresh,
            flops=replicas * steps * (4 * inputs**2 + 4 * samples * inputs),
            unit=("replica-steps", replicas * steps),
        )
    )
