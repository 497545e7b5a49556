"""`python -m benchmarks [--quick] [pytest options]`: run every benchmark and print the table.

`--quick` is the smoke test that the test suite runs; `--json FILE` keeps the full record.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(arguments: list[str]) -> int:
    """Run pytest here; the checkout leaves sys.path, as it would shadow the installed package."""
    if not list((HERE.parent / "catapult_ext").glob("_C.*so")):
        sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != HERE.parent]
    import pytest

    options = ["--benchmark-enable", "--benchmark-disable-gc", "--benchmark-quiet"]
    options += ["--durations-min=60", "-q", "--no-header", "-p", "no:cacheprovider"]
    arguments = [a.replace("--json", "--benchmark-json", 1) for a in arguments]
    if not any(Path(a.split("::")[0]).exists() for a in arguments if not a.startswith("-")):
        arguments.append(str(HERE))
    return pytest.main(options + arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
