"""A million replicas of which half diverge: the others do not notice, and the step is exact."""

import pytest
import torch

from catapult_ext import ops, reference
from catapult_ext.testing.toy_cases import ReducedProblem, reduced_state, toy_problem

pytestmark = pytest.mark.nightly
COUNT, FEW = 1_000_000, 500


@pytest.fixture
def shuffled(generator):
    """Which replicas converge, in random order."""
    return torch.randperm(COUNT, generator=generator) < COUNT // 2


def test_reduced(shuffled, generator):
    base = reduced_state(toy_problem([1.0] * FEW, width=200, inputs=3, samples=5))
    w, S, q, x, y, eta = (t[torch.arange(COUNT) % FEW] if len(t) == FEW else t for t in base)
    rates = torch.rand(COUNT, generator=generator, dtype=torch.float64)
    eta = eta * torch.where(shuffled, 0.2 + 1.6 * rates, 9 + 20 * rates)
    problem = ReducedProblem(w, S, q, x, y, eta)

    def run(replicas):
        mine = [t[replicas].clone() if len(t) == COUNT else t for t in problem]
        return ops.toy_gd_reduced(*mine, 200.0, 100, record_every=5), mine

    got, state = run(torch.arange(COUNT))
    assert torch.equal(got.diverged_at < 0, shuffled)
    assert all(part.isfinite().all() for part in (got.loss, got.weight_norm))
    alone, calm = run(shuffled)
    assert torch.equal(alone.loss, got.loss[shuffled])
    assert torch.equal(alone.weight_norm, got.weight_norm[shuffled])
    for one, every in zip(calm[:3], state[:3], strict=True):
        assert torch.equal(one, every[shuffled])
    sample = (~shuffled).nonzero().flatten()[::50]
    mine = [t[sample].clone() if len(t) == COUNT else t for t in problem]
    want = ops.ToyRecord(*reference.toy_gd_reduced(*mine, 200.0, 100, record_every=5))
    assert torch.equal(got.diverged_at[sample], want.diverged_at)


def test_scalar(shuffled, generator):
    rates = torch.rand(COUNT, generator=generator, dtype=torch.float64)
    v = torch.where(shuffled, 0.1 + 3.8 * rates, 4.05 + 8 * rates)
    k = 0.1 * 10.0 ** (-14 * torch.rand(COUNT, generator=generator, dtype=torch.float64))
    h = (v - k.square()).sqrt()
    got = ops.toy_scalar(h, k, 300, record_every=50)
    assert all(part.isfinite().all() for part in got)
    want = reference.toy_scalar(h, k, 300, record_every=50)
    assert torch.equal(got.diverged_at, want[4])
    assert torch.equal(got.diverged_at < 0, shuffled)
    alone = ops.toy_scalar(h[shuffled], k[shuffled], 300, record_every=50)
    for one, every in zip(alone, got, strict=True):
        assert torch.equal(one, every[shuffled])
