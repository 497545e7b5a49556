"""Hooks of mkdocs: roles become plain code; tables and API pages come from results and sources."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
# Roles such as :class:`NTK`, whose backquotes Markdown has made <code> of; a section's first word
# has lost its colon.
ROLE = re.compile(r"(?:(?<=>)|:)(?:class|func|meth|mod|attr|data):(<code[^>]*>)~?")
MEASURED = re.compile(r"<!-- measured: (\w+) -->")
PUBLIC = re.compile(r"<!-- public: ([\w.]+)((?: \w+)*)( \.\.\.)? -->")


def on_page_content(html: str, **_: object) -> str:
    """Drop the role's name in front of the code."""
    return ROLE.sub(r"\1", html)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill in what the page asks for.

    ``<!-- measured: test_gram -->`` becomes the tables of that benchmark, one per machine;
    ``<!-- public: catapult_ext.toy -->`` the documentation of all that module exports,
    ``<!-- public: catapult_ext NTK GGN -->`` that of the names, in this order, and
    ``<!-- public: catapult_ext NTK GGN ... -->`` these first, then all others.
    """
    markdown = MEASURED.sub(lambda found: tables(found[1]), markdown)
    return PUBLIC.sub(lambda found: directives(found[1], listed(*found.groups())), markdown)


def exported(module: str) -> dict[str, str]:
    """Name -> where it is imported from, for the functions and classes in ``module.__all__``."""
    path = ROOT / module.replace(".", "/") / "__init__.py"
    names, origin = [], {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            origin.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
    if not names:
        raise ValueError(f"{path} has no __all__")
    found = {n: origin[n] for n in names if n in origin and is_documented(origin[n])}
    return {name: found[name] for name in sorted(found, key=str.lower)}


def is_documented(origin: str) -> bool:
    """True for a function or class, false for a module or a constant."""
    module, _, name = origin.rpartition(".")
    folder = ROOT / module.replace(".", "/")
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return True
        if isinstance(node, ast.ImportFrom) and name in {a.asname or a.name for a in node.names}:
            (alias,) = (a for a in node.names if name == (a.asname or a.name))
            return is_documented(f"{node.module}.{alias.name}") if node.module != module else False
    return False


def listed(module: str, names: str, rest: str | None) -> list[str]:
    """Names in the order of the page: those given, and the others where it asks for all."""
    first = names.split()
    others = [name for name in exported(module) if name not in first]
    return first + others if rest or not first else first


def directives(module: str, names: list[str]) -> str:
    """Directives of mkdocstrings for ``names`` of a module."""
    public = exported(module)
    return "\n\n".join(f"::: {resolved(public[name])}" for name in names)


def resolved(origin: str) -> str:
    """The place of the definition, through re-exports of packages."""
    module, _, name = origin.rpartition(".")
    if (ROOT / module.replace(".", "/") / "__init__.py").exists():
        return resolved(exported(module).get(name, origin)) if module != origin else origin
    return origin


def on_files(files: object, **_: object) -> None:
    """Fail unless every public name of the package is on one of the API pages."""
    pages = "\n".join(p.read_text() for p in (ROOT / "docs" / "api").glob("*.md"))
    named = {name for found in PUBLIC.findall(pages) for name in listed(*found)}
    missing = sorted(exported("catapult_ext").keys() - named - {"build_info"})
    if missing:
        raise ValueError(f"docs/api lacks {', '.join(missing)} of catapult_ext.__all__")


def tables(test: str) -> str:
    """Markdown tables of every benchmark file that holds ``test``."""
    found = []
    for path in sorted(RESULTS.glob("*.json")):
        held = json.loads(path.read_text())
        cases = held.get("benchmarks")
        if not isinstance(cases, dict):
            continue
        rows = {name: info for name, info in cases.items() if name.split("[")[0] == test}
        if rows:
            found.append(table(held["machine"], held, rows))
    if not found:
        raise ValueError(f"benchmarks/results holds nothing of {test}")
    return "\n\n".join(found)


def table(machine: dict, held: dict, rows: dict) -> str:
    """One table, with shares of the machine's GEMM and copy rates measured in the same run."""
    lines = [
        f"{machine['processor']}, {machine['threads']} threads, {machine['active_isa']}, torch "
        f"{machine['torch']}; measured beside: GEMM {machine['sgemm_gflops']:.0f} (float32) and "
        f"{machine['dgemm_gflops']:.0f} GF/s (float64), copy "
        f"{machine['copy_gbytes_per_second']:.0f} GB/s. "
        f"Commit {held['commit']}, `{held['command']}`.",
        "",
        "| case | time | rate | share of GEMM | share of copy | faster than |",
        "|---|---|---|---|---|---|",
    ]
    for name, info in rows.items():
        case = name.partition("[")[2].rstrip("]") or "-"
        peak = machine["dgemm_gflops" if "float64" in case else "sgemm_gflops"]
        flops, moved = info.get("gflops"), info.get("gbytes_per_second")
        rate = [f"{flops:.0f} GF/s"] if flops else []
        rate += [
            f"{value:.3g} {key.removesuffix('_per_second')}/s"
            for key, value in info.items()
            if key.endswith("_per_second") and key != "gbytes_per_second"
        ]
        faster = [f"{other}: {ratio:.2f}x" for other, ratio in info["speedup"].items()]
        cells = [
            case,
            f"{info['seconds']['ours'] * 1e3:.2f} ms",
            "; ".join(rate),
            f"{flops / peak:.0%}" if flops else "",
            f"{moved / machine['copy_gbytes_per_second']:.0%}" if moved else "",
            "; ".join(faster),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
