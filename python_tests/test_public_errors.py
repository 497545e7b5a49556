"""Every public entry with arguments that make no sense: one clear error, or a right result.

Each entry has one good call; its arguments are replaced one at a time by values that are wrong in
type, dtype, shape, size or sign. Allowed are a result, or TypeError, ValueError or RuntimeError
(for the environment) with a message that starts with ``catapult_ext.``; a torch internal error, an
AttributeError or a crash is not.
"""

import copy
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import catapult_ext as cx
from catapult_ext import ops, probes, toy

MODEL = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
PAIR = [MODEL, copy.deepcopy(MODEL)]
X, Y = torch.linspace(-1, 1, 15).reshape(5, 3), torch.linspace(0, 1, 10).reshape(5, 2)
A = torch.diag(torch.arange(1.0, 7.0))
DATA = cx.data.Dataset("lines", X, Y, X[:2], Y[:2], False)


def rand(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) + 0.1


def lanczos_step(basis, alpha, beta, w, step, **options):
    ops.lanczos_step(basis, alpha, beta, w, step, **options)
    return alpha


def curvature_tracker(model, loss, data, **options):
    with cx.CurvatureTracker(model, loss, data, **options) as tracker:
        tracker.step(0.5)
    return tracker.report()


CHAIN = {
    "weights": [rand(1, 4, 3), rand(1, 2, 4)],
    "inputs": [rand(1, 5, 3), rand(1, 5, 4)],
    "slopes": [rand(1, 5, 4)],
    "scale": [1.0, 0.5],
    "bias": [1.0, 0.0],
}
CALLS = {
    "NTK": (cx.NTK, {"model": MODEL, "x": X, "x2": X[:2], "engine": "autograd", "params": "0.*"}),
    "GGN": (cx.GGN, {"model": MODEL, "loss": "half_mse", "data": (X, Y)}),
    "Hessian": (cx.Hessian, {"model": MODEL, "loss": "half_mse", "data": (X, Y)}),
    "StackedNTK": (cx.StackedNTK, {"models": [MODEL, copy.deepcopy(MODEL)], "x": X}),
    "StackedGGN": (
        cx.StackedGGN,
        {"models": [MODEL, copy.deepcopy(MODEL)], "loss": "half_mse", "data": (X, Y)},
    ),
    "StreamedNTK": (cx.StreamedNTK, {"model": MODEL, "data": [X, X]}),
    "StreamedGGN": (cx.StreamedGGN, {"model": MODEL, "loss": "half_mse", "data": [(X, Y)]}),
    "StreamedHessian": (cx.StreamedHessian, {"model": MODEL, "loss": "half_mse", "data": [(X, Y)]}),
    "eigsh": (
        cx.eigsh,
        {"A": A, "k": 2, "which": "LA", "tol": 1e-3, "maxiter": 50, "v0": rand(6), "seed": 0},
    ),
    "solve": (
        cx.solve,
        {
            "A": A,
            "b": rand(6, 2),
            "shift": 0.1,
            "tol": 1e-4,
            "method": "cg",
            "preconditioner": "auto",
            "x0": rand(6, 2),
            "maxiter": 20,
            "lower": 0.5,
            "seed": 0,
        },
    ),
    "cholesky": (cx.cholesky, {"A": A, "shift": 0.1, "lower": 0.5}),
    "pivoted_cholesky": (cx.pivoted_cholesky, {"A": A, "rank": 2, "tol": 0.1, "seed": 0}),
    "leave_one_out": (cx.leave_one_out, {"factor": cx.cholesky(A), "y": rand(6, 2)}),
    "logdet": (cx.logdet, {"A": A, "shift": 0.1, "samples": 2, "steps": 4, "lower": 0.5}),
    "matrix_function": (
        cx.matrix_function,
        {"A": A, "f": torch.sqrt, "vectors": rand(6, 2), "shift": 0.1, "tol": 0.1, "maxiter": 5},
    ),
    "hutchinson_trace": (cx.hutchinson_trace, {"A": A, "samples": 4, "seed": 0}),
    "xtrace": (cx.xtrace, {"A": A, "products": 4, "seed": 0}),
    "xdiag": (cx.xdiag, {"A": A, "products": 4, "seed": 0}),
    "hutchinson_diagonal": (cx.hutchinson_diagonal, {"A": A, "samples": 4, "seed": 0}),
    "spectral_density": (cx.spectral_density, {"A": A, "steps": 4, "samples": 2, "seed": 0}),
    "TopTracker": (cx.TopTracker, {"k": 1, "tol": 1e-3, "guards": 2}),
    "TopTracker.update": (lambda A: cx.TopTracker(k=1).update(A), {"A": A}),
    "CurvatureTracker": (
        curvature_tracker,
        {"model": MODEL, "loss": "half_mse", "data": (X, Y), "every": 1, "k": 1, "tol": 1e-2},
    ),
    "StackedCurvatureTracker": (
        lambda **options: cx.StackedCurvatureTracker(**options).step(),
        {
            "models": [MODEL, copy.deepcopy(MODEL)],
            "loss": "half_mse",
            "data": (X, Y),
            "every": 1,
            "k": 1,
        },
    ),
    "learning_rate_window": (
        cx.learning_rate_window,
        {"model": MODEL, "loss": "half_mse", "data": (X, Y), "tol": 1e-3},
    ),
    "by_layer": (
        cx.by_layer,
        {"model": MODEL, "loss": "half_mse", "data": (X, Y), "k": 1, "blocks": "module"},
    ),
    "track": (
        cx.track,
        {
            "model": MODEL,
            "checkpoints": [MODEL.state_dict()],
            "loss": "half_mse",
            "data": (X, Y),
            "k": 1,
        },
    ),
    "sweep": (
        cx.sweep,
        {"model": MODEL, "data": DATA, "c": [0.5, 1.0], "steps": 2, "loss": "half_mse"},
    ),
    "convert_lambda": (
        cx.convert_lambda,
        {"value": 1.0, "source": "ntk", "target": "ntk/N", "samples": 3, "outputs": 2},
    ),
    "ops.gram": (
        ops.gram,
        {"a": [rand(5, 3)], "g": [rand(5, 2, 4)], "scale": [1.0], "bias": [0.0], "outputs": "all"},
    ),
    "ops.ntk_matvec": (ops.ntk_matvec, {"v": rand(1, 10, 2), **CHAIN, "grams": [None, None]}),
    "ops.tridiag_eigh": (ops.tridiag_eigh, {"alpha": rand(2, 5), "beta": rand(2, 4)}),
    "ops.lanczos_dense": (
        ops.lanczos_dense,
        {"a": A[None], "k": 1, "tol": 1e-3, "maxiter": 50, "v0": rand(1, 6), "seed": 0},
    ),
    "ops.lanczos_step": (
        lanczos_step,
        {
            "basis": torch.eye(4)[None, :3].contiguous(),
            "alpha": rand(1, 2),
            "beta": rand(1, 2),
            "w": rand(1, 4),
            "step": 0,
            "rows": 1,
            "coefficients": rand(1, 1),
            "breakdown": 1e-6,
        },
    ),
    "ops.toy_gd": (
        ops.toy_gd,
        {
            "U": rand(2, 6, 3),
            "v": rand(2, 6),
            "x": X,
            "y": rand(5),
            "eta": rand(2),
            "steps": 3,
            "record_every": 1,
            "curvature_every": 1,
        },
    ),
    "ops.toy_gd_reduced": (
        ops.toy_gd_reduced,
        {
            "w": rand(2, 3),
            "S": torch.eye(3).repeat(2, 1, 1),
            "q": rand(2),
            "x": X,
            "y": rand(5),
            "eta": rand(2),
            "width": 100.0,
            "steps": 3,
            "record_every": 1,
            "curvature_every": 1,
        },
    ),
    "ops.toy_lyapunov": (
        ops.toy_lyapunov,
        {
            "mean": rand(4).double(),
            "deviation": rand(4).double(),
            "beta": rand(4).double(),
            "steps": 5,
            "paths": 3,
            "burn_in": 2,
            "noise": "uniform",
            "seed": 1,
            "first_path": 0,
        },
    ),
    "ops.toy_scalar": (
        ops.toy_scalar,
        {"h": rand(4), "k": rand(4), "steps": 5, "b": rand(4), "beta": rand(4), "record_every": 1},
    ),
    "toy.simulate": (
        toy.simulate,
        {"eta": rand(2), "width": 50, "x": X, "y": rand(5), "steps": 3, "seed": 0, "form": "auto"},
    ),
    "toy.run_scalar": (
        toy.run_scalar,
        {
            "c": rand(3),
            "steps": 5,
            "width": 100.0,
            "f0": 1.0,
            "label": 0.5,
            "momentum": 0.1,
            "lambda0": 2.0,
            "record_every": 1,
        },
    ),
    "toy.phase_diagram": (
        toy.phase_diagram,
        {"axis": "width", "resolution": 4, "steps": 5},
    ),
    "toy.mean_square_edge": (
        toy.mean_square_edge,
        {"beta": 0.5, "variance": rand(3).double(), "mean": 2.0},
    ),
    "toy.second_moment_matrix": (
        toy.second_moment_matrix,
        {"eta": rand(3), "beta": 0.5, "variance": 0.1, "mean": 1.0},
    ),
    "toy.second_moment_growth": (
        toy.second_moment_growth,
        {"eta": rand(3), "beta": 0.5, "variance": 0.1, "mean": 1.0},
    ),
    "toy.lyapunov_exponent": (
        toy.lyapunov_exponent,
        {"eta": rand(3), "beta": 0.5, "variance": 0.1, "noise": "uniform", "steps": 9, "paths": 8},
    ),
    "toy.lyapunov_edge": (
        toy.lyapunov_edge,
        {"beta": 0.5, "variance": rand(2), "tolerance": 0.5, "paths": 8, "max_steps": 300},
    ),
    "toy.noise_plane": (
        toy.noise_plane,
        {"resolution": (3, 2), "beta": (0.0, 0.5), "tolerance": 0.5, "paths": 8, "seed": 1},
    ),
    "toy.warm_up": (toy.warm_up, {"rates": [1.0], "steps": 10, "over": 5}),
    "toy.drop": (toy.drop, {"rates": [1.0], "steps": 10, "at": 5, "factor": 0.1}),
    "toy.staircase": (toy.staircase, {"rates": [1.0], "steps": 10, "every": 5, "factor": 0.1}),
    "toy.bifurcation": (toy.bifurcation, {"b": rand(3), "burn_in": 20, "keep": 4, "start": 0.1}),
    "probes.classify": (
        probes.classify,
        {"eta": 1.0, "lambda0": 1.0, "loss": [1.0, 0.5], "lambda_end": 1.0, "growth": None},
    ),
    "probes.activity": (probes.activity, {"model": MODEL, "x": X}),
    "probes.divergence_cut": (probes.divergence_cut, {"loss0": 1.0, "width": 64}),
    "models.fully_connected": (
        cx.models.fully_connected,
        {"in_features": 3, "out_features": 2, "width": 4, "depth": 2, "activation_name": "relu"},
    ),
    "models.char_gpt": (cx.models.char_gpt, {"length": 3, "characters": 5, "width": 4, "depth": 1}),
    "models.small_vit": (
        cx.models.small_vit,
        {"image_size": 4, "out_features": 2, "width": 4, "depth": 1, "heads": 2, "patch": 2},
    ),
    "models.build": (cx.models.build, {"name": "fc", "in_shape": (3,), "out_features": 2}),
    "data.digits": (
        cx.data.digits,
        {"size": 8, "train": 16, "test": 4, "classes": [0, 1], "targets": "one-hot"},
    ),
    "data.teacher": (cx.data.teacher, {"train": 8, "test": 4, "width": 5, "noise": 0.1}),
    "data.sums": (cx.data.sums, {"train": 8, "test": 4, "length": 5}),
    "data.gaussian": (cx.data.gaussian, {"train": 8, "test": 4, "in_features": 3, "mean": 0.0}),
    "data.named": (cx.data.named, {"name": "gaussian"}),
    "data.npz": (cx.data.npz, {"path": "none.npz"}),
    "losses.resolve": (cx.losses.resolve, {"loss": "half_mse"}),
}

