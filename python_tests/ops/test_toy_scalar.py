import pytest
import torch

from catapult_ext import ops, reference
from catapult_ext.testing import max_error

SIZES = [0, 1, 3, 63, 64, 65, 511, 512, 513, 1031]
FLOATS = ("h", "k", "peak", "record_a", "record_v")


def amplitudes(v, u, dtype):
    """h >= k >= 0 with h^2 + k^2 = v and (h k)^2 = u."""
    h = ((v + (v * v - 4 * u).clamp(min=0).sqrt()) / 2).sqrt()
    return h.to(dtype), (u.sqrt() / h).to(dtype)


def problem(lanes, dtype, generator, low=0.2, high=3.4):
    """Lanes that all converge, from lazy ones to catapults of seven decades."""
    v = low + (high - low) * torch.rand(lanes, dtype=torch.float64, generator=generator)
    u = 10 ** (-1 - 6 * torch.rand(lanes, dtype=torch.float64, generator=generator)) * v * v / 4
    return amplitudes(v, u, dtype)


def oracle(h, k, steps, **kwargs):
    wide = {n: v.double() if torch.is_tensor(v) else v for n, v in kwargs.items()}
    return reference.toy_scalar(h.double(), k.double(), steps, **wide)


def rms(got, exact):
    """Root mean square over the lanes, relative to the largest value."""
    if got.numel() == 0:
        return 0.0
    scale = exact.abs().max().clamp(min=1e-30)
    return float(((got.double() - exact) / scale).square().mean().sqrt())


def assert_agrees(got, h, k, steps, **kwargs):
    exact = oracle(h, k, steps, **kwargs)
    if h.dtype == torch.float64:
        assert torch.equal(got.diverged_at, exact[4])
        assert torch.equal(got.peak_step, exact[3])
        for name, right in zip(FLOATS, (*exact[:3], *exact[5:]), strict=True):
            have = getattr(got, name)
            assert have.shape == right.shape
            if right.numel():
                assert max_error(have, right) <= 1e-10 * float(right.abs().max()), name
        return
    naive = reference.toy_scalar(h, k, steps, **kwargs)
    for name, plain, right in zip(
        FLOATS, (*naive[:3], *naive[5:]), (*exact[:3], *exact[5:]), strict=True
    ):
        bound = 2 * rms(plain, right) + 8 * torch.finfo(h.dtype).eps
        assert rms(getattr(got, name), right) <= bound, name


@pytest.mark.parametrize("lanes", SIZES)
def test_matches_reference(backend, dtype, generator, lanes):
    h, k = problem(lanes, dtype, generator)
    got = backend.run(ops.toy_scalar, h, k, 101)
    assert got.h.dtype == dtype
    assert got.record_a.shape == (lanes, 0)
    assert_agrees(got, h, k, 101)


@pytest.mark.parametrize("steps", [0, 1, 31, 32, 33, 97])
@pytest.mark.parametrize("record_every", [0, 1, 5, 32, 200])
def test_records(backend, dtype, generator, steps, record_every):
    h, k = problem(70, dtype, generator)
    got = backend.run(ops.toy_scalar, h, k, steps, record_every=record_every)
    assert_agrees(got, h, k, steps, record_every=record_every)


def test_label_and_momentum(backend, dtype, generator):
    h, k = problem(130, dtype, generator, high=1.8)
    b = torch.linspace(-0.8, 0.8, 130).to(dtype)
    beta = torch.linspace(0.0, 0.7, 130).to(dtype)
    for kwargs in ({"b": b}, {"beta": beta}, {"b": b / 4, "beta": beta}):
        got = backend.run(ops.toy_scalar, h, k, 60, record_every=3, **kwargs)
        assert_agrees(got, h, k, 60, record_every=3, **kwargs)


def test_divergence_is_exact_finite_and_leaves_others_alone(backend, generator):
    h, k = problem(400, torch.float64, generator)
    bad_h, bad_k = amplitudes(
        4.05 + 8 * torch.rand(400, generator=generator).double(),
        10 ** (-20 * torch.rand(400, generator=generator).double()),
        torch.float64,
    )
    order = torch.randperm(800, generator=generator)
    mixed_h, mixed_k = torch.cat([h, bad_h])[order], torch.cat([k, bad_k])[order]
    for every in (0, 7):
        got = backend.run(ops.toy_scalar, mixed_h, mixed_k, 150, record_every=every)
        alone = backend.run(ops.toy_scalar, h, k, 150, record_every=every)
        exact = reference.toy_scalar(mixed_h, mixed_k, 150, record_every=every)
        assert torch.equal(got.diverged_at, exact[4])
        assert (got.diverged_at[order >= 400] > 0).all()
        assert all(part.isfinite().all() for part in got)
        where = torch.argsort(order)[:400]
        for part, expected in zip(got, alone, strict=True):
            assert torch.equal(part[where], expected)
        if every:  # held from the step before the divergence on
            late = torch.arange(got.record_v.shape[1]) * every >= got.diverged_at[:, None]
            late &= (got.diverged_at >= 0)[:, None]
            held = (got.h.square() + got.k.square())[:, None].expand_as(late)
            assert torch.allclose(got.record_v[late], held[late])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["h", "k", "b", "beta"])
