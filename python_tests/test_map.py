"""docs/architecture.md is true: its paths exist, its tables are complete, its columns hold."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "catapult_ext"
MAP = (ROOT / "docs" / "architecture.md").read_text()
OPS = sorted(p.name for p in (ROOT / "csrc" / "ops").iterdir() if p.is_dir())
TOP = {p.name for p in ROOT.iterdir()}


def code(text):
    return re.findall(r"`([^`\n]+)`", text)


def paths(text):
    """What is written as code and starts with a folder or file of the repository."""
    return [w for w in code(text) if re.fullmatch(r"[\w./<>-]+", w) and w.split("/")[0] in TOP]


def rows(title):
    """Cells of the table below the header that starts with ``| title``."""
    table = re.search(rf"^\| {re.escape(title)} \|.*?(?=\n\n|\Z)", MAP, re.M | re.S)
    assert table, title
    return [[c.strip() for c in line.strip("|").split("|")] for line in table[0].splitlines()[2:]]


def test_the_map_fits_on_a_few_screens():
    assert 100 <= len(MAP.splitlines()) <= 150


def test_every_path_exists():
    named = paths(MAP)
    assert len(named) > 80
    for path in named:
        for op in OPS if "<op>" in path else [""]:
            assert (ROOT / path.replace("<op>", op)).exists(), path


def test_five_questions_have_an_answer_that_holds():
    """The names in the answers are defined in the files of the answers."""
    found = rows("question")
    assert len(found) == 5
    for question, answer in found:
        (path, *_) = paths(answer)
        text = (ROOT / path).read_text()
        names = [w for w in code(answer) if w not in paths(answer)]
        for name in (part for word in names for part in word.split(".")):
            assert re.search(rf"\b(?:class |def )?{name}\b", text), f"{question} {name}, {path}"


def folders(root):
    """Folders with Python modules, as the map writes them."""
    found = {p.parent.relative_to(root).as_posix() for p in root.rglob("*.py")}
    return found - {"."}


def folder_of(module):
    """The deepest folder that holds ``module``, or its file at the top, relative to the package."""
    parts = module.split(".")[1:]
    while parts and not (PACKAGE / "/".join(parts)).is_dir():
        if (PACKAGE / "/".join(parts)).with_suffix(".py").exists() and len(parts) == 1:
            return parts[0]
        parts = parts[:-1]
    return "/".join(parts)


def imported(folder):
    """Folders and top modules that the files of ``folder`` import, wherever the import is."""
    found = set()
    for path in (PACKAGE / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found |= {f"{node.module}.{a.name}" for a in node.names}
    return {folder_of(m) for m in found if m.startswith("catapult_ext.")} - {folder, ""}


TABLE = {
    row[0].strip("`"): row
    for title in ("folder of `catapult_ext/`", "room of `catapult_ext/linops/`")
    for row in rows(title)
}


def test_every_folder_is_on_the_map():
    assert set(TABLE) == folders(PACKAGE)
    native = {row[0].strip("`") for row in rows("folder of `csrc/`")}
    assert native == {p.name for p in (ROOT / "csrc").iterdir() if p.is_dir()}
    helpers = {p.name for p in PACKAGE.glob("_*.py")} - {"__init__.py", "__main__.py"}
    assert helpers == {Path(p).name for p in paths(MAP) if p.startswith("catapult_ext/_")} - {
        "_C.pyi"
    }


@pytest.mark.parametrize("folder", TABLE)
def test_folders_import_what_the_map_allows(folder):
    allowed = set(code(TABLE[folder][2]))
    if folder == "experiments/reproduce":
        allowed |= set(code(TABLE["experiments"][2]))
    if "its rooms" in TABLE[folder][2]:
        allowed |= {name for name in TABLE if name.startswith(f"{folder}/")}
    for other in imported(folder):
        free = other.startswith("_") and other != "_native"
        inside = any(other.startswith(f"{name}/") for name in allowed - {"linops"})
        assert free or inside or other in allowed, f"{folder} imports {other}"
    assert (ROOT / code(TABLE[folder][3])[0]).is_relative_to(PACKAGE / folder)


def test_the_order_is_the_one_that_is_checked():
    import importlib.util

    spec = importlib.util.spec_from_file_location(
        "rules", ROOT / "python_tests/test_architecture.py"
    )
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    line = next(line for line in MAP.splitlines() if line.startswith("cli -> "))
    levels = [set(level.split(", ")) for level in line.split(" -> ")]
    public = [{n for n in names if n == "_native" or n[0] != "_"} for names in rules.LAYERS]
    assert levels == [names for names in public[::-1] if names]


def test_files_of_an_operation_mention_every_operation():
    """Files that all operations share are on the list only if each operation is in them."""
    start = MAP.index("| an operation |")
    listed = paths(MAP[start : MAP.index("| an engine |")])
    shared = [p for p in listed if "<op>" not in p and Path(p).name not in ("CONTRIBUTING.md",)]
    shared.remove("docs/add-an-op.md")
    assert len(listed) >= 22
    for path in shared:
        text = (ROOT / path).read_text()
        missing = [op for op in OPS if not re.search(rf"(?<![A-Za-z]){op}", text)]
        assert not missing, f"{path}: {missing}"
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    for path in listed:
        known = path in guide or path in ("CONTRIBUTING.md", "csrc/ops/<op>/<op>_cpu.cpp")
        assert known or f"`{Path(path).name}`" in guide, f"CONTRIBUTING.md does not list {path}"
