import numpy as np
import pytest
import torch

from catapult_ext import ops, reference
from catapult_ext.testing import max_error
from catapult_ext.testing.toy_cases import ReducedProblem, reduced_state, toy_problem

RATES = [0.5, 1.2, 2.6, 3.3]


def run(backend, problem, width, steps, **kwargs):
    """The record, and w, S, q after the run, on copies of the problem."""
    mine = [t.clone().to(backend.device) for t in problem]
    record = backend.run(ops.toy_gd_reduced, *mine, width, steps, **kwargs)
    return record, [t.cpu() for t in mine[:3]]


def oracle(problem, width, steps, **kwargs):
    mine = [t.double().clone() for t in problem]
    record = reference.toy_gd_reduced(*mine, width, steps, **kwargs)
    return ops.ToyRecord(*record), mine[:3]


def assert_close(got, want, tolerance):
    """Every row relative to its own largest value."""
    scale = want.double().abs().amax(-1, keepdim=True).clamp_min(1e-300)
    assert max_error(got.double() / scale, want.double() / scale) <= tolerance


def select(problem, replicas):
    """The problem with these replicas only."""
    w, S, q, x, y, eta = problem
    return ReducedProblem(w[replicas], S[replicas], q[replicas], x, y, eta[replicas])


def test_equals_the_direct_form(backend):
    """200 steps of the same catapults from the same weights, float64: 1e-10."""
    steps = 200 if backend.name.startswith("cpu") else 30
    direct = toy_problem(RATES, width=300, inputs=4, samples=7)
    reduced = reduced_state(direct)
    got, (w, S, q) = run(backend, reduced, 300, steps, curvature_every=20)
    U, v = direct.U.to(backend.device), direct.v.to(backend.device)
    rest = [t.to(backend.device) for t in direct[2:]]
    want = backend.run(ops.toy_gd, U, v, *rest, steps, curvature_every=20)
    U, v = U.cpu(), v.cpu()
    assert_close(got.loss, want.loss, 1e-10)
    assert_close(got.weight_norm, want.weight_norm, 1e-10)
    assert_close(got.curvature, want.curvature, 1e-10)
    assert_close(w, (U.mT @ v[:, :, None]).squeeze(-1), 1e-8)
    assert_close(S.flatten(1), (U.mT @ U).flatten(1), 1e-10)
    assert_close(q, v.square().sum(1), 1e-10)
    assert torch.equal(S, S.mT)


def test_many_samples(backend, dtype):
    """On a GPU X then stays in global memory."""
    problem = reduced_state(toy_problem([0.4, 0.9], width=50, inputs=3, samples=1300, dtype=dtype))
    got, _ = run(backend, problem, 50, 3)
    want, _ = oracle(problem, 50, 3)
    tolerance = 1000 * torch.finfo(dtype).eps
    assert_close(got.loss, want.loss, tolerance)
    assert_close(got.weight_norm, want.weight_norm, tolerance)


@pytest.mark.parametrize("replicas", [1, 3, 8, 17])
@pytest.mark.parametrize(("inputs", "samples"), [(1, 1), (2, 3), (3, 4), (5, 8), (16, 13), (17, 2)])
def test_sizes(backend, dtype, replicas, inputs, samples):
    c = [0.3 + 0.07 * r for r in range(replicas)]
    direct = toy_problem(c, width=50, inputs=inputs, samples=samples, dtype=dtype)
    problem = reduced_state(direct)
    got, state = run(backend, problem, 50, 6, curvature_every=3)
    want, exact = oracle(problem, 50, 6, curvature_every=3)
    tolerance = 100 * torch.finfo(dtype).eps
    assert_close(got.loss, want.loss, tolerance)
    assert_close(got.weight_norm, want.weight_norm, tolerance)
    assert_close(got.curvature, want.curvature, tolerance)
    for mine, reference_state in zip(state, exact, strict=True):
        assert_close(
            mine.flatten(1) if mine.dim() > 1 else mine,
            reference_state.flatten(1) if mine.dim() > 1 else reference_state,
            tolerance,
        )


def test_no_replicas(backend, dtype):
    problem = select(
        reduced_state(toy_problem([1.0], width=5, inputs=2, samples=2, dtype=dtype)), slice(0, 0)
    )
    got, _ = run(backend, problem, 5, 4)
    assert got.loss.shape == (0, 5)


@pytest.mark.parametrize("width", [1e3, 1e9, 1e15])
def test_width_is_only_a_number(backend, dtype, width):
    """The state of an enormous width, against the reference, through a catapult."""
    small = reduced_state(toy_problem(RATES, width=200, inputs=3, samples=5, dtype=torch.float64))
    grow = width / 200
    w, S, q, x, y, eta = small
    problem = ReducedProblem(*(t.to(dtype) for t in (w * grow**0.5, S * grow, q * grow, x, y, eta)))
    got, _ = run(backend, problem, width, 60, curvature_every=60)
    want, _ = oracle(problem, width, 60, curvature_every=60)
    assert got.diverged_at.tolist() == [-1] * 4
    tolerance = 1e-10 if dtype == torch.float64 else 2e-3
    assert_close(got.curvature, want.curvature, tolerance)
    if dtype == torch.float64:
        assert_close(got.loss, want.loss, 1e-10)