def test_non_finite_input_stays_in_its_lane(backend, dtype, generator, bad, name):
    h, k = problem(70, dtype, generator)
    args = {"h": h, "k": k, "b": torch.zeros_like(h), "beta": torch.full_like(h, 0.1)}
    clean = backend.run(ops.toy_scalar, steps=40, **args)
    args[name] = args[name].clone()
    args[name][33] = bad
    got = backend.run(ops.toy_scalar, steps=40, **args)
    keep = torch.arange(70) != 33
    assert int(got.diverged_at[33]) == (1 if name == "beta" else 0)
    for part, expected in zip(got, clean, strict=True):
        assert torch.equal(part[keep], expected[keep])


def test_early_exit_is_exact(backend, dtype, generator):
    h, k = problem(300, dtype, generator)
    b = torch.where(torch.arange(300) % 3 == 0, 0.3, 0.0).to(dtype)
    for label in (None, b):
        fast = backend.run(ops.toy_scalar, h, k, 500, b=label)
        full = backend.run(ops.toy_scalar, h, k, 500, b=label, early_exit=False)
        for name in ("h", "peak", "peak_step", "diverged_at"):
            assert torch.equal(getattr(fast, name), getattr(full, name)), name
        # Each step rounds 1 - h^2 to eps, which is eps / |1 - h^2| of the factor on k.
        info, factor = torch.finfo(dtype), (1 - full.h.double().square()).abs()
        bound = 2000 * info.eps * full.k.double().abs() / factor + 100 * info.tiny
        assert ((fast.k.double() - full.k.double()).abs() <= bound).all()


@pytest.mark.parametrize("scale", [1e-15, 1e-12])
def test_tiny_residuals_keep_their_digits(backend, dtype, scale):
    """A factor on a tiny f stays a factor on everything linear, whatever its size."""
    one = torch.ones(1, dtype=dtype)
    h = 1.3 * one
    small = backend.run(ops.toy_scalar, h, scale * one, 5, record_every=1)
    growth = (1 - float(h) ** 2) ** torch.arange(6, dtype=torch.float64)
    got = small.record_a[0].double() / small.record_a[0, 0].double()
    assert max_error(got, growth) <= 40 * torch.finfo(dtype).eps


@pytest.mark.parametrize("every", [11, 2**62, 2**63 - 1])
def test_a_stride_beyond_the_run_records_the_start(backend, dtype, every):
    h = torch.tensor([0.5, 1.25, 0.25], dtype=dtype)  # the middle one diverges
    got = backend.run(ops.toy_scalar, h, 2 * h, 10, record_every=every)
    assert got.diverged_at[1] > 1
    assert torch.equal(got.record_a, (2 * h * h)[:, None])
    assert torch.equal(got.record_v, (5 * h * h)[:, None])


def test_huge_states_diverge_at_the_first_step(backend, dtype):
    big = torch.full((5,), 1e15, dtype=dtype)
    got = backend.run(ops.toy_scalar, big, big, 3)
    assert got.diverged_at.tolist() == [1 if dtype == torch.float64 else 0] * 5


def test_strided_views_and_threads(backend, dtype, generator):
    h, k = problem(2000, dtype, generator)
    expected = backend.run(ops.toy_scalar, h[::2].clone(), k[1::2].clone(), 50)
    got = backend.run(ops.toy_scalar, h[::2], k[1::2], 50)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        single = backend.run(ops.toy_scalar, h[::2], k[1::2], 50)
    finally:
        torch.set_num_threads(before)
    for part, one, right in zip(got, single, expected, strict=True):
        assert torch.equal(part, right)
        assert torch.equal(one, right)


def test_registration(generator):
    h, k = problem(9, torch.float64, generator)
    args = (h, k, 0.1 * h, None, 7, 2, True)
    torch.library.opcheck(torch.ops.catapult.toy_scalar, args)
    compiled = torch.compile(ops.toy_scalar, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(h, k, 7).h, ops.toy_scalar(h, k, 7).h)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"h": [1.0]}, TypeError, "h must be a torch.Tensor, got list"),
        ({"k": torch.ones(4).half()}, TypeError, "k must have dtype float32 or float64"),
        ({"k": torch.ones(4).double()}, TypeError, "k must have the dtype of h"),
        ({"k": torch.ones(3)}, ValueError, r"k must have shape \(4\), got \(3,\)"),
        ({"h": torch.ones(2, 2)}, ValueError, r"h must have shape \(R\), got \(2, 2\)"),
        ({"b": torch.ones(5)}, ValueError, r"b must have shape \(4\), got \(5,\)"),
        ({"beta": torch.ones(4, 1)}, ValueError, r"beta must have shape \(4\)"),
        ({"h": torch.ones(4).requires_grad_()}, ValueError, r"h.detach\(\)"),
        ({"steps": -1}, ValueError, "steps must be >= 0, got -1"),
        ({"record_every": -2}, ValueError, "record_every must be >= 0, got -2"),
        ({"early_exit": "no"}, TypeError, "early_exit must be a bool, got 'no'"),
    ],
)
def test_bad_input(change, error, message):
    args = {"h": torch.ones(4), "k": torch.ones(4), "steps": 3} | change
    with pytest.raises(error, match=message):
        ops.toy_scalar(**args)
