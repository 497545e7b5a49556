"""The rules of the layout, checked on the sources: who may include or import whom, sizes, names."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "catapult_ext"
CXX_FILES = sorted(p for p in CSRC.rglob("*") if p.suffix in {".hpp", ".cpp", ".cu", ".cuh"})
PY_FILES = sorted(PACKAGE.rglob("*.py"))

# Layers from the bottom up; a module may import from layers below its own, and from its own folder.
LAYERS = [
    {"_validate", "_deprecated", "_autocast", "_module_copy", "_C"},
    {"_native", "figures"},
    {"ops", "reference"},
    {"losses"},
    {"linops", "eig", "runs"},
    {"probes", "toy", "models", "data"},
    {"experiments"},
    {"cli"},
]
# Siblings of one layer that may not see each other, or pairs the layer order would forbid or allow.
FORBIDDEN = {("linops", "eig"), ("eig", "linops"), ("reference", "ops"), ("reference", "_native")}
ALLOWED = {("testing", "ops"), ("testing", "reference"), ("testing", "_native")}
ALLOWED |= {("toy", "probes"), ("probes", "models"), ("linops", "models"), ("data", "models")}
ALLOWED |= {("linops", "runs")}  # kernels on disk are stored as runs are


def layer(name):
    return next((i for i, names in enumerate(LAYERS) if name in names), None)


def includes(path):
    return re.findall(r'^\s*#\s*include\s+["<]([^">]+)[">]', path.read_text(), re.M)


def imports(path):
    """Top-level parts of catapult_ext that a module imports, wherever the import stands."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "catapult_ext" and len(parts) > 1:
                yield parts[1]


def part_of(path):
    relative = path.relative_to(PACKAGE).parts
    return relative[0].removesuffix(".py")


@pytest.mark.parametrize("path", CXX_FILES, ids=lambda p: str(p.relative_to(CSRC)))
def test_includes(path):
    folder = path.relative_to(CSRC).parts[0]
    op = path.relative_to(CSRC).parts[1] if folder == "ops" else None
    for name in includes(path):
        if "torch" in name or name.startswith(("ATen", "c10")):
            pytest.fail(f"{path}: torch header {name}; the library must not depend on torch")
        if folder != "bindings" and (name == "Python.h" or name.startswith("pybind11")):
            pytest.fail(f"{path}: {name} outside csrc/bindings")
        if name.startswith("cuda") and path.name != "runtime.cuh":
            pytest.fail(f"{path}: {name}; only core/cuda/runtime.cuh includes the CUDA runtime")
        if folder == "core" and name.startswith(("ops/", "bindings/")):
            pytest.fail(f"{path}: core knows no operation, but includes {name}")
        if folder == "bindings" and name.startswith("ops/"):
            stem = name.split("/")[1]
            assert name == f"ops/{stem}/{stem}.hpp", f"{path}: bindings see contracts only: {name}"
        if op and not path.name.startswith("no_cuda") and name.startswith("ops/"):
            stem = name.split("/")[1]
            header = f"ops/{stem}/{stem}"
            own = stem == op
            assert own or name in {f"{header}.hpp", f"{header}_math.hpp"}, (
                f"{path}: another op is used through its header only, not {name}"
            )
        if path.name.endswith("_simd.cpp"):
            bad = {"vector", "algorithm", "string", "map", "memory", "functional"} & {name}
            assert not bad, f"{path}: {name} in an ISA-flagged file may leak into baseline code"


def test_op_dependencies_have_no_cycle():
    uses = {}
    for path in (CSRC / "ops").glob("*/*"):
        if path.suffix in {".hpp", ".cpp", ".cu", ".cuh"}:
            found = {n.split("/")[1] for n in includes(path) if n.startswith("ops/")}
            uses.setdefault(path.parent.name, set()).update(found - {path.parent.name})

    def visit(op, trail):
        assert op not in trail, f"cycle: {' -> '.join([*trail, op])}"
        for other in uses.get(op, ()):
            visit(other, [*trail, op])

    for op in uses:
        visit(op, [])


