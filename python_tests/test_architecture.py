"""The rules of the layout, checked on the sources: who may include or import whom, sizes, names."""

import ast
import io
import re
import tokenize
import warnings
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "catapult_ext"
CXX_FILES = sorted(p for p in CSRC.rglob("*") if p.suffix in {".hpp", ".cpp", ".cu", ".cuh"})
PY_FILES = sorted(PACKAGE.rglob("*.py"))

# Layers from the bottom up; a module may import from layers below its own, and from its own folder.
LAYERS = [
    {"_function_copy"},
    {"_validate", "_deprecated", "_autocast", "_module_copy", "_C", "_processes", "_free_memory"}
    | {"_shown"},
    {"_model_call", "_by_path", "_state", "_progress"},
    {"_batches"},
    {"_native"},
    {"_store", "figures"},
    {"ops", "reference"},
    {"losses"},
    {"linops", "eig", "runs"},
    {"training", "systems"},
    {"probes", "toy", "models", "data"},
    {"experiments"},
    {"cli"},
]
# Siblings of one layer that may not see each other, or pairs the layer order would forbid or allow.
FORBIDDEN = {("linops", "eig"), ("eig", "linops"), ("reference", "ops"), ("reference", "_native")}
ALLOWED = {("testing", "ops"), ("testing", "reference"), ("testing", "_native")}
ALLOWED |= {("figures", "_store")}  # pictures are written as the files of a run are
ALLOWED |= {("toy", "probes"), ("probes", "models"), ("linops", "models"), ("data", "models")}


# Inside linops from the bottom up: its base class, rooms, the operators on top, data in batches.
LINOPS = ["base", "model", "tracing", "engines", "explicit", "operators", "stacked", "streamed"]
# Loops of imports that are allowed: none.
CYCLES = []


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
        if folder in ("core", "emulation", "bindings") or (op and not op.startswith("toy_")):
            assert not name.startswith("toy/"), f"{path}: only ops of the toy model use {name}"
        if folder == "toy" and name.startswith(("ops/", "bindings/")):
            pytest.fail(f"{path}: what the toy ops share knows none of them, but includes {name}")
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


def import_graph():
    """The modules that each module imports, inside functions and for annotations too.

    ``from package import name`` counts as ``package.name`` where that is a module, and as
    ``package`` elsewhere.  Names are those below ``catapult_ext``, which is "" itself.
    """
    named = {}
    for path in PY_FILES:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    known = {*named, "_C"}
    graph = {}
    for module, path in named.items():
        found = set()
        for name in imported_names(path):
            while name and name not in known:
                name = name.rpartition(".")[0]
            found.add(name)
        graph[module] = found - {module}
    graph["_C"] = set()
    return graph


