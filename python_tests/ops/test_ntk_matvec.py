from itertools import pairwise

import pytest
import torch

from catapult_ext import ops, reference
from catapult_ext.testing import allowed_error, max_error, one_thread

FORMS = ["sample", "weight", "mixed"]


class Problem:
    """A frozen chain of dense layers with widths[0] inputs and widths[-1] outputs."""

    def __init__(self, dtype, generator, samples, widths, vectors=1, replicas=1, form="sample"):
        def normal(*shape):
            return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

        layers = len(widths) - 1
        pairs = [(p, d) for d, p in pairwise(widths)]
        self.v = normal(replicas, samples * widths[-1], vectors)
        self.frozen = {
            "weights": [normal(replicas, p, d) for p, d in pairs],
            "inputs": [normal(replicas, samples, d) for _, d in pairs],
            "slopes": [normal(replicas, samples, p) for p, _ in pairs[:-1]],
            "scale": [1.0 / max(d, 1) for _, d in pairs],
            "bias": [0.25 * (layer % 3) for layer in range(1, layers + 1)],
        }
        self.frozen["grams"] = [
            a @ a.mT if form == "sample" or (form == "mixed" and layer % 2) else None
            for layer, a in enumerate(self.frozen["inputs"])
        ]

    def tensors(self):
        f = self.frozen
        return [self.v, *f["weights"], *f["inputs"], *f["slopes"]]

    def run(self, backend):
        return backend.run(ops.ntk_matvec, self.v, **self.frozen)

    def magnitude(self):
        parts = ("weights", "inputs", "slopes")
        absolute = {k: [t.double().abs() for t in self.frozen[k]] for k in parts}
        numbers = {k: self.frozen[k] for k in ("scale", "bias")}
        with one_thread():
            result = reference.ntk_matvec(self.v.double().abs(), **absolute, **numbers)
        return float(result.max()) if result.numel() else 0.0

    def assert_agrees(self, got):
        parts = [self.frozen[k] for k in ("weights", "inputs", "slopes")]

        def oracle(v, weights, inputs, slopes):
            numbers = {k: self.frozen[k] for k in ("scale", "bias")}
            frozen = {"weights": weights, "inputs": inputs, "slopes": slopes}
            return reference.ntk_matvec(v, **frozen, **numbers)

        exact, allowed = allowed_error(oracle, (self.v, *parts), got.dtype, self.magnitude())
        assert got.shape == self.v.shape
        assert got.dtype == self.v.dtype
        assert max_error(got, exact) <= allowed


