"""The gates of tools/: each must see what it is there for, also where no nvcc is installed."""

import importlib.util
import json
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tool(name):
    loader = SourceFileLoader(name, str(ROOT / "tools" / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
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
    for path in budget.sources():
        op = path.parent.name
        assert any(op in name for name in known), f"run tools/cuda_budget --update {path}"


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