def imported_names(path):
    """What a module imports of this package, as ``linops.base.LinearOperator``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (n.partition(".")[2] for n in names if n.split(".")[0] == "catapult_ext")


def cycles(graph):
    """Sets of modules that reach each other, by removal of modules without imports or importers."""
    left = {module: set(found) for module, found in graph.items()}
    while True:
        needed = set().union(*left.values()) if left else set()
        loose = {m for m, found in left.items() if not found or m not in needed}
        if not loose:
            break
        left = {m: found - loose for m, found in left.items() if m not in loose}

    def reach(start):
        seen, stack = set(), [start]
        while stack:
            for other in left[stack.pop()] - seen:
                seen.add(other)
                stack.append(other)
        return seen

    reached = {module: reach(module) for module in left}
    loops = [{n for n in left if m in reached[n] and n in reached[m]} for m in left]
    return [loop for i, loop in enumerate(loops) if loop and loop not in loops[:i]]


def test_cycles_are_seen():
    graph = {
        "a": {"b"},
        "b": {"c", "d"},
        "c": {"a"},
        "d": {"e"},
        "e": {"f"},
        "f": {"e"},
        "g": {"a"},
    }
    assert cycles(graph) == [{"a", "b", "c"}, {"e", "f"}]
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_module_imports_in_a_circle():
    assert cycles(import_graph()) == CYCLES


def linops_room(module):
    """The place of ``linops.engines.base`` or ``linops.ntk`` in the order of rooms."""
    first = module.split(".")[1]
    return LINOPS.index(first if first in LINOPS else "operators")


def linops_graph():
    """Imports between the modules of linops; its ``__init__`` gathers the public names."""
    return {
        module: {other for other in found if other.startswith("linops.")}
        for module, found in import_graph().items()
        if module.startswith("linops.")
    }


def test_imports_inside_linops_go_one_way():
    for module, found in linops_graph().items():
        above = [other for other in found if linops_room(other) > linops_room(module)]
        assert not above, f"{module} imports {above}, of a room above its own ({LINOPS})"


def test_linops_is_flat_and_has_few_things_on_top():
    graph, lengths = linops_graph(), {}

    def chain(module):
        if module not in lengths:
            lengths[module] = max(map(chain, graph[module]), key=len, default=[])
            lengths[module] = [module, *lengths[module]]
        return lengths[module]

    longest = max(map(chain, graph), key=len)
    assert len(longest) <= 8, " -> ".join(longest)
    top = {path.name for path in (PACKAGE / "linops").iterdir() if path.name != "__pycache__"}
    assert len(top) <= 15, sorted(top)


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


OTHER_PYTHON = [
    p for f in ("python_tests", "benchmarks", "tools") for p in (ROOT / f).rglob("*.py")
]
SIZED = [*CXX_FILES, *PY_FILES, *sorted(OTHER_PYTHON)]


def test_files_are_at_most_500_lines_long():
    """Above 300 lines a file is reported only: a reader has to judge whether it is one thing."""
    lines = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in SIZED}
    long = [f"{path} ({n})" for path, n in sorted(lines.items()) if n > 300]
    if long:
        warnings.warn(f"more than 300 lines: {', '.join(long)}", stacklevel=1)
    too_long = [path for path, n in lines.items() if n > 500]
    assert not too_long, "split them by what they do, not by tricks"


def python_tricks(text):
    """Ways to write Python in fewer lines than it has statements, with their lines."""
    tree = ast.parse(text)
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    for node in [tree, *statements]:
        values = node.value if isinstance(node, ast.Assign) else None
        if isinstance(values, ast.Tuple) and len(values.elts) > 3:
            if isinstance(node.targets[0], ast.Tuple):
                yield node.lineno, "more than three assignments in one"
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None) or []
            for before, after in pairwise(block):
                if before.end_lineno == after.lineno:
                    yield after.lineno, "two statements on a line"
            dots = len(block) == 1 and ast.unparse(block[0]) == "..."
            if field == "body" and block and node is not tree and not dots:
                if block[0].lineno == node.lineno:
                    yield node.lineno, "a block on the line of its header"
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and re.match(r"#\s*fmt:\s*(skip|off)", token.string):
            line = token.start[0]
            around = [s for s in statements if first_line(s) <= line <= s.end_lineno]
            if not around or not has_table(max(around, key=first_line)):
                yield line, "a line that is not formatted, outside of a table"


def first_line(statement):
    decorators = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(d.lineno for d in decorators)])


def has_table(statement):
    """A list, tuple, set or dictionary of three lines and three entries, at least."""
    parts = getattr(statement, "decorator_list", None) or [statement]
    if hasattr(statement, "body") and parts == [statement]:
        parts = []
    for node in (n for part in parts for n in ast.walk(part)):
        entries = getattr(node, "elts", getattr(node, "keys", []))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "dict":
            entries = node.keywords
        if len(entries) >= 3 and node.end_lineno - node.lineno >= 2:
            return True
    return False


def cxx_tricks(text):
    """The same for C++, line by line."""
    value = r"(?:[^,(){};]|\([^()]*\))+"
    place = r"[\w.\[\]*>-]+"
    change = rf"(?:{place} ?(?:[-+*/%|&^]|<<|>>)?= {value}|(?:\+\+|--){place}|{place}(?:\+\+|--))"
    for number, line in enumerate(text.splitlines(), 1):
        code = re.sub(r'"(\\.|[^"\\])*"', '""', line).split("//")[0].strip()
        if re.match(rf"(?:.*\) |else )?{change}, {change}", code) and not code.startswith("for "):
            yield number, "a comma operator"
        if re.search(rf"\b(?:if|while) \(.*\({place} = ", code) or re.search(
            rf"\b(?:if|while) \({place} = ", code
        ):
            yield number, "an assignment in a condition"
        ends, open_brackets, closed = [], [], 0
        for before, character in zip(" " + code, code, strict=False):
            if character in "([{":
                open_brackets.append(character)
            elif character in ")]}":
                closed += not open_brackets
                open_brackets = open_brackets[:-1]
            elif character == ";" and before != "}" and "(" not in open_brackets[-1:]:
                ends.append((len(open_brackets), closed))
        if len(ends) != len(set(ends)):
            yield number, "two statements on a line"


@pytest.mark.parametrize("path", SIZED, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_shortened_by_tricks(path):
    tricks = python_tricks if path.suffix == ".py" else cxx_tricks
    found = [f"line {number}: {what}" for number, what in tricks(path.read_text())]
    assert not found, f"{path}: {found}"


def test_tricks_are_seen():
    table = "a = [\n    1,\n    2, 3,\n]  # fmt: skip\n"
    for plain in ("a, b = b, a\n", "class A: ...\n", table, "if a:\n    b = 1\n"):
        assert not list(python_tricks(plain)), plain
    squeezed = "call(\n    1, 2,\n    3)  # fmt: skip\n"
    for trick in ("a = 1; b = 2\n", "a, b, c, d = 1, 2, 3, 4\n", "if a: b = 1\n", squeezed):
        assert len(list(python_tricks(trick))) == 1, trick
    for plain in (
        "int a = 0, b = 1;",
        "for (int i = 0, j = 1; i < n; ++i, ++j) {",
        "each([&](int i) { w[i] = f(i, 1); });",
        "x = f(a, b), g;",
        "if (const auto x = f(); x) return;",
        "const int a = p[0] * 2, b = 3;",
        "struct { T x, y; };",
    ):
        assert not list(cxx_tricks(plain)), plain
    for trick in (
        "m_ = 0, exact_ = false;",
        "if (++o == outputs) o = 0, ++m;",
        "a = 0; b = 1;",
        "each([&](int i) { a = i; b = i; });",
        "if (!(finite_ = isfinite(x))) return;",
        "++i, ++j;",
    ):
        assert len(list(cxx_tricks(trick))) == 1, trick


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


@pytest.mark.parametrize("path", PY_FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_docstrings_say_something_themselves(path):
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Module)
    for node in ast.walk(ast.parse(path.read_text())):
        text = (ast.get_docstring(node) or "") if isinstance(node, kinds) else ""
        only_a_link = re.fullmatch(r"(See|As) (:\w+:)?`{1,2}[^`]+`{1,2}\.?", text)
        assert not only_a_link, f"{path}: {node.name}: {text}"


def test_dispatch_modes_share_one_base_class():
    """A mode that derives from torch's own imports the compiler, seconds, on its first use."""
    users = [p for p in PY_FILES if "TorchDispatchMode" in p.read_text()]
    assert users == [PACKAGE / "linops" / "model" / "dispatch_mode.py"]


@pytest.mark.parametrize("path", PY_FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_argument_checks_are_imported_in_one_way(path):
    """As ``v``; by the whole name in ops and toy, where v is a vector or a layer's weights."""
    wanted = None if part_of(path) in {"ops", "toy"} else "v"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module != "catapult_ext._validate", f"{path}: import the module"
            names = [a.asname for a in node.names if a.name == "_validate"]
            assert names in ([], [wanted]), f"{path}: import _validate as {wanted}"
