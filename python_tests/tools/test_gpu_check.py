"""tools/gpu_check.py proves the right things: its times, its sanitizers, its limits."""

import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from catapult_ext.testing import baselines
from catapult_ext.testing.op_cases import OpCase, op_cases

ROOT = Path(__file__).resolve().parents[2]


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


check = tool("gpu_check")
bench = tool("gpu_bench")


class FakeGpu:
    """A host and a device with a clock each; a call costs the host 100 us and the device 260 us."""

    def __init__(self, host_cost=100e-6, waits=False):
        self.host = self.done = 0.0
        self.host_cost, self.waits = host_cost, waits

    def launch(self, seconds):
        self.done = max(self.host, self.done) + seconds

    def synchronize(self):
        self.host = max(self.host, self.done)

    def _sleep(self, cycles):
        self.launch(cycles / bench.CYCLES)

    def call(self):
        self.host += self.host_cost
        self.launch(260e-6)
        if self.waits:
            self.synchronize()

    def Event(self, enable_timing):
        event = SimpleNamespace(at=None)
        event.record = lambda: setattr(event, "at", max(self.host, self.done))
        event.query = lambda: event.at <= self.host
        event.elapsed_time = lambda other: 1e3 * (other.at - event.at)
        return event


@pytest.mark.parametrize("host_cost", [0.0, 100e-6, 5e-3, 50e-3])
def test_a_kernel_time_holds_none_of_the_host(monkeypatch, host_cost):
    gpu = FakeGpu(host_cost)
    monkeypatch.setattr(bench.torch, "cuda", gpu)
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: gpu.host))
    found = bench.time_once(gpu.call, list, "cuda")
    assert found.seconds == pytest.approx(260e-6, rel=1e-6)
    assert found.kernels_alone
    assert found.host == pytest.approx(host_cost)


def test_an_operation_that_waits_is_said_to_include_its_host(monkeypatch):
    gpu = FakeGpu(waits=True)
    monkeypatch.setattr(bench.torch, "cuda", gpu)
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: gpu.host))
    assert not bench.time_once(gpu.call, list, "cuda").kernels_alone


def test_what_is_slow_is_timed_once(monkeypatch):
    calls = []

    def once(call, fresh, device):
        calls.append(1)
        return bench.Timing(2.0, 2.0, True)

    monkeypatch.setattr(bench, "time_once", once)
    case = OpCase("x", tuple, tuple, tuple)
    assert bench.median_time(tuple, case, "cpu")["count"] == len(calls) == 1


def test_every_case_names_its_limit_and_what_it_is_measured_against():
    cases = op_cases()
    assert cases["gram_tf32"].gemm == "tf32"
    assert "TF32" in cases["gram_tf32"].goal
    limits = {f"{name}_gflops": 1.0 for name in ("float32", "tf32", "float64")}
    limits["copy_gbytes_per_second"] = 1.0
    row = bench.measure(cases["gram_tf32"], limits | {"tf32_gflops": 1e-3}, "cpu")
    assert row["share_of_gemm"] == pytest.approx(1e3 * row["gflops"])
    assert set(row["speedup"]) == {"torch.matmul"}
    for name in ("lanczos_dense", "tridiag_eigh"):
        assert any("torch.linalg.eigvalsh" in other for other in cases[name].baselines)


@pytest.mark.parametrize(("release", "said"), [("2.11.0+cu128", True), ("2.12.1", False)])
def test_a_solver_that_loops_over_the_batch_says_so(monkeypatch, release, said):
    monkeypatch.setattr(torch, "__version__", release)
    (name,) = [n for n in baselines.symmetric_eigenvalues() if n.startswith("torch")]
    assert ("one matrix at a time" in name) == said


def test_precision_of_products_is_restored():
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    for name in ("tf32", "ieee"):
        with baselines.matmul_precision(name):
            assert settings.fp32_precision == name
        assert settings.fp32_precision == before


CLEAN = "gram: ok (relative error 1e-7)\n========= ERROR SUMMARY: 0 errors\n"
RACES = "gram: ok\n========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n"


