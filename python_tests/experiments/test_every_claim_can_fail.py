"""Every claim of every experiment has a test that makes it fail and one that leaves it open."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

from catapult_ext.experiments import reproduce

HERE = Path(__file__).parent
SOURCE = Path(reproduce.__file__).parent
# the tests of claims on made-up data; what else is in the files takes too long to run twice
TESTS = [
    *sorted(str(path) for path in HERE.glob("test_*claims*.py")),
    *(f"{HERE / 'test_paper_fc.py'}::{name}" for name in (
        "test_values", "test_largest_stable_rate", "test_catapults_rise_and_come_down",
    )),
    f"{HERE / 'test_phase_plane.py'}::test_a_difference_within_the_errors_decides_nothing",
]  # fmt: skip
SLOW = "hollow or equal_time or on_a_line or cannot_be"


def makers() -> list[str]:
    """The functions that call ``Claim``, as ``file.py:function``."""
    found = []
    for path in sorted(SOURCE.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(call, ast.Call) and getattr(call.func, "id", None) == "Claim"
                for call in ast.walk(node)
            ):
                found.append(f"{path.name}:{node.name}")
    return found


def test_every_claim_fails_somewhere_and_is_left_open_somewhere(tmp_path):
    seen = tmp_path / "seen.json"
    plain = ["-q", "-p", "no:cacheprovider", "-p", "experiments.recorded_claims"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plain, "-k", f"not ({SLOW})", *TESTS],
        env={**os.environ, "CATAPULT_CLAIMS": str(seen)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    held, made = json.loads(seen.read_text()), makers()
    assert len(made) > 60  # they are found at all
    both = {"False", "None"}
    missing = {name: held.get(name, []) for name in made if both - set(held.get(name, []))}
    assert not missing, "no test makes these fail, or leaves them open"
