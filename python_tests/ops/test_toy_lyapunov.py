import math

import pytest
import torch

from catapult_ext import ops, reference
from catapult_ext.ops.toy_lyapunov import NOISES
from catapult_ext.reference.toy_lyapunov import draws, threefry

SIZES = [(0, 3), (3, 0), (1, 1), (3, 7), (4, 8), (5, 9), (513, 2), (2, 131)]


def problem(cases, generator):
    beta = torch.rand(cases, dtype=torch.float64, generator=generator)
    mean = 3 * torch.rand(cases, dtype=torch.float64, generator=generator)
    return mean, 2 * torch.rand(cases, dtype=torch.float64, generator=generator), beta


def assert_agrees(got, exact):
    assert got.shape == exact.shape
    assert torch.equal(got.isfinite(), exact.isfinite())
    fine = exact.isfinite()
    assert torch.equal(got[~fine].nan_to_num(7), exact[~fine].nan_to_num(7))
    torch.testing.assert_close(got[fine], exact[fine], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ((0, 0, 0, 0), (0xC2B6E3A8C2C69865, 0x6F81ED42F350084D)),
        ((-1, -1, -1, -1), (0xE02CB7C4D95D277A, 0xD06633D0893B8B68)),
        (
            (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
            (0x263C7D30BB0F0AF1, 0x56BE8361D3311526),
        ),
    ],
)
def test_generator_gives_the_published_answers(word, expected):
    """Known answers of Random123."""
    signed = [w - (1 << 64) if w >= 1 << 63 else w for w in word]
    got = threefry(torch.tensor(signed[0]), torch.tensor(signed[1]), tuple(signed[2:]))
    assert tuple(int(t) % (1 << 64) for t in got) == expected


@pytest.mark.parametrize("noise", NOISES)
def test_draws_have_the_moments_of_their_distribution(noise):
    z = draws(noise, 500, 1000, seed=3)
    fourth = {"normal": 3.0, "uniform": 1.8, "two-point": 1.0}[noise]
    for power, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, fourth)):
        sample = z**power
        assert float((sample.mean() - expected).abs()) <= 6e-3 * float(sample.std()) + 1e-12
    neighbours = (z[1:] * z[:-1]).mean(), (z[:, 1:] * z[:, :-1]).mean()
    assert max(abs(float(c)) for c in neighbours) < 6e-3


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("cases", "paths"), SIZES)
def test_matches_reference(backend, generator, cases, paths, noise):
    args = problem(cases, generator)
    options = {"paths": paths, "burn_in": 5, "noise": noise, "seed": -9, "first_path": 4}
    got = backend.run(ops.toy_lyapunov, *args, 37, **options)
    assert_agrees(got, reference.toy_lyapunov(*args, 37, **options))


@pytest.mark.parametrize(
    ("steps", "burn_in"),
    [(0, 0), (1, 0), (1, 1), (7, 3), (8, 8), (63, 9), (64, 63), (65, 64), (130, 64), (203, 65)],
)
def test_any_number_of_steps(backend, generator, steps, burn_in):
    args = problem(3, generator)
    got = backend.run(ops.toy_lyapunov, *args, steps, paths=3, burn_in=burn_in)
    assert_agrees(got, reference.toy_lyapunov(*args, steps, paths=3, burn_in=burn_in))


def test_paths_and_cases_may_be_cut_anywhere(backend, generator):
    args = problem(9, generator)
    whole = backend.run(ops.toy_lyapunov, *args, 70, paths=21)
    parts = [
        backend.run(ops.toy_lyapunov, *args, 70, paths=n, first_path=first)
        for first, n in ((0, 2), (2, 11), (13, 8))
    ]
    assert torch.equal(torch.cat(parts, 1), whole)
    rows = [backend.run(ops.toy_lyapunov, *(a[i::3] for a in args), 70, paths=21) for i in range(3)]
    assert torch.equal(torch.stack(rows, 1).reshape(9, 21), whole)