@pytest.mark.parametrize("samples", [0, 1, 5, 6, 7, 37])
@pytest.mark.parametrize("widths", [(3, 2), (4, 17, 1), (9, 5, 33, 16, 3)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_matches_reference(backend, dtype, generator, samples, widths, form):
    problem = Problem(dtype, generator, samples, widths, form=form)
    problem.assert_agrees(problem.run(backend))


@pytest.mark.parametrize("vectors", [0, 1, 2, 5])
@pytest.mark.parametrize("replicas", [0, 1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_vectors_and_replicas(backend, dtype, generator, vectors, replicas, form):
    problem = Problem(dtype, generator, 11, (4, 18, 7, 2), vectors, replicas, form)
    problem.assert_agrees(problem.run(backend))


# Register tiles (6 x 8, 6 x 16, 14 x 32), packing depths (128 and 256), cache blocks (256 rows).
@pytest.mark.parametrize("width", [8, 15, 16, 17, 31, 32, 33, 65, 129, 257, 515])
def test_around_the_tile_sizes(backend, dtype, generator, width):
    samples = 29 if width > 100 else width
    problem = Problem(dtype, generator, samples, (5, width, 3), form="mixed")
    problem.assert_agrees(problem.run(backend))
    flipped = Problem(dtype, generator, min(width, 65), (width, 5, 2))
    flipped.assert_agrees(flipped.run(backend))


@pytest.mark.parametrize("samples", [255, 257, 515])
def test_around_the_cache_blocks(backend, dtype, generator, samples):
    if backend.name == "cuda_emulated":
        pytest.skip("the emulation has no cache blocks")
    problem = Problem(dtype, generator, samples, (3, 40, 2))
    problem.assert_agrees(problem.run(backend))


def test_agrees_with_the_dense_kernel(backend, dtype, generator):
    """gram on the layer Jacobians and ntk_matvec are the same matrix; it is symmetric."""
    samples, outputs = 13, 3
    problem = Problem(dtype, generator, samples, (6, 19, outputs))
    f = problem.frozen
    eye = torch.eye(outputs, dtype=dtype).expand(samples, outputs, outputs)
    back = f["scale"][1] ** 0.5 * f["weights"][1][0] * f["slopes"][0][0][:, None, :]
    args = [t[0] for t in f["inputs"]], [back, eye.contiguous()]
    dense = backend.run(ops.gram, *args, scale=f["scale"], bias=f["bias"])
    size = samples * outputs
    problem.v = torch.eye(size, dtype=dtype)[None]
    got = problem.run(backend)[0]
    allowed = 64 * torch.finfo(dtype).eps * problem.magnitude()
    assert max_error(got, dense) <= allowed
    assert max_error(got, got.T) <= allowed


def test_sample_and_weight_space_agree(backend, dtype, generator):
    problem = Problem(dtype, generator, 24, (10, 12, 11, 4), vectors=3)
    sample = problem.run(backend)
    allowed = 64 * torch.finfo(dtype).eps * problem.magnitude()
    problem.frozen["grams"] = None
    assert max_error(problem.run(backend), sample) <= allowed


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("vectors", "replicas"), [(1, 1), (3, 2), (0, 1)])
def test_composition_for_large_layers(dtype, generator, form, vectors, replicas):
    """What large layers are handed to on a GPU."""
    from catapult_ext.ops.ntk_matvec import _by_torch

    problem = Problem(dtype, generator, 14, (5, 12, 3, 2), vectors, replicas, form)
    names = ("weights", "inputs", "slopes", "scale", "bias", "grams")
    problem.assert_agrees(_by_torch(problem.v, *(problem.frozen[name] for name in names)))


def test_vectors_are_independent(backend, dtype, generator):
    problem = Problem(dtype, generator, 24, (10, 12, 4), vectors=3, replicas=2)
    whole = problem.run(backend)
    for k in range(3):
        single = backend.run(ops.ntk_matvec, problem.v[:, :, k : k + 1], **problem.frozen)
        allowed = 64 * torch.finfo(dtype).eps * problem.magnitude()
        assert max_error(single, whole[:, :, k : k + 1]) <= allowed


def test_threads_do_not_change_the_result(backend, dtype, generator):
    problem = Problem(dtype, generator, 70, (33, 140, 65, 2), form="mixed")
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(problem.run(backend))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(results[0], other)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("form", FORMS)
def test_non_finite_values_keep_to_their_replica_and_vector(backend, dtype, generator, bad, form):
    problem = Problem(dtype, generator, 19, (4, 21, 2), vectors=2, replicas=3, form=form)
    clean = problem.run(backend)
    problem.v[1, 7, 0] = bad
    got = problem.run(backend)
    assert torch.equal(got[[0, 2]], clean[[0, 2]])
    assert torch.equal(got[1, :, 1], clean[1, :, 1])
    assert not got[1, :, 0].isfinite().any()


@pytest.mark.parametrize("factor", [1e-15, 1e15])
def test_magnitudes(backend, dtype, generator, factor):
    problem = Problem(dtype, generator, 12, (4, 9, 2))
    problem.v *= factor
    problem.assert_agrees(problem.run(backend))


def test_strided_views(backend, dtype, generator):
    problem = Problem(dtype, generator, 12, (8, 10, 2), vectors=2, replicas=2)

    def scattered(t):
        big = t.new_full((t.shape[0], 2 * t.shape[2] + 1, t.shape[1]), torch.nan)
        view = big[:, 1::2].mT
        view.copy_(t)
        return view

    problem.v = scattered(problem.v)
    for name in ("weights", "inputs", "slopes", "grams"):
        problem.frozen[name] = [scattered(t) for t in problem.frozen[name]]
    problem.assert_agrees(problem.run(backend))


@pytest.mark.parametrize("form", FORMS)
def test_registration(generator, form):
    problem = Problem(torch.float64, generator, 5, (4, 6, 2), vectors=2, form=form)
    f = problem.frozen
    args = (problem.v, *(f[k] for k in ("weights", "inputs", "slopes", "scale", "bias", "grams")))
    torch.library.opcheck(torch.ops.catapult.ntk_matvec, args)

    def call(v):
        return ops.ntk_matvec(v, **f)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(problem.v), call(problem.v))


def replace(f, name, layer, value):
    return {**f, name: [*f[name][:layer], value, *f[name][layer + 1 :]]}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda v, f: (v, {**f, "weights": []}), ValueError, "at least one layer, got 0"),
        (lambda v, f: (v, {**f, "inputs": f["inputs"][:1]}), ValueError, "inputs must list 2"),
        (lambda v, f: (v, {**f, "slopes": []}), ValueError, "slopes must list 1 layers, got 0"),
        (lambda v, f: (v, {**f, "scale": [1.0]}), ValueError, "scale must list 2 layers, got 1"),
        (lambda v, f: (v, {**f, "scale": [1.0, -1.0]}), ValueError, "scale must not be negative"),
        (lambda v, f: (v, {**f, "grams": [None]}), ValueError, "grams must list 2 layers, got 1"),
        (lambda v, f: ([1.0], f), TypeError, "v must be a torch.Tensor, got list"),
        (lambda v, f: (v.half(), f), TypeError, "v must have dtype float32 or float64"),
        (lambda v, f: (v.float(), f), TypeError, "must have the dtype of v"),
        (lambda v, f: (v[0], f), ValueError, r"v must have shape \(R, N\*O, K\)"),
        (lambda v, f: (v[:, :3], f), ValueError, r"v must have shape \(1, 10, K\), got"),
        (lambda v, f: (v, replace(f, "weights", 1, f["weights"][0])), ValueError,
         r"weights\[1\] must have shape \(1, p, 6\)"),
        (lambda v, f: (v, replace(f, "inputs", 0, f["inputs"][1])), ValueError,
         r"inputs\[0\] must have shape \(1, N, 4\)"),
        (lambda v, f: (v, replace(f, "slopes", 0, f["slopes"][0][:, :2])), ValueError,
         r"slopes\[0\] must have shape \(1, 5, 6\)"),
        (lambda v, f: (v, replace(f, "grams", 1, f["grams"][1][:, :2])), ValueError,
         r"grams\[1\] must have shape \(1, 5, 5\)"),
        (lambda v, f: (v.requires_grad_(), f), ValueError, r"v.detach\(\)"),
    ],
)  # fmt: skip
def test_bad_input(generator, change, error, message):
    problem = Problem(torch.float64, generator, 5, (4, 6, 2))
    v, frozen = change(problem.v, problem.frozen)
    with pytest.raises(error, match=message):
        ops.ntk_matvec(v, **frozen)