@pytest.mark.parametrize("record_every", [1, 3, 50])
def test_strides(backend, record_every):
    problem = reduced_state(toy_problem(RATES, width=20, inputs=3, samples=4))
    full, _ = run(backend, problem, 20, 20, curvature_every=1)
    some, _ = run(backend, problem, 20, 20, record_every=record_every, curvature_every=record_every)
    for mine, every in zip(some, full, strict=True):
        if mine.dim() == 2:
            assert torch.equal(mine, every[:, ::record_every])


def test_divergence(backend, dtype):
    """Many replicas, a third of which diverges at its own step: the rest does not notice."""
    c = [9.0 + r if r % 3 == 1 else 0.5 + 0.05 * r for r in range(41)]
    problem = reduced_state(toy_problem(c, width=40, inputs=3, samples=4, dtype=dtype))
    got, state = run(backend, problem, 40, 20, curvature_every=1)
    want, _ = oracle(problem, 40, 20, curvature_every=1)
    assert got.diverged_at.tolist() == want.diverged_at.tolist()
    bad = torch.tensor([value > 4 for value in c])
    assert ((got.diverged_at >= 0) == bad).all()
    for part in (got.loss, got.weight_norm, got.curvature):
        assert part.isfinite().all()
    for r in bad.nonzero().flatten().tolist():
        step = int(got.diverged_at[r])
        assert (got.loss[r, step:] == got.loss[r, step - 1]).all()
        assert (got.curvature[r, step:] == got.curvature[r, step - 1]).all()
    alone, calm = run(backend, select(problem, ~bad), 40, 20)
    assert torch.equal(alone.loss, got.loss[~bad])
    for mine, every in zip(calm, state, strict=True):
        assert torch.equal(mine, every[~bad])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_replica_that_starts_broken(backend, bad):
    problem = reduced_state(toy_problem([1.0] * 9, width=9, inputs=3, samples=4))
    clean, _ = run(backend, problem, 9, 5)
    problem.S[4, 0, 1] = bad
    problem.q[7] = bad
    got, _ = run(backend, problem, 9, 5)
    assert got.diverged_at[7] == 0
    assert got.diverged_at[4] >= 0
    calm = [0, 1, 2, 3, 5, 6, 8]
    assert torch.equal(got.loss[calm], clean.loss[calm])
    assert got.diverged_at[calm].tolist() == [-1] * 7


def test_same_bits_for_any_number_of_threads(dtype):
    c = [1.0, 9.0, 2.6, 3.3, 1.5] * 30
    problem = reduced_state(toy_problem(c, width=37, inputs=3, samples=4, dtype=dtype))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            mine = [t.clone() for t in problem]
            results.append((ops.toy_gd_reduced(*mine, 37, 30).loss, mine[1]))
    finally:
        torch.set_num_threads(before)
    for loss, S in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(S, results[0][1])


def test_registration(dtype):
    problem = reduced_state(toy_problem(RATES, width=9, inputs=3, samples=4, dtype=dtype))
    torch.library.opcheck(torch.ops.catapult.toy_gd_reduced, (*problem, 9.0, 4, 2, 2))
    compiled = torch.compile(ops.toy_gd_reduced, fullgraph=True, backend="aot_eager")
    one, two = ([t.clone() for t in problem] for _ in range(2))
    assert torch.equal(compiled(*one, 9, 4).loss, ops.toy_gd_reduced(*two, 9, 4).loss)
    assert torch.equal(one[1], two[1])


@pytest.mark.parametrize("every", [11, 2**62, 2**63 - 1])
def test_a_stride_beyond_the_run_records_the_start(backend, every):
    problem = reduced_state(toy_problem([0.5, 50.0], width=9, inputs=3, samples=4))
    want, _ = run(backend, problem, 9, 10, record_every=10, curvature_every=10)
    got, _ = run(backend, problem, np.int64(9), 10, record_every=every, curvature_every=every)
    assert got.diverged_at[1] > 0
    for part in ("loss", "weight_norm", "curvature"):
        assert torch.equal(getattr(got, part), getattr(want, part)[:, :1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"w": None}, TypeError, "w must be a torch.Tensor, got NoneType"),
        ({"w": lambda t: t.half()}, TypeError, "w must have dtype float32 or float64"),
        ({"S": lambda t: t.float()}, TypeError, "S must have the dtype of w"),
        ({"S": lambda t: t[:, :2]}, ValueError, r"S must have shape \(4, 3, 3\)"),
        ({"q": lambda t: t[:2]}, ValueError, r"q must have shape \(4\)"),
        ({"x": lambda t: t[:, :2]}, ValueError, r"x must have shape \(N, 3\)"),
        ({"eta": lambda t: t * 0}, ValueError, "eta must be positive and finite, got 0"),
        ({"S": lambda t: t.permute(1, 2, 0).contiguous().permute(2, 0, 1)}, ValueError, "in place"),
        ({"q": lambda t: t.requires_grad_()}, ValueError, r"q.detach\(\)"),
        ({"width": 0.5}, ValueError, r"width must be in \[1, 1e18\], got 0.5"),
        ({"width": float("nan")}, ValueError, "width must be in"),
        ({"width": "9"}, TypeError, "width must be a number, got '9'"),
        ({"steps": -1}, ValueError, "steps must be >= 0, got -1"),
    ],
)
def test_bad_input(change, error, message):
    problem = reduced_state(toy_problem(RATES, width=9, inputs=3, samples=4))
    arguments = {**problem._asdict(), "width": 9, "steps": 3}
    for name, value in change.items():
        arguments[name] = value(arguments[name]) if callable(value) else value
    with pytest.raises(error, match=message):
        ops.toy_gd_reduced(**arguments)
