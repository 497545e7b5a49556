"""What every CUDA entry owes its caller: the right stream and device, capture, clear errors."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from catapult_ext import _C, _native
from catapult_ext.testing import backends, emulated, max_error
from catapult_ext.testing.op_cases import op_cases

ROOT = Path(__file__).resolve().parents[2]
CASES = op_cases()
EMULATED, CUDA = backends()[-2:]


def needs_emulation(test):
    reason = EMULATED.unavailable
    return pytest.mark.emulated(pytest.mark.skipif(bool(reason), reason=reason)(test))


def needs_cuda(test):
    reason = CUDA.unavailable
    return pytest.mark.gpu(pytest.mark.skipif(bool(reason), reason=reason)(test))


def assert_close(got, want, tolerance):
    for one, other in zip(got, want, strict=True):
        scale = float(other.abs().max()) or 1.0
        assert max_error(one, other) <= tolerance * scale


@pytest.mark.parametrize("name", CASES)
def test_small_case_agrees(backend, name):
    case = CASES[name]
    with backend.active():
        args = [t.to(backend.device) for t in case.make()]
        got = [t.cpu() for t in case.call(*args)]
    assert_close(got, case.oracle(*case.make()), case.tolerance)


class OnStream:
    """The emulated module, called with a stream and a device of our choice."""

    def __init__(self, module, device, stream):
        self.module, self.device, self.stream = module, device, stream

    def __getattr__(self, op):
        function = getattr(self.module, op)

        def call(*args):
            if op.endswith("_workspace"):
                return function(*args)
            return function(*args[:-3], self.device, self.stream, args[-1])

        return call


@needs_emulation
@pytest.mark.parametrize("name", CASES)
def test_kernels_run_on_the_callers_stream_and_device(name):
    case = CASES[name]
    emulated.launches()
    emulated.current_device(1)
    with _native.emulated(OnStream(emulated.emulated_module(), 0, 4242)):
        case.call(*case.make())
    launches = emulated.launches()
    assert launches
    assert {launch["stream"] for launch in launches} == {"4242"}
    assert {launch["device"] for launch in launches} == {"0"}
    assert emulated.current_device() == 1  # as the caller left it
    emulated.current_device(0)


@needs_emulation
@pytest.mark.parametrize("name", CASES)
def test_same_bits_in_every_thread_order(name, monkeypatch):
    case = CASES[name]
    results = []
    for order in ("forward", "reverse", "random"):
        monkeypatch.setenv("CATAPULT_EMU_ORDER", order)
        with EMULATED.active():
            results.append(case.call(*case.make()))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


@needs_emulation
def test_a_device_that_does_not_exist():
    alpha = torch.ones(1, 3)
    module = OnStream(emulated.emulated_module(), 7, 0)
    with (
        _native.emulated(module),
        pytest.raises(RuntimeError, match=r"catapult_ext.tridiag_eigh: .*invalid device"),
    ):
        torch.ops.catapult.tridiag_eigh(alpha, alpha[:, :2])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_cuda_tensor_where_no_gpu_can_be_used_gives_one_clear_error():
    alpha = torch.ones(1, 3)
    out = [torch.empty(1, 3) for _ in range(3)]
    words = (
        r"cuda\w+ failed|device query failed|driver is missing"
        if _C.build_info()["cuda"]
        else "without CUDA"
    )
    with pytest.raises(RuntimeError, match=f"catapult_ext.tridiag_eigh: .*({words})"):
        _C.tridiag_eigh(alpha, alpha[:, :2].contiguous(), *out, 0, 0, 1)


@needs_cuda
@pytest.mark.parametrize("name", CASES)
def test_capture_in_a_graph(name):
    """cuda: nothing inside an op synchronises, or allocates behind torch's back."""
    case = CASES[name]
    args = [t.cuda() for t in case.make()]
    case.call(*args)
    for target, source in zip(args, case.make(), strict=True):
        target.copy_(source)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = case.call(*args)
    for target, source in zip(args, case.make(), strict=True):
        target.copy_(source)
    graph.replay()
    torch.cuda.synchronize()
    assert_close(got, case.oracle(*case.make()), case.tolerance)


@needs_cuda
@pytest.mark.parametrize("name", CASES)
def test_side_stream(name):
    """cuda: an op waits for what its stream holds, and for nothing else."""
    case = CASES[name]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        args = [t.cuda(non_blocking=True) for t in case.make()]
        got = case.call(*args)
    stream.synchronize()
    assert_close(got, case.oracle(*case.make()), case.tolerance)


@pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("ninja") is None, reason="needs cmake and ninja"
)
@pytest.mark.parametrize(("mode", "succeeds"), [("AUTO", True), ("ON", False)])
def test_unusable_nvcc_does_not_fail_the_install(tmp_path, mode, succeeds):
    import pybind11

    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'nvcc: no licence, no luck' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    hidden = {"CUDACXX", "CUDA_PATH", "CUDA_HOME", "CATAPULT_CUDA", "LD_PRELOAD"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment["PATH"] = f"{nvcc.parent}:{environment['PATH']}"
    environment["CUDACXX"] = str(nvcc)
    command = ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(tmp_path / "build")]
    command += [f"-DCATAPULT_CUDA={mode}", f"-DPython_EXECUTABLE={sys.executable}"]
    command += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == succeeds, said
    assert ("building for the CPU only" in said) == succeeds, said


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
@pytest.mark.parametrize(
    ("asked", "gpus", "chosen"),
    [
        ("found", "9.0\n9.0\n", "90"),
        ("found", "8.6\n12.0\n", "86;120"),
        ("found", "No devices were found\n", "80-real;90"),
        ("all", "9.0\n", "80-real;90-real;100-real;120"),
        ("75;90-real", "9.0\n", "75;90-real"),
    ],
)
def test_architectures_that_a_build_compiles_for(tmp_path, asked, gpus, chosen):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\ncat <<'E'\n{gpus}E\n")
    smi.chmod(0o755)
    script = tmp_path / "ask.cmake"
    script.write_text(
        f'include("{ROOT}/cmake/cuda_architectures.cmake")\n'
        'catapult_cuda_architectures(chosen)\nmessage(STATUS "${chosen}")\n'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["cmake", f"-DCATAPULT_CUDA_ARCHITECTURES={asked}", "-P", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == f"-- {chosen}", done.stderr
