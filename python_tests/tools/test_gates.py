"""The gates of tools/ and .ci/: each must be able to fail, also where no nvcc is installed."""

import ast
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from catapult_ext.testing import allowed_error

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted((ROOT / "tools").iterdir())
PYTHON_TOOLS = [p for p in TOOLS if p.suffix == ".py"]
SHELL_SCRIPTS = [ROOT / ".ci" / "run", ROOT / ".ci" / "nightly"]
SHELL_SCRIPTS += [p for p in TOOLS if p.is_file() and not p.suffix]


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def budget():
    return tool("cuda_budget")


@pytest.fixture(scope="module")
def mutation():
    return tool("mutation_check")


PTXAS = """
ptxas info    : Compiling entry function '_Z1kIfEvv' for 'sm_90'
ptxas info    : Function properties for _Z1kIfEvv
    64 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 64 bytes stack, 4224 bytes smem
ptxas info    : Compiling entry function '_Z1gv' for 'sm_90'
ptxas info    : Function properties for _Z1gv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 16 registers, used 0 barriers
"""


SASS = """
//--------------------- .text._Z1kPf --------------------------
.text._Z1kPf:
	//## File "/a/product.cuh", line 3
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/              @!P1 LDG.E R8, desc[UR4][R2.64] ;
        /*0030*/                   FFMA R4, R4, R5, R6 ;
        /*0040*/               @P0 BRA `(.L_x_1) ;
	//## File "/a/other.cuh", line 9
.L_x_2:
        /*0050*/                   LDL.64 R2, [R1] ;
        /*0060*/                   FFMA R4, R4, R5, R6 ;
        /*0070*/                   FFMA R4, R4, R5, R6 ;
        /*0080*/                   R2UR UR4, R2 ;
        /*0090*/               @P0 BRA `(.L_x_2) ;
        /*00a0*/                   EXIT ;
"""


def test_machine_code_is_read_and_held_to_its_budget(budget):
    sass = budget.sass
    kernel = sass.parse(SASS)["_Z1kPf"]
    now = sass.measure(kernel)
    assert now == {
        "loop": 5,
        "math": 2,
        "LDG.16": 1,
        "LDG.4": 1,
        "LDL": 1,
        "R2UR in the loop": 1,
    }
    assert sass.measure(kernel, "product.cuh")["math"] == 1
    assert sass.compare("k", now, now) == []
    assert len(sass.compare("k", now, None)) == 1
    for key, least in (("loop", 4), ("LDL", 0), ("LDG.4", 0), ("R2UR in the loop", 0)):
        assert sass.compare("k", now, {**now, key: least}), key
    assert sass.compare("k", {**now, "math": 1}, now)


def test_ptxas_output_is_read(budget):
    assert budget.parse_ptxas(PTXAS) == {
        "_Z1kIfEvv": {"registers": 40, "shared": 4224, "stack": 64, "spills": 12},
        "_Z1gv": {"registers": 16, "shared": 0, "stack": 0, "spills": 0},
    }


def test_budget_finds_what_exceeds_it(budget):
    now = {"registers": 40, "shared": 64, "stack": 0, "spills": 0}
    allowed = {"k": {"sm_90": {"registers": 40, "shared": 64}}}
    assert budget.compare({"k": {"sm_90": now}}, allowed, whole=True) == []
    for change, words in [
        ({"registers": 41}, "41 registers, budget 40"),
        ({"shared": 65}, "65 shared, budget 64"),
        ({"stack": 8}, "8 stack, budget 0"),
        ({"spills": 4}, "spills 4 bytes"),
    ]:
        (line,) = budget.compare({"k": {"sm_90": {**now, **change}}}, allowed, whole=True)
        assert words in line
    assert "no budget" in budget.compare({"k": {"sm_80": now}}, allowed, whole=True)[0]
    assert "does not exist" in budget.compare({}, allowed, whole=True)[0]


def test_every_cuda_source_has_a_budget(budget):
    known = json.loads(budget.BUDGET.read_text())
    assert all(set(archs) == {f"sm_{a}" for a in budget.ARCHITECTURES} for archs in known.values())
    measured = {name.split("<")[0] for name in known}
    assert budget.sources()
    for path in budget.sources():
        text = "".join(p.read_text() for p in path.parent.glob("*.cu*"))
        kernels = set(re.findall(r"__global__ void [^{;]*?(\w+_kernel)\(", text))
        assert kernels, path
        assert kernels <= measured, f"run tools/cuda_budget.py --update {path}"


def test_mutation_sites_are_the_uses(mutation):
    sites = mutation.find(mutation.SITE)
    assert len(sites) == len(set(sites)) >= 6
    for site in sites:
        kind, place = site.split(" ")
        path, line = place.split(":")
        assert kind + "(" in (ROOT / path).read_text().splitlines()[int(line) - 1]
    reduce = [s for s in sites if "core/cuda/reduce.cuh" in s]
    assert len(reduce) == 2  # the two barriers of block_reduce, not the definitions around them
    chosen = mutation.choose(sites, 5)
    assert len(set(chosen)) == 5
    assert chosen == mutation.choose(sites, 5)


def test_mutants_are_caught_by_failures_of_tests_only(mutation, monkeypatch, tmp_path):
    """An error of pytest, or a test that also fails without the fault, is an error of the check."""
    fates = {0: "", 1: "caught", 66: "caught", -6: "crashes", 2: "broken", 4: "broken", 5: "broken"}
    assert {code: mutation.fate(code) for code in fates} == fates
    site = "in_bounds a.cuh:1"

    def ends(with_fault, without):
        """The caught sites and the errors, of children that end with these statuses."""

        def child(job, folder):
            (folder / str(os.getpid())).write_text("a test")
            os._exit(without if job.found else with_fault)

        monkeypatch.setattr(mutation, "child", child)
        task, caught = {"sanitizer": "address", "broken": []}, {}
        mutation.run_forked([mutation.Job(site, "forward", ["a test"], 1.0)], task, caught)
        return list(caught), len(task["broken"])

    assert ends(1, 0) == ([site], 0)
    assert ends(0, 0) == ([], 0)
    assert ends(1, 1) == ([], 1)
    assert ends(4, 0) == ([], 1)


