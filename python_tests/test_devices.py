"""Which native op the public calls reach on which device, and bad devices: one clear error each."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext import _native, models, ops
from catapult_ext.experiments.stacked import StackedDense
from catapult_ext.ops.routes import ROUTES
from catapult_ext.testing import pretended, spectra
from catapult_ext.testing.op_cases import op_cases
from catapult_ext.testing.pretended import moved, pretended_cuda
from catapult_ext.testing.spectra import Wrapped

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "ops" / "index.md"
OPS = sorted(route.op for route in ROUTES if route.device == "cuda")
FURTHER_ENTRIES = {"certified_top": "lanczos_dense"}
needs_device = pytest.mark.skipif(
    bool(pretended.why_unavailable()), reason=pretended.why_unavailable()
)


class OnDevice(Wrapped):
    """A matrix known by its products, on its own device."""

    def __init__(self, a):
        super().__init__(a)
        self.device = a.device


def calls(move):
    """Public calls by name, on data that ``move`` has put where it belongs."""
    g = torch.Generator().manual_seed(0)
    f64 = torch.float64
    net = move(models.fully_connected(6, 2, width=8, depth=1, seed=1, parameterisation="ntk"))
    x, y = move((torch.randn(5, 6, generator=g), torch.randn(5, 2, generator=g)))
    a = move(spectra.matrix("geometric", f64, 60))
    data, target = move((torch.randn(7, 3, dtype=f64, generator=g), torch.randn(7, dtype=f64)))
    rates = move(torch.tensor([0.05, 0.1]))
    plain = {"x": data, "y": target, "width": 16, "steps": 4, "c": [1.0, 2.6]}
    device = a.device
    return {
        "NTK @": lambda: cx.NTK(net, x) @ torch.ones(10, device=device),
        "NTK.dense": lambda: cx.NTK(net, x).dense(),
        "NTK.diagonal": lambda: cx.NTK(net, x).diagonal(),
        "eigsh of tensors": lambda: cx.eigsh(a),
        "eigsh of operators": lambda: cx.eigsh(OnDevice(a)),
        "eigsh of operators, k > 1": lambda: cx.eigsh(OnDevice(a), 2),
        "TopTracker": lambda: cx.TopTracker(2).update(OnDevice(a)),
        "spectral_density": lambda: cx.spectral_density(OnDevice(a), 4, 2),
        'toy.simulate(form="direct")': lambda: cx.toy.simulate(form="direct", **plain),
        'toy.simulate(form="reduced")': lambda: cx.toy.simulate(form="reduced", **plain),
        "toy.simulate(observe=)": lambda: cx.toy.simulate(observe="eigenvalues", **plain),
        "toy.run_scalar": lambda: cx.toy.run_scalar(rates, steps=3),
        "toy.phase_diagram": lambda: cx.toy.phase_diagram(
            resolution=(3, 2), steps=3, device=device
        ),
        "toy.bifurcation": lambda: cx.toy.bifurcation(rates.double(), burn_in=3, keep=2),
        "toy.lyapunov_exponent": lambda: cx.toy.lyapunov_exponent(
            rates.double(), 0.5, 0.1, steps=20, paths=8
        ),
        "StackedDense": lambda: StackedDense([net, net], x, y).descend(rates, 2, rates + 1e6),
    }


def reached(device):
    """Names of the calls that reach each op on ``device``."""
    found = {op: [] for op in OPS}

    def note(name, run):
        def call(entry, where, *args):
            op = FURTHER_ENTRIES.get(entry, entry)
            if op in found and where.type == device and name not in found[op]:
                found[op].append(name)
            return run(entry, where, *args)

        return call

    def all_calls(move):
        for name, call in calls(move).items():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_native, "call", note(name, _native.call))
                call()

    if device == "cpu":
        all_calls(lambda value: value)
    else:
        with pretended_cuda():
            all_calls(moved)
    return found


def table():
    """op -> (reached from on the CPU, on CUDA), as the page says."""
    rows = re.findall(
        r"^\| \[(\w+)\]\(\w+\.md\) \| [^|]* \| ([^|]*) \| ([^|]*) \|$", PAGE.read_text(), re.M
    )
    return {op: tuple(re.findall(r"`([^`]*)`", cell) for cell in cells) for op, *cells in rows}


@needs_device
@pytest.mark.parametrize(("device", "column"), [("cpu", 0), ("cuda", 1)])
def test_the_page_says_which_calls_reach_each_operation(device, column):
    found, said = reached(device), table()
    assert sorted(said) == OPS
    assert {op: said[op][column] for op in OPS} == found
    assert all(found.values()) or device == "cpu"  # with CUDA code: reached on CUDA


def test_every_route_names_a_benchmark_that_is_there_or_a_prediction():
    assert {(r.op, r.device) for r in ROUTES} == {(op, d) for op in OPS for d in ("cpu", "cuda")}
    for route in ROUTES:
        path = re.match(
            r"(benchmarks|docs)/\S+\.(py|md)", route.evidence.removeprefix("predicted in ")
        )
        assert path is not None, route
        assert (ROOT / path[0]).is_file(), route
    section = (ROOT / "docs" / "kernels.md").read_text()
    assert all(f"### {op}" in section for op in OPS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("name", op_cases())
def test_a_cuda_tensor_that_the_binary_cannot_take(name):
    """A build without CUDA, or one with CUDA where there is no driver."""
    case = op_cases()[name]
    words = "without CUDA; move the tensors to the CPU"
    if _native.build_info()["cuda"]:
        words = r"cuda\w+ failed|device query failed|driver is missing"
    with pretended_cuda("binary"):
        args = moved(case.make())
        with pytest.raises(RuntimeError, match=rf"catapult_ext\.\w+: .*({words})"):
            case.call(*args)


@needs_device
@pytest.mark.parametrize("name", op_cases())
def test_a_driver_that_is_too_old(name, monkeypatch):
    case = op_cases()[name]
    monkeypatch.setenv("CATAPULT_EMU_DRIVER", "old")
    words = r"catapult_ext\.\w+: the NVIDIA driver is missing, or too old .*; update the driver"
    with pretended_cuda():
        args = moved(case.make())
        with pytest.raises(RuntimeError, match=words):
            case.call(*args)


def mixtures():
    """Calls with tensors on two devices: what is here, and what is there."""
    x, y = torch.randn(5, 6), torch.randn(5, 2)
    net = models.fully_connected(6, 2, width=8, depth=1, seed=1)
    there = moved(models.fully_connected(6, 2, width=8, depth=1, seed=1))
    far_x = moved(x)
    a, far = torch.eye(3), moved(torch.eye(3))
    half = torch.tensor([0.5, 0.6])
    return {
        "NTK": lambda: cx.NTK(there, x),
        "NTK @": lambda: cx.NTK(there, far_x) @ torch.ones(10),
        "GGN": lambda: cx.GGN(there, "half_mse", (far_x, y)),
        "GGN of inputs": lambda: cx.GGN(net, "half_mse", (far_x, y)),
        "Hessian": lambda: cx.Hessian(there, nn.MSELoss(), (far_x, y)),
        "window": lambda: cx.learning_rate_window(there, "half_mse", (far_x, y)),
        "tracker": lambda: cx.CurvatureTracker(there, "half_mse", (far_x, y)).start(),
        "sweep": lambda: cx.sweep(there, (x, y), c=[1.0], steps=2),
        "sum": lambda: cx.NTK(there, far_x) + cx.NTK(net, x),
        "simulate": lambda: cx.toy.simulate(x=far_x, y=y[:, 0], width=9, steps=2, c=[1.0]),
        "run_scalar": lambda: cx.toy.run_scalar(half, width=moved(half), steps=2),
        "gram": lambda: ops.gram([a], [far[:, None]], scale=[1.0], bias=[0.0]),
        "lanczos_dense": lambda: ops.lanczos_dense(far[None], v0=torch.ones(1, 3)),
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_tensors_on_two_devices_are_one_clear_error():
    with pretended_cuda("cpu"):
        for name, call in mixtures().items():
            with pytest.raises(
                ValueError, match=r"catapult_ext\.[\w. @+]+: .* must be on"
            ) as error:
                call()
            assert "\n" not in str(error.value), name


def test_a_device_that_is_not_there():
    with pytest.raises(TypeError, match="device must be a torch device"):
        cx.toy.phase_diagram(device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device must be there"):
            cx.toy.phase_diagram(device="cuda")
