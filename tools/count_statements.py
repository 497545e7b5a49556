#!/usr/bin/env python3
"""Count the statements of Python files, docstrings excluded: tools/count_statements.py PATH ...

A statement is an ``ast.stmt`` node, so layout, comments and docstrings do not count.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path


def is_docstring(node: ast.stmt) -> bool:
    """Whether a statement is nothing but a string."""
    value = getattr(node, "value", None) if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def statements(source: str) -> int:
    """Number of statements of a module's text."""
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt))
    return sum(not is_docstring(node) for node in nodes)


def count(path: Path) -> int:
    """Statements of a file, or of all Python files below a folder."""
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return sum(statements(file.read_text(encoding="utf-8")) for file in files)


def main(paths: list[str]) -> int:
    """Print a line for each path and the sum; missing paths count as nothing."""
    counts = {path: count(Path(path)) for path in paths if Path(path).exists()}
    for path, number in counts.items():
        print(f"{number:6d} {path}")
    print(f"{sum(counts.values()):6d} in all")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