HALF = torch.float16
# (name, replacement of a tensor); the shape is that of the good value.
TENSORS = {
    "none": lambda t: None,
    "text": lambda t: "text",
    "number": lambda t: 3,
    "object": lambda t: object(),
    "int64": lambda t: t.to(torch.int64),
    "complex": lambda t: t.to(torch.complex64),
    "half": lambda t: t.to(HALF),
    "double": lambda t: t.double(),
    "empty": lambda t: t[:0],
    "no columns": lambda t: t[..., :0],
    "one dimension more": lambda t: t[None],
    "scalar": lambda t: t.reshape(-1)[0],
    "short": lambda t: t[..., :-1],
    "requires grad": lambda t: t.clone().requires_grad_(),
    "nan": lambda t: torch.full_like(t, torch.nan),
    "inf": lambda t: torch.full_like(t, torch.inf),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
}
NUMBERS = [None, -1, 0, 1.5, float("nan"), float("inf"), -(2**70), 2**70, "3", [1], True, object()]
WORDS = [None, "nonsense", "", 3, b"half_mse", object(), torch.ones(2)]
OTHERS = [
    None,
    "nonsense",
    3,
    object(),
    [],
    [object()],
    (None, None),
    torch.ones(0),
    [torch.ones(2)],
]


def variants(value):
    """(label, replacement) for every kind of nonsense that fits the kind of ``value``."""
    if isinstance(value, torch.Tensor):
        yield from ((name, change(value)) for name, change in TENSORS.items())
    elif isinstance(value, str):
        yield from ((repr(bad)[:20], bad) for bad in WORDS)
    elif isinstance(value, (int, float)):
        yield from ((repr(bad)[:20], bad) for bad in NUMBERS)
    elif isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
        yield from (
            (name, type(value)([change(value[0]), *value[1:]])) for name, change in TENSORS.items()
        )
        yield from ((repr(bad)[:20], bad) for bad in OTHERS)
        yield "one too many", type(value)([*value, value[-1]])
    elif isinstance(value, (list, tuple)) and value and isinstance(value[0], (int, float)):
        yield from ((f"[{bad!r}]"[:20], type(value)([bad, *value[1:]])) for bad in NUMBERS)
        yield from ((repr(bad)[:20], bad) for bad in OTHERS)
    else:
        yield from ((repr(bad)[:20], bad) for bad in OTHERS)


