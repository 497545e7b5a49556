import pytest
import torch

from catapult_ext import _C, ops, reference
from catapult_ext.testing import allowed_error, max_error, one_thread

WIDTHS = [(7, 5), (33, 3)]  # (d, p) of the layers
OUTPUTS = ["all", "trace", "diagonal"]


def factors(samples, outputs, dtype, generator, widths=WIDTHS):
    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

    a = [normal(samples, d) for d, _ in widths]
    g = [normal(samples, outputs, p) for _, p in widths]
    return a, g


def options(layers=2):
    return {"scale": [0.5, 2.0, 1.0][:layers], "bias": [0.0, 1.0, 0.25][:layers]}


def magnitude(args, **kwargs):
    """The sum of the absolute terms of the largest entry."""
    absolute = [[t.double().abs() for t in side] for side in args]
    second = {k: [t.double().abs() for t in v] for k, v in kwargs.items() if k in ("a2", "g2")}
    with one_thread():
        result = reference.gram(*absolute, **{**kwargs, **second})
    return float(result.max()) if result.numel() else 0.0


def assert_agrees(got, args, **kwargs):
    def oracle(a, g, a2=None, g2=None):
        return reference.gram(a, g, **{**kwargs, "a2": a2, "g2": g2})

    second = (kwargs["a2"], kwargs["g2"]) if "a2" in kwargs else ()
    exact, allowed = allowed_error(oracle, (*args, *second), got.dtype, magnitude(args, **kwargs))
    assert got.shape == exact.shape
    assert max_error(got, exact) <= allowed


def tile(backend, samples, dtype):
    with backend.active():
        return _C.gram_cpu_tile(samples, samples, True, dtype.itemsize, 1)


# Around the register tiles (6 x 8, 6 x 16, 14 x 32) and a prime; tile blocks have their own test.
@pytest.mark.parametrize("samples", [0, 1, 2, 5, 6, 7, 16, 17, 31, 37])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("mode", OUTPUTS)
def test_matches_reference(backend, dtype, generator, samples, outputs, mode):
    args = factors(samples, outputs, dtype, generator)
    got = backend.run(ops.gram, *args, **options(), outputs=mode)
    assert got.dtype == dtype
    assert_agrees(got, args, **options(), outputs=mode)


@pytest.mark.parametrize(("first", "second"), [(1, 40), (40, 1), (17, 33), (0, 3), (21, 21)])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("mode", OUTPUTS)
def test_cross_kernel(backend, dtype, generator, first, second, outputs, mode):
    if mode == "diagonal" and first != second:
        pytest.skip("the diagonal needs equal batches")
    args = factors(first, outputs, dtype, generator)
    a2, g2 = factors(second, outputs, dtype, generator)
    got = backend.run(ops.gram, *args, a2=a2, g2=g2, **options(), outputs=mode)
    assert_agrees(got, args, a2=a2, g2=g2, **options(), outputs=mode)


