"""The documentation is run: its code blocks in order, its commands parsed, its links followed."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# Pages whose blocks take longer than the default run can afford.
LONG = {"README.md", "docs/curvature.md"}


def name(page):
    return str(page.relative_to(ROOT))


def blocks(page):
    """(line, source) of the Python blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        (text[: found.start()].count("\n") + 2, found[1])
        for found in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)
    ]


def runnable():
    for page in PAGES:
        if blocks(page):
            marks = [pytest.mark.nightly] if name(page) in LONG else []
            yield pytest.param(page, marks=marks, id=name(page))


@pytest.mark.parametrize("page", list(runnable()))
def test_code_blocks_run(page, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    import torch

    import catapult_ext as cx
    from catapult_ext.data.packaged import packaged

    if "fashion-mnist" in "".join(source for _, source in blocks(page)):
        if packaged("fashion-mnist") is None:
            pytest.skip("the page shows real images: apt install dataset-fashion-mnist")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"__name__": "docs", "torch": torch, "cx": cx}
    for line, source in blocks(page):
        # As many empty lines as stand above the block, so that a traceback names the page's line.
        exec(compile("\n" * (line - 1) + source, str(page), "exec"), names)


def commands():
    """Every ``catapult-ext ...`` that stands in a page as code."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found = set(re.findall(r"`(catapult-ext [a-z][^`|\n]*)`", text))
        for block in re.findall(r"^```(?:console|bash|sh)?\n(.*?)^```$", text, re.M | re.S):
            for line in block.splitlines():
                command = line.split("#")[0].split("&&")[-1].strip()
                if command.startswith("catapult-ext "):
                    found.add(command)
        for command in sorted(found):
            yield pytest.param(command, id=f"{name(page)}: {command}")


@pytest.mark.parametrize("command", list(commands()))
def test_commands_are_understood(command):
    """Their names and options are, that is: nothing is run."""
    typer = pytest.importorskip("typer")
    pytest.importorskip("rich")
    from catapult_ext.cli.app import build_app

    words = shlex.split(command)[1:]
    group = typer.main.get_command(build_app())
    while words and hasattr(group, "commands"):
        assert words[0] in group.commands, f"{command}: there is no {words[0]!r}"
        group = group.commands[words.pop(0)]
    words = [w.replace("NAME", "fc-phases") for w in words if w not in ("...", "--help")]
    if words:  # a command may also just be mentioned
        group.make_context(group.name, words)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        path = page.parent / target.partition("#")[0]
        assert path.exists(), f"{name(page)}: {target}"
        if path.is_relative_to(ROOT / "docs") is False and page.is_relative_to(ROOT / "docs"):
            pytest.fail(f"{name(page)}: {target} is not part of the documentation's site")


def test_every_operation_has_its_page():
    ops = {p.name for p in (ROOT / "csrc" / "ops").iterdir() if p.is_dir()}
    pages = {p.stem for p in (ROOT / "docs" / "ops").glob("*.md")}
    assert ops == pages - {"index"}


def test_quoted_sources_are_what_stands_in_the_files():
    """Blocks of C++, and of Python marked ``py``, are quotations."""
    page = ROOT / "docs" / "add-an-op.md"
    sources = [p.read_text() for p in (ROOT / "csrc").rglob("*tridiag_eigh*") if p.is_file()]
    sources += [
        (ROOT / "catapult_ext" / f / "tridiag_eigh.py").read_text() for f in ("ops", "reference")
    ]
    quoted = re.findall(r"^```(?:cpp|py)\n(.*?)^```$", page.read_text(), re.M | re.S)
    assert len(quoted) >= 6
    for text in quoted:
        assert any(text in source for source in sources), text