def fault(call, arguments):
    """What is wrong with the answer to one call, or None."""
    try:
        call(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        # data files and run folders raise RuntimeErrors of their own, with the same beginning
        if not str(error).startswith("catapult_ext."):
            return f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("name", CALLS)
def test_nonsense_gets_one_clear_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, good = CALLS[name]
    if name != "data.npz":
        call(**copy.deepcopy(good))
    faults = []
    for argument, value in good.items():
        for label, bad in variants(value):
            found = fault(call, {**copy.deepcopy(good), argument: bad})
            if found:
                faults.append(f"{argument} = {label}: {found}")
    assert not faults, f"{len(faults)} of {name}\n" + "\n".join(faults)


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64]


@st.composite
def tensors(draw, like):
    """Of any small shape (or that of ``like``) and any values, mostly in its dtype."""
    shape = tuple(like.shape)
    if draw(st.booleans()):
        shape = tuple(draw(st.lists(st.integers(0, 7), max_size=4)))
    dtype = draw(st.just(like.dtype) | st.sampled_from(DTYPES))
    count = min(math.prod(shape), 4)
    values = draw(st.lists(st.floats(width=32), min_size=count, max_size=count))
    flat = torch.tensor(values or [0.0]).repeat(math.prod(shape) // max(count, 1) + 1)
    return flat[: math.prod(shape)].reshape(shape).to(dtype)


def any_value(value):
    """A strategy for what a caller may put where ``value`` is right."""
    if isinstance(value, torch.Tensor):
        return tensors(value)
    if isinstance(value, bool):
        return st.booleans() | st.none()
    if isinstance(value, int):  # sizes and steps: small, or beyond every limit
        return st.integers(-3, 12) | st.sampled_from([2**70, -(2**70)]) | st.floats()
    if isinstance(value, float):
        return st.floats() | st.integers(-3, 12)
    if isinstance(value, str):
        return st.text(max_size=8) | st.just(value)
    if isinstance(value, (list, tuple)) and value:
        return st.lists(any_value(value[0]), max_size=4).map(type(value))
    return st.none() | st.integers() | st.text(max_size=4)


@pytest.mark.parametrize("name", CALLS)
def test_any_arguments(name, tmp_path, monkeypatch):
    """Several arguments at once, of right and wrong kinds: a result or one clear error."""
    monkeypatch.chdir(tmp_path)
    call, good = CALLS[name]

    @settings(
        max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def check(data):
        names = data.draw(st.sets(st.sampled_from(sorted(good)), min_size=1, max_size=3))
        changed = {key: data.draw(any_value(good[key])) for key in sorted(names)}
        assert not fault(call, {**copy.deepcopy(good), **changed})

    check()
