"""The audit of the binary passes ours and finds a library, a symbol and an export too many."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from catapult_ext import _C

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("readelf", "nm")), reason="no binutils"
)


@pytest.fixture(scope="module")
def tool():
    path = ROOT / "tools" / "abi_audit.py"
    spec = importlib.util.spec_from_file_location("abi_audit", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_our_binary_needs_no_torch_and_offers_its_entry_alone(tool, capsys):
    assert tool.main(Path(_C.__file__)) == 0
    assert "GLIBC " in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_faults_are_named(tool, tmp_path, capsys):
    source = tmp_path / "bad.cpp"
    source.write_text(
        "namespace c10 { void warn(); }\n"
        'extern "C" void deflate();\n'
        "void leaked() { c10::warn(); deflate(); }\n"
    )
    binary = tmp_path / "bad.so"
    command = ["g++", "-shared", "-fPIC", str(source), "-o", str(binary)]
    subprocess.run(command, check=True)
    assert tool.main(binary) == 1
    text = capsys.readouterr().out
    assert "takes c10::warn() from another library" in text
    assert "offers leaked(): hide it" in text


def test_a_wheel_without_a_binary_is_refused(tool, tmp_path):
    import zipfile

    wheel = tmp_path / "empty.whl"
    with zipfile.ZipFile(wheel, "w"):
        pass
    assert tool.main(wheel) == 1
