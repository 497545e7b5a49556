"""`python -m benchmarks.store RUN.json ... NAME`: keep benchmark runs as results/NAME.json.

The runs are files of `python -m benchmarks --json RUN.json`, of one commit on one machine; a large
run may be cut into several. Machine and peaks are those of the first.
"""

import json
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def merged(runs: list[dict]) -> dict:
    """What is kept: one command, one commit, one machine, and name -> what was measured."""
    commits = {run["commit_info"]["id"] for run in runs}
    if len(commits) != 1 or any(run["commit_info"]["dirty"] for run in runs):
        raise ValueError(f"the runs must be of one clean commit, got {sorted(commits)}")
    rows: dict[str, dict] = {}
    for run in runs:
        for row in run["benchmarks"]:
            if row["name"] in rows:
                raise ValueError(f"{row['name']} was measured twice")
            rows[row["name"]] = row["extra_info"]
    return {
        "command": "python -m benchmarks --json FILE",
        "commit": commits.pop()[:7],
        "machine": runs[0]["machine_info"]["catapult_ext"],
        "benchmarks": rows,
    }


def main(arguments: list[str]) -> int:
    """Read the runs, write the one file."""
    *files, name = arguments
    kept = merged([json.loads(Path(file).read_text()) for file in files])
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
