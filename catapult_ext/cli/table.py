"""catapult-ext table: all steps of a run folder as one long table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from catapult_ext.cli.options import Argument
from catapult_ext.runs.steps_table import steps_table, write_table


def table(
    folder: Annotated[Path, Argument("Run folder of a sweep or an experiment.")],
    file: Annotated[Path, Argument("FILE.csv, or FILE.parquet where pyarrow is installed.")],
) -> None:
    """Write every stored step of a run, one row for each seed, rate and step."""
    rows = steps_table(folder)
    print(f"{len(rows)} rows: {write_table(rows, file)}")