@pytest.mark.parametrize("op", sorted(p.name for p in (CSRC / "ops").iterdir() if p.is_dir()))
def test_every_op_has_its_files(op):
    folder = CSRC / "ops" / op
    wanted = [
        folder / f"{op}.hpp",
        folder / f"{op}.cpp",
        folder / f"{op}_cpu.cpp",
        CSRC / "bindings" / f"bind_{op}.cpp",
        PACKAGE / "ops" / f"{op}.py",
        PACKAGE / "reference" / f"{op}.py",
        ROOT / "python_tests" / "ops" / f"test_{op}.py",
        ROOT / "benchmarks" / f"bench_{op}.py",
    ]
    missing = [str(p.relative_to(ROOT)) for p in wanted if not p.exists()]
    assert not missing, f"{op} lacks {missing}"


@pytest.mark.parametrize("path", PY_FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports(path):
    part = part_of(path)
    if path.parent == PACKAGE and part in {"__init__", "__main__"}:
        return
    for other in set(imports(path)) - {part}:
        pair = (part, other)
        if pair in ALLOWED:
            continue
        assert part != "reference", f"{path}: the reference uses torch only, not {other}"
        assert pair not in FORBIDDEN, f"{path}: {part} may not import {other}"
        mine, theirs = layer(part), layer(other)
        if mine is None or theirs is None:
            assert part == "testing" or other in {"build_info", "__version__"}, (
                f"{path}: {part} or {other} has no layer"
            )
            continue
        assert theirs < mine, f"{path}: {part} (layer {mine}) may not import {other} ({theirs})"


@pytest.mark.parametrize("path", PY_FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_optional_packages_are_imported_inside_functions(path):
    optional = {"matplotlib", "rich", "typer", "sklearn", "scipy", "pytest"}
    if part_of(path) in {"cli", "testing", "__main__"} and path.parent != PACKAGE:
        optional = {"matplotlib", "sklearn", "scipy"}
    for node in ast.parse(path.read_text()).body:
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found = {n.split(".")[0] for n in names} & optional
        assert not found, f"{path}: {found} must be imported inside the functions that use it"


@pytest.mark.parametrize("path", PY_FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_matplotlib_is_loaded_by_figures_alone(path):
    if part_of(path) == "figures":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(n.split(".")[0] == "matplotlib" for n in names), f"{path}: use figures"


def test_kernels_are_launched_through_the_launcher_only():
    for path in CXX_FILES:
        if path.name not in {"launch.cuh", "runtime.cuh"}:
            assert "<<<" not in path.read_text(), f"{path}: launch through core/cuda/launch.cuh"


@pytest.mark.parametrize(
    "path",
    [*CXX_FILES, *PY_FILES, *sorted((ROOT / "python_tests").rglob("*.py"))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_files_stay_readable(path):
    lines = len(path.read_text().splitlines())
    assert lines <= 500, f"{path} has {lines} lines: is it one thing?"


def test_version_stands_in_one_place():
    import catapult_ext as cx

    text = (ROOT / "pyproject.toml").read_text()
    assert f'\nversion = "{cx.__version__}"\n' in text
    for path in PY_FILES:
        assert f'"{cx.__version__}"' not in path.read_text(), f"{path} repeats the version"


def test_stub_lists_the_native_functions():
    from catapult_ext import _C

    stub = ast.parse((PACKAGE / "_C.pyi").read_text())
    declared = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    present = {name for name in dir(_C) if not name.startswith("_")}
    assert declared == present


FACTORIES = {
    *("randn", "rand", "randint", "randperm", "normal", "zeros", "ones", "empty", "full", "eye"),
    *("arange", "linspace", "logspace", "tensor", "as_tensor", "scalar_tensor"),
}
LAYERS_OF_THE_USER = {"models/layers.py", "testing/attention.py"}  # as torch's own layers


@pytest.mark.parametrize("path", PY_FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_factory_calls_name_their_device(path):
    """``torch.set_default_device`` must not send values of the package to another device."""
    if str(path.relative_to(PACKAGE)) in LAYERS_OF_THE_USER:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, named = node.func.value, {k.arg for k in node.keywords}
        if isinstance(owner, ast.Name) and owner.id == "torch" and node.func.attr in FACTORIES:
            assert named & {"device", None}, f"line {node.lineno}: torch.{node.func.attr}"