def test_threads_change_no_bit(generator):
    args = problem(700, generator)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(ops.toy_lyapunov(*args, 300, paths=19))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_seeds_and_noises_differ(backend, generator):
    args = problem(2, generator)
    runs = [backend.run(ops.toy_lyapunov, *args, 20, seed=s) for s in (0, 1, -1, 2**63 - 1)]
    runs += [backend.run(ops.toy_lyapunov, *args, 20, noise=n) for n in NOISES[1:]]
    for i, one in enumerate(runs):
        assert not any(torch.equal(one, other) for other in runs[:i])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_non_finite_input_stays_in_its_case(backend, generator, bad, which):
    args = list(problem(9, generator))
    clean = backend.run(ops.toy_lyapunov, *args, 40, paths=5)
    args[which] = args[which].clone()
    args[which][4] = bad
    got = backend.run(ops.toy_lyapunov, *args, 40, paths=5)
    keep = torch.arange(9) != 4
    assert torch.equal(got[keep], clean[keep])
    assert got[4].isnan().all()


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
def test_huge_and_tiny_steps(backend, scale):
    """At beta = 0 a path is a product of numbers."""
    one = torch.ones(1, dtype=torch.float64)
    got = backend.run(ops.toy_lyapunov, (1 - scale) * one, scale * one, 0 * one, 100, paths=9)
    factors = scale - scale * draws("normal", 100, 9)
    # the pair (x_100, x_99) of a path that started at (1, 1)
    last = factors.abs().log().sum(0)
    pair = 0.5 * torch.log1p(factors[-1] ** -2)
    exact = last + pair - 0.5 * math.log(2)
    tolerance = 1e-12 if scale >= 1 else 1e-15 / min(scale, 1)  # of 1 - mean
    if tolerance < 1e-3:
        torch.testing.assert_close(got[0], exact, rtol=1e-10, atol=100 * tolerance)
    assert got.isfinite().all() or scale < 1e-15


def test_a_path_that_ends_in_the_origin(backend):
    one = torch.ones(2, dtype=torch.float64)
    got = backend.run(ops.toy_lyapunov, one, torch.tensor([0.0, 0.5]).double(), 0 * one, 40)
    assert (got[0] == -math.inf).all()
    assert got[1].isfinite().all()


def test_strided_views(backend, generator):
    args = problem(20, generator)
    expected = backend.run(ops.toy_lyapunov, *(a[::2].clone() for a in args), 50)
    assert torch.equal(backend.run(ops.toy_lyapunov, *(a[::2] for a in args), 50), expected)


def test_registration(generator):
    args = problem(4, generator)
    torch.library.opcheck(torch.ops.catapult.toy_lyapunov, (*args, 7, 5, 2, 0, 3, 1))
    compiled = torch.compile(ops.toy_lyapunov, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args, 7), ops.toy_lyapunov(*args, 7))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mean": [1.0]}, TypeError, "mean must be a torch.Tensor, got list"),
        ({"beta": torch.ones(4)}, TypeError, "beta must have dtype float64, got torch.float32"),
        ({"deviation": torch.ones(3).double()}, ValueError, r"deviation must have shape \(4\)"),
        ({"mean": torch.ones(2, 2).double()}, ValueError, r"mean must have shape \(R\)"),
        ({"beta": torch.ones(4).double().requires_grad_()}, ValueError, r"beta.detach\(\)"),
        ({"steps": -1}, ValueError, "steps must be >= 0, got -1"),
        ({"paths": -1}, ValueError, "paths must be >= 0, got -1"),
        ({"burn_in": 4}, ValueError, "burn_in must be at most steps, got 4"),
        ({"first_path": -1}, ValueError, "first_path must be >= 0, got -1"),
        ({"first_path": 2**63 - 1}, ValueError, r"first_path \+ paths must fit 64 bits"),
        ({"paths": 1 << 31}, ValueError, r"paths must be below 2\^31"),
        ({"noise": "cauchy"}, ValueError, "noise must be one of .*, got 'cauchy'"),
        ({"seed": 0.5}, TypeError, "seed must be an int, got float"),
    ],
)
def test_bad_input(change, error, message):
    ones = torch.ones(4, dtype=torch.float64)
    args = {"mean": ones, "deviation": ones, "beta": 0 * ones, "steps": 3} | change
    with pytest.raises(error, match=message):
        ops.toy_lyapunov(**args)
