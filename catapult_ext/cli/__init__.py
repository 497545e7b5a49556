"""The command line: argument parsing and printing, no mathematics."""

from __future__ import annotations

import sys

from catapult_ext.cli.app import build_app
from catapult_ext.cli.console import MissingExtra, report_errors


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``catapult-ext``; exits with 0, 1 (refused), 2 (usage) or 130 (Ctrl-C)."""
    try:
        app = build_app()
    except MissingExtra as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    with report_errors():
        app(args=arguments, prog_name="catapult-ext")


__all__ = ["main"]