@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("outputs", [1, 7])
def test_around_the_block_size(backend, dtype, generator, offset, blocks, outputs):
    """Sizes around one and two cache blocks of the CPU and the block of the CUDA kernels."""
    emulated = backend.name == "cuda_emulated"
    edge = 64 if emulated else tile(backend, 10**5, dtype)
    samples = -(-(blocks * edge + (3 if blocks == 2 else 0)) // outputs) + offset
    args = factors(samples, outputs, dtype, generator, [(5, 3)])
    got = backend.run(ops.gram, *args, **options(1))
    assert_agrees(got, args, **options(1))


@pytest.mark.parametrize("width", [0, 1, 127, 128, 129, 255, 256, 257, 515])
def test_around_the_contraction_depth(backend, dtype, generator, width):
    args = factors(9, 2, dtype, generator, [(width, 3), (3, width)])
    got = backend.run(ops.gram, *args, **options())
    assert_agrees(got, args, **options())


@pytest.mark.parametrize(("precision", "eps"), [("tf32", 2.0**-11), ("3xtf32", 2.0**-21)])
@pytest.mark.parametrize(("samples", "outputs"), [(49, 1), (16, 3), (259, 1), (37, 7)])
def test_reduced_precision(backend, generator, precision, eps, samples, outputs):
    """Tensor cores round the operands: two roundings a product, and float32 sums."""
    args = factors(samples, outputs, torch.float32, generator)
    got = backend.run(ops.gram, *args, **options(), precision=precision)
    exact = reference.gram(*[[t.double() for t in side] for side in args], **options())
    scale = magnitude(args, **options())
    assert torch.equal(got, got.T)
    assert max_error(got, exact) <= (5 * eps + 8 * torch.finfo(torch.float32).eps) * scale


def test_many_layers(backend, dtype, generator):
    """More layers than one CUDA launch takes."""
    layers = 29
    args = factors(7, 2, dtype, generator, [(4, 3)] * layers)
    numbers = {"scale": [1.0 / (1 + n) for n in range(layers)], "bias": [0.5] * layers}
    for mode in OUTPUTS:
        got = backend.run(ops.gram, *args, **numbers, outputs=mode)
        assert_agrees(got, args, **numbers, outputs=mode)


@pytest.mark.parametrize("replicas", [1, 2, 5, 19])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("mode", OUTPUTS)
def test_networks_at_once(backend, dtype, generator, replicas, outputs, mode):
    """Each has the bits that it has alone; one that is not finite touches no other."""
    nets = [factors(13, outputs, dtype, generator) for _ in range(replicas)]
    more = [factors(7 if mode != "diagonal" else 13, outputs, dtype, generator) for _ in nets]
    if replicas > 2:
        nets[1][0][0][2] = torch.nan
    a, g = (
        [torch.stack(layer) for layer in zip(*side, strict=True)]
        for side in zip(*nets, strict=True)
    )
    a2, g2 = (
        [torch.stack(layer) for layer in zip(*side, strict=True)]
        for side in zip(*more, strict=True)
    )
    got = backend.run(ops.gram, a, g, **options(), outputs=mode)
    cross = backend.run(ops.gram, a, g, a2=a2, g2=g2, **options(), outputs=mode)
    for r, (net, second) in enumerate(zip(nets, more, strict=True)):
        alone = backend.run(ops.gram, *net, **options(), outputs=mode)
        assert got[r].shape == alone.shape
        assert torch.equal(got[r].nan_to_num(), alone.nan_to_num())
        assert bool(got[r].isfinite().all()) == (replicas <= 2 or r != 1)
        with_second = {"a2": second[0], "g2": second[1], **options(), "outputs": mode}
        alone = backend.run(ops.gram, *net, **with_second)
        assert torch.equal(cross[r].nan_to_num(), alone.nan_to_num())


def test_no_network(backend, dtype):
    a, g = [torch.ones(0, 4, 3, dtype=dtype)], [torch.ones(0, 4, 2, 5, dtype=dtype)]
    assert backend.run(ops.gram, a, g, **options(1)).shape == (0, 8, 8)


@pytest.mark.parametrize("replicas", [2, 9])
def test_networks_and_threads(backend, dtype, generator, replicas):
    """Few networks share out the blocks of each, many are one thread's each."""
    a = [torch.randn(replicas, 90, 6, dtype=dtype, generator=generator)]
    g = [torch.randn(replicas, 90, 1, 5, dtype=dtype, generator=generator)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(backend.run(ops.gram, a, g, **options(1)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert torch.equal(results[0], results[0].mT)
    assert_agrees(results[0], (a, g), **options(1))


def test_symmetric_to_the_bit_and_positive_semidefinite(backend, dtype, generator):
    args = factors(67, 5, dtype, generator)
    got = backend.run(ops.gram, *args, **options())
    assert torch.equal(got, got.T)
    eigenvalues = torch.linalg.eigvalsh(got.double())
    assert eigenvalues[0] >= -32 * torch.finfo(dtype).eps * eigenvalues[-1]


def test_parts_and_permutations(backend, dtype, generator):
    a, g = factors(40, 3, dtype, generator)
    eps = torch.finfo(dtype).eps
    whole = backend.run(ops.gram, a, g, **options())
    allowed = 64 * eps * magnitude((a, g), **options())
    parts = [([t[:23] for t in a], [t[:23] for t in g]), ([t[23:] for t in a], [t[23:] for t in g])]
    rows = [
        torch.cat([backend.run(ops.gram, *x, a2=y[0], g2=y[1], **options()) for y in parts], 1)
        for x in parts
    ]
    assert max_error(torch.cat(rows), whole) <= allowed
    blocks = whole.view(40, 3, 40, 3)
    trace = backend.run(ops.gram, a, g, **options(), outputs="trace")
    assert max_error(trace, blocks.diagonal(dim1=1, dim2=3).sum(-1)) <= 3 * allowed
    diagonal = backend.run(ops.gram, a, g, **options(), outputs="diagonal")
    assert max_error(diagonal, whole.diagonal()) <= allowed
    order = torch.randperm(40, generator=generator)
    shuffled = backend.run(ops.gram, [t[order] for t in a], [t[order] for t in g], **options())
    assert max_error(shuffled.view(40, 3, 40, 3), blocks[order][:, :, order]) <= allowed


def test_threads_do_not_change_the_result(backend, dtype, generator):
    args = factors(150, 1, dtype, generator)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(backend.run(ops.gram, *args, **options()))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(results[0], other)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["a", "g"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_non_finite_samples_keep_to_their_rows(backend, dtype, generator, bad, side, outputs):
    a, g = factors(35, outputs, dtype, generator)
    clean = backend.run(ops.gram, a, g, **options()).view(35, outputs, 35, outputs)
    (a if side == "a" else g)[1][11] = bad
    got = backend.run(ops.gram, a, g, **options()).view(35, outputs, 35, outputs)
    others = [n for n in range(35) if n != 11]
    assert torch.equal(got[others][:, :, others], clean[others][:, :, others])
    assert not got[11].isfinite().any()
    assert not got[:, :, 11].isfinite().any()


@pytest.mark.parametrize("factor", [1e-8, 1e8])
def test_magnitudes(backend, dtype, generator, factor):
    a, g = factors(20, 2, dtype, generator)
    scaled = [t * factor for t in a], [t / factor for t in g]
    got = backend.run(ops.gram, *scaled, scale=[1.0, 1.0], bias=[0.0, 0.0])
    assert_agrees(got, scaled, scale=[1.0, 1.0], bias=[0.0, 0.0])


def test_strided_views(backend, dtype, generator):
    big = torch.randn(40, 60, dtype=dtype, generator=generator)
    a = [big.t()[3:23, ::2], big[5:25, 7:19]]
    g = [big[:, 1:31].reshape(40, 3, 10).transpose(1, 2)[4:24, :3], big[10:30, None, 2:50:4]]
    g[1] = g[1].expand(20, 3, 12)
    got = backend.run(ops.gram, a, g, **options())
    assert_agrees(got, (a, g), **options())


@pytest.mark.parametrize("mode", OUTPUTS)
def test_registration(generator, mode):
    a, g = factors(5, 2, torch.float64, generator)
    index = OUTPUTS.index(mode)
    schema_args = (a, g, a[::1], g[::1], [1.0, 0.5], [0.0, 1.0], index, 0)
    torch.library.opcheck(torch.ops.catapult.gram, schema_args)
    torch.library.opcheck(torch.ops.catapult.gram, (a, g, [], [], [1.0, 0.5], [0.0, 1.0], index, 0))
    two = ([torch.stack([t, t]) for t in side] for side in (a, g))
    torch.library.opcheck(torch.ops.catapult.gram, (*two, [], [], [1.0, 0.5], [0.0, 1.0], index, 0))

    def call(a, g):
        return ops.gram(a, g, **options(), outputs=mode)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(a, g), call(a, g))


def call(a, g, **kwargs):
    return ops.gram(a, g, **{**options(), **kwargs})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a, g: call([], []), ValueError, "at least one layer, got 0"),
        (lambda a, g: call(a, g[:1]), ValueError, "g must list 2 layers, got 1"),
        (lambda a, g: call(["x", "y"], g), TypeError, r"a\[0\] must be a torch.Tensor, got str"),
        (lambda a, g: call([a[0].half(), a[1]], g), TypeError, r"a\[0\] must have dtype"),
        (lambda a, g: call([a[0], a[1].float()], g), TypeError, "must have the dtype of"),
        (lambda a, g: call([a[0][0], a[1]], g), ValueError, r"a\[0\] must have shape .* \(7,\)"),
        (lambda a, g: call([a[0], a[1][:3]], g), ValueError, r"a\[1\] must have shape \(6, d\)"),
        (lambda a, g: call(a, [g[0], g[1][:, :1]]), ValueError, r"g\[1\] must have shape"),
        (lambda a, g: call(a, g, scale=[1.0]), ValueError, "scale must list 2 layers, got 1"),
        (lambda a, g: call(a, g, outputs="some"), ValueError, "outputs must be one of"),
        (lambda a, g: call(a, g, precision="half"), ValueError, "precision must be one of"),
        (lambda a, g: call(a, g, a2=a), ValueError, "a2 and g2 must be given together"),
        (lambda a, g: call(a, g, a2=a[::-1], g2=g), ValueError, r"a2\[0\] must have shape"),
        (lambda a, g: call(a, g, a2=a, g2=[t[:, :1] for t in g]), ValueError, r"g2\[0\] must"),
        (
            lambda a, g: call(a, g, a2=[t[:2] for t in a], g2=[t[:2] for t in g],
                              outputs="diagonal"),
            ValueError,
            "outputs='diagonal' needs as many samples",
        ),
        (lambda a, g: call([t[None] for t in a], g), ValueError, r"g\[0\] must have shape \(1, 6"),
        (lambda a, g: call([t[None] for t in a], [t.expand(2, -1, -1, -1) for t in g]),
         ValueError, r"g\[0\] must have shape \(1, 6, O, p\), got \(2, 6"),
        (lambda a, g: call([a[0].requires_grad_(), a[1]], g), ValueError, r"a\[0\].detach\(\)"),
    ],
)  # fmt: skip
def test_bad_input(generator, change, error, message):
    a, g = factors(6, 2, torch.float64, generator)
    with pytest.raises(error, match=message):
        change(a, g)
