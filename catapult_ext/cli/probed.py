"""Shared by probe, max-lr and track: the model with its checkpoints, the data, the output."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from catapult_ext import _validate as v
from catapult_ext import losses
from catapult_ext._batches import map_tensors
from catapult_ext._shown import number
from catapult_ext.cli.console import console, load
from catapult_ext.experiments import probing
from catapult_ext.models.registry import NAMES, is_name
from catapult_ext.probes import LearningRateWindow
from catapult_ext.probes.checkpoints import checkpoint_files, load_checkpoint, name_of

MODEL = (
    "A factory, called without arguments, or a model: package.module:name or FILE.py:name; or "
    + ", ".join(NAMES)
    + "."
)
FORWARD = "package.module:function of (model, x) that returns the outputs."
PARAMS = "Names or patterns of the parameters to take, separated by commas."
DROPOUT = "fixed: one fixed mask, with the model in the factory's mode; else dropout is off."
BATCH_STATS = "Batch normalisation: coupled, frozen or running."
BUDGET = "Memory of the operators, as '512 MiB'."
CHECKPOINT = "Weights to load: a state dict or safetensors, or a folder of them, each in turn."
SEED = "Of torch, NumPy and Python before the factory is called, and of random vectors."
JSON = "Print the numbers as JSON, a line for each checkpoint."
DEVICE = "Where to compute, such as cuda."


@dataclass(frozen=True)
class Given:
    """Arguments about a model and its data, named as the options of the commands."""

    command: str
    model: str
    data: str
    loss: str
    samples: int | None
    seed: int
    device: str
    checkpoint: Path | None
    data_dir: Path | None
    standardise: str | None
    forward: str | None
    params: str | None
    dropout: str | None
    memory_budget: str | None


@dataclass(frozen=True)
class Problem:
    """The model, its data and the options of its operators.

    Attributes:
        net: on its device; in evaluation mode unless dropout is fixed.
        checkpoints: files to load one after the other; None in the place of no checkpoint.
    """

    net: nn.Module
    loss: Any
    data: Any
    options: dict[str, Any]
    checkpoints: Sequence[Path | None]
    command: str

    def each(self) -> Iterator[str | None]:
        """Load one checkpoint after the other, and give its name."""
        for file in self.checkpoints:
            if file is not None:
                load_checkpoint(self.net, file, self.command)
                for key, p in self.net.named_parameters():
                    v.finite(bool(p.isfinite().all()), self.command, f"{key} of {file}")
            yield None if file is None else name_of(file)


def problem_of(given: Given) -> Problem:
    """The problem; everything that was typed is checked before anything is computed."""
    known = losses.resolve(given.loss)
    device = v.device(given.command, given.device)
    files: Sequence[Path | None] = [None]
    if given.checkpoint is not None:
        files = checkpoint_files(given.command, given.checkpoint)
    by_name = is_name(given.model)  # built by the shapes of the data
    how: dict[str, Any] = {"data_dir": given.data_dir, "standardise": given.standardise}
    how |= {"flatten": False} if by_name else {}
    read = functools.partial(probing.load_data, given.data, given.samples, **how)
    held = read() if by_name else None
    net = probing.load_model(given.model, held, seed=given.seed).to(device)
    options = {
        "forward": probing.load_function("--forward", given.forward),
        "params": None if given.params is None else [n.strip() for n in given.params.split(",")],
        "dropout": given.dropout,
        "memory_budget": given.memory_budget,
    }
    if given.dropout is None:
        net.eval()
    held = held if by_name else read()
    found = probing.in_dtype_of(net, probing.as_targets(known, held))
    found = map_tensors(found, lambda t: t.to(device))
    return Problem(net, known, found, options, files, given.command)


def print_rows(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """A table on stdout; its first column gives way where the terminal is narrow."""
    box = load("rich.box").SIMPLE_HEAD
    table = load("rich.table").Table(
        title=title, header_style="bold", box=box, padding=(0, 1, 0, 0)
    )
    for at, name in enumerate(rows[0]):
        narrow = {"overflow": "ellipsis"} if at == 0 else {"no_wrap": True}
        table.add_column(name, justify="left" if at == 0 else "right", **narrow)
    for row in rows:
        table.add_row(*map(number, row.values()))
    console().print(table)


def print_seed(seed: int) -> None:
    """The line that says what to type to see the same numbers again."""
    console().print(f"seed      {seed}", highlight=False)


def print_json(found: Mapping[str, Any]) -> None:
    """One line of JSON, at once."""
    print(json.dumps(found, default=str), flush=True)


def window_facts(window: LearningRateWindow) -> dict[str, Any]:
    """The window as plain numbers, and its advice."""
    return asdict(window) | {"advice": window.advice()}


def print_window(window: LearningRateWindow) -> None:
    """The window and its advice on stdout."""
    shown = console()
    lines = [
        f"lambda_0  {window.lambda0:.5g} +- {window.error:.2g} ({window.index_check})",
        f"eta_crit  {window.eta_crit:.5g} +- {window.eta_crit_error:.2g} "
        f"({window.rule}, linearised here)",
        "eta_c     none found"
        if window.eta_c is None
        else f"eta_c     {window.eta_c:.4g} (first step leaves the loss as it was)",
    ]
    if window.eta_max is None:
        lines.append("eta_max   not known")
    else:
        low, high = window.eta_max
        steps = window.evidence["trial_steps"]
        source = {
            "measured": f"measured in {steps} steps",
            "trials": f"trials of {steps} steps in all",
            "table": f"estimate: {window.evidence['table']}",
        }[window.eta_max_from or ""]
        lines.append(f"eta_max   {low:.4g} to {high:.4g} ({source})")
    if window.start is not None:
        lines.append(f"start     {window.start:.4g}")
    for line in lines:
        shown.print(line, highlight=False, soft_wrap=True)
    shown.print("\n" + window.advice(), highlight=False)