def test_a_fuzzer_sees_a_planted_fault(monkeypatch, tmp_path):
    """Without atheris; the damaged input is kept."""
    fuzz = tool("fuzz_files")
    monkeypatch.setattr(
        "catapult_ext.data.files.read_idx", lambda path, dims: path.read_bytes()[:1]
    )
    with pytest.raises((AttributeError, AssertionError)):
        fuzz.plain("idx", 0.0, 60, tmp_path)
    assert (tmp_path / "plain").exists()


def test_a_fuzzer_ends_a_file_that_takes_for_ever(monkeypatch, tmp_path):
    """By processor time: a busy machine is no hang."""
    fuzz = tool("fuzz_files")

    def endless(data):
        while True:
            pass

    monkeypatch.setitem(fuzz.TARGETS, "idx", endless)
    before = signal.getsignal(signal.SIGPROF)
    try:
        with pytest.raises(TimeoutError, match="idx: one file takes more than"):
            fuzz.plain("idx", 0.0, 0.1, tmp_path)
    finally:
        signal.signal(signal.SIGPROF, before)
    assert (tmp_path / "plain").exists()


def test_a_tolerance_that_any_result_meets_is_refused():
    with pytest.raises(ValueError, match="any result would pass"):
        allowed_error(lambda x: x * x, (torch.tensor([1e30]),), torch.float32, 1.0)


def test_the_smoke_run_refuses_an_unknown_op(capsys):
    assert tool("gpu_smoke").main(["emulated", "gramm"]) == 1
    assert "gramm: no such op" in capsys.readouterr().out


def test_tools_are_called_by_their_names():
    assert all(p.is_dir() or p.suffix in {"", ".py", ".json"} for p in TOOLS)
    for path in [*PYTHON_TOOLS, *SHELL_SCRIPTS]:
        text = path.read_text()
        assert text.startswith("#!/usr/bin/env " + ("python3" if path.suffix else "bash"))
        assert os.access(path, os.X_OK), path
    for path in PYTHON_TOOLS:
        assert f"tools/{path.name}" in ast.get_docstring(ast.parse(path.read_text())), path
    names = "|".join(p.stem for p in PYTHON_TOOLS)
    pages = [*SHELL_SCRIPTS, *PYTHON_TOOLS, *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    pages.append(ROOT / "pyproject.toml")
    for path in pages:
        wrong = re.findall(rf"tools/(?:{names})(?!\w|\.py|\.json)", path.read_text())
        assert not wrong or path.name == "CHANGELOG.md", f"{path}: {wrong}"


@pytest.mark.parametrize("path", SHELL_SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_script_loses_an_exit_status(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    code = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    assert code[0] == "set -euo pipefail"
    for line in code:
        lost = re.search(r"\|\| *(true|:|echo)\b|; *true\b|set \+e|--exit-zero|2> */dev/null", line)
        assert not lost, f"{path}: {line}"
        # In an argument, the status of a command that fails is lost; in an assignment it is not.
        inside = re.search(r"\$\((?!cd|date|mktemp|dirname)", line)
        assert not inside or re.match(r"\s*\w+=\$\(", line) or path.name == "with_sanitizer", line
        assert not re.search(r"mkdocs.*(-q\b|--quiet)", line), "-q hides warnings from --strict"


def test_nightly_installs_what_its_tests_skip_without():
    nightly = (ROOT / ".ci" / "nightly").read_text()
    installed = re.search(r"'\.\[([\w,]+)\]'", nightly)[1].split(",")
    extras = re.findall(r"^(\w+) = \[", section("project.optional-dependencies"), re.M)
    assert set(installed) == set(extras) - {"lint", "docs", "experiments"}


def section(name):
    """The text of one table of pyproject.toml; Python 3.10 has no tomllib."""
    text = (ROOT / "pyproject.toml").read_text()
    return text[text.index(f"[{name}]") :].split("\n[")[0]


def test_linters_and_documentation_tools_are_pinned_in_one_place():
    text = (ROOT / "pyproject.toml").read_text()
    names = set()
    for extra in ("lint", "docs"):
        listed = re.search(rf"^{extra} = \[(.*?)\]$", text, re.M | re.S)
        for requirement in re.findall(r'"([^"]+)"', listed[1]):
            assert re.fullmatch(r"[\w-]+==[\w.]+", requirement), requirement
            names.add(requirement.split("==")[0])
    assert {"ruff", "mypy", "clang-format", "mkdocs", "mkdocs-material", "griffelib"} <= names
    script = (ROOT / ".ci" / "run").read_text()
    assert "install_extra lint" in script
    assert "install_extra docs" in script
    for path in (*SHELL_SCRIPTS, *(ROOT / ".github").rglob("*.yml")):
        for line in re.findall(r"pip\"? install.*", path.read_text()):
            assert not set(re.findall(r"[\w-]+", line)) & names, f"{path}: {line}"
    # The hooks run what the extra has installed, so that they have no version of their own.
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    local = hooks[hooks.index("- repo: local") :]
    entries = re.findall(r"entry: (\S+)", local)
    assert entries == ["ruff", "ruff", "clang-format"]
    assert local.count("language: system") == len(entries)
    assert "rev:" not in local
    assert not re.search(r"ruff|clang", hooks[: hooks.index("- repo: local")])