@pytest.mark.parametrize(
    ("status", "said", "clean", "found"),
    [
        (0, CLEAN, True, False),
        (0, "gram: ok (relative error 1e-7)\n", False, False),  # attached to nothing
        (0, "========= ERROR SUMMARY: 0 errors\n", False, False),  # no op ran
        (9, RACES, False, True),
        (9, "no device", False, False),
        (0, RACES, False, False),
        (124, "stopped after 5 s", False, False),
    ],
)
def test_a_sanitizer_must_say_that_it_looked(status, said, clean, found):
    assert check.is_clean(status, said, emulated=False) == clean
    assert check.fault_found(status, said, emulated=False) == found


def test_a_planted_fault_that_was_skipped_is_no_control():
    assert check.fault_found(0, "3 passed in 1 s", emulated=True)
    assert not check.fault_found(0, "3 passed, 1 skipped in 1 s", emulated=True)
    assert not check.fault_found(5, "no tests ran", emulated=True)


def test_every_tool_has_its_planted_fault():
    text = (ROOT / "tools" / "gpu_control" / "faults.cu").read_text()
    assert all(f"__global__ void {name}(" in text for name in check.TOOLS)


def new_check(tmp_path, emulated=False):
    options = SimpleNamespace(emulated=emulated, minutes=9.0, out=tmp_path / "o.json", tests=["t"])
    return check.Check(options)


@pytest.mark.parametrize("emulated", [False, True])
def test_all_stages_end_within_nine_minutes(monkeypatch, tmp_path, emulated):
    """Where every command takes all the time that it is given."""
    now = [0.0]
    monkeypatch.setattr(check, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(check.shutil, "which", lambda name: name)
    monkeypatch.setattr(check.shutil, "rmtree", lambda *_, **__: None)
    monkeypatch.setattr(check.shutil, "copytree", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    made = new_check(tmp_path, emulated)
    ran = []

    def run(command, seconds, **_):
        now[0] += seconds
        ran.append((" ".join(command), seconds))
        return 0 if command[0] == "nvcc" else 124, "a\nb\nc"

    made.run = run
    for name in check.PLAN:
        made.stage(name, getattr(made, name))
    assert now[0] <= 9 * 60 - 20
    stages = json.loads((tmp_path / "o.json").read_text())["stages"]
    assert list(stages) == list(check.PLAN)
    for words in ("pytest -q -m", "gpu_smoke.py", "gpu_bench.py"):
        assert any(words in command and seconds > 20 for command, seconds in ran), words


def test_a_command_that_runs_out_of_time_leaves_no_process(tmp_path):
    made = new_check(tmp_path)
    started = tmp_path / "pid"
    note = f"open({str(started)!r}, 'w').write(str(os.getpid()))"
    script = f"import os, time; {note}; time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {script!r}])"
    for seconds in (1.0, 5.0, 60.0):  # a busy machine starts programs late
        status, said = made.run([sys.executable, "-c", parent], seconds)
        assert status == 124
        assert "stopped after" in said
        if started.exists() and started.read_text():
            break
    child = int(started.read_text())
    for _ in range(200):
        try:
            os.kill(child, signal.SIG_DFL)
        except ProcessLookupError:
            return
        if "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    pytest.fail(f"{child} is alive")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_is_one_line_and_status_3(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path / "o.json")])
    assert check.main() == 3
    said = capsys.readouterr()
    assert len((said.out + said.err).splitlines()) == 1
    assert "--emulated" in said.out
    assert not (tmp_path / "o.json").exists()


def test_marks_follow_the_back_end_and_the_device(request):
    """The suite on a GPU is chosen by marks, not by words in names."""
    config = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{mark}: ' in config for mark in ("gpu", "emulated", "on_device"))
    source = (ROOT / "tools" / "gpu_check.py").read_text()
    assert '"-k"' not in source


@pytest.mark.parametrize("name", ["x"])
def test_a_test_without_a_back_end_has_no_mark(request, name):
    assert not {"gpu", "emulated"} & {mark.name for mark in request.node.iter_markers()}


def test_a_test_of_a_back_end_has_its_mark(request, backend):
    marks = {mark.name for mark in request.node.iter_markers()}
    assert ("emulated" in marks) == (backend.name == "cuda_emulated")
    assert ("gpu" in marks) == (backend.name == "cuda")


def test_a_test_on_a_device_has_its_mark(request, device):
    marks = {mark.name for mark in request.node.iter_markers()}
    real = "pretended" not in request.node.name
    assert ("gpu" in marks) == (real and device.type == "cuda")
