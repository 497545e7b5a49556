"""What diverged replicas cost: a batch half of which diverges, against its converging half."""

import torch
from harness import Case

from catapult_ext import ops
from catapult_ext.testing.toy_cases import ReducedProblem, reduced_state, toy_problem

STEPS = 1000


def _half(count):
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(count, generator=generator) < count // 2


def test_reduced(measure, quick):
    """D 8, loss every hundredth step."""
    count, few = (8192, 64) if quick else (1 << 18, 256)
    base = reduced_state(
        toy_problem([1.0] * few, width=200, inputs=8, samples=16, dtype=torch.float32)
    )
    calm = _half(count)
    w, S, q, x, y, eta = (t[torch.arange(count) % few] if len(t) == few else t for t in base)
    eta = eta * torch.where(calm, 1.5, 20.0)
    problem = ReducedProblem(w, S, q, x, y, eta)

    def fresh():
        every = [t.clone() for t in problem]
        return every, [t[calm].clone() if len(t) == count else t for t in problem]

    def check():
        record = ops.toy_gd_reduced(*fresh()[0], 200.0, STEPS, record_every=100)
        assert torch.equal(record.diverged_at < 0, calm)
        assert record.loss.isfinite().all()

    measure(
        Case(
            ours=lambda every, _: ops.toy_gd_reduced(*every, 200.0, STEPS, record_every=100),
            baselines={
                "converging half": lambda _, half: ops.toy_gd_reduced(
                    *half, 200.0, STEPS, record_every=100
                )
            },
            check=check,
            prepare=fresh,
            unit=("replicas", count),
        )
    )


def test_scalar(measure, quick):
    """A million lanes."""
    count = 8192 if quick else 1 << 20
    calm = _half(count)
    h = torch.where(calm, 1.2, 2.2).double()
    k = torch.full_like(h, 1e-6)

    def check():
        record = ops.toy_scalar(h, k, STEPS)
        assert torch.equal(record.diverged_at < 0, calm)

    measure(
        Case(
            ours=lambda: ops.toy_scalar(h, k, STEPS, early_exit=False),
            baselines={
                "converging half": lambda: ops.toy_scalar(h[calm], k[calm], STEPS, early_exit=False)
            },
            check=check,
            unit=("lanes", count),
        )
    )
