"""How the commands talk to a person: errors in one line, tables, progress bars."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from catapult_ext import _validate as v
from catapult_ext.experiments import Progress, SeedSweeps, SweepResult, ToyResult

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_WIDTH = 80  # of a terminal that says it has no columns


class MissingExtra(RuntimeError):
    """A package of the extra ``experiments`` is not installed."""


def load(name: str) -> Any:
    """Import an optional package or raise :class:`MissingExtra`, which names the extra."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(
            f"catapult-ext needs {name.split('.')[0]}, which the extra 'experiments' brings: "
            "pip install 'catapult_ext[experiments]'"
        ) from error


def console(*, stderr: bool = False) -> Any:
    """A console of rich; 80 columns wide where the environment says 0, in which nothing shows."""
    given = os.environ.get("COLUMNS", "")
    width = _WIDTH if given.isdigit() and int(given) == 0 else None
    return load("rich.console").Console(stderr=stderr, width=width)


@contextmanager
def report_errors() -> Iterator[None]:
    """Print the package's own errors as one line and exit with 1, without a traceback.

    A standard output that cannot be written to, as on a full disk, is one of them.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, and not when the interpreter ends
    except BrokenPipeError:  # the reader has what it wanted
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        sys.exit(1)
    except OSError as error:
        # an error that names a file is not one of the output
        if error.filename is not None or error.errno not in _NO_ROOM:
            raise
        print(f"error: catapult-ext: cannot write the output: {error.strerror}", file=sys.stderr)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (what is buffered cannot be written)
        sys.exit(1)
    except (ValueError, TypeError, RuntimeError) as error:
        message = str(error)
        if not message.startswith(("catapult_ext", "catapult-ext")):
            raise  # a bug: the traceback is what helps
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)


@contextmanager
def resumable(finished: str) -> Iterator[None]:
    """Ctrl-C says that ``finished`` are stored, and how to resume, and exits with 130."""
    try:
        yield
    except KeyboardInterrupt:
        # Following the advice with --fresh would throw away what is finished.
        command = shlex.join(["catapult-ext", *(a for a in sys.argv[1:] if a != "--fresh")])
        console(stderr=True).print(
            f"\nInterrupted. Finished {finished} are stored; resume with:\n  {command}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        sys.exit(130)


@contextmanager
def sweep_progress() -> Iterator[Progress]:
    """Progress bars of a sweep on stderr; see :func:`resumable`."""
    rich = load("rich.progress")
    bars = rich.Progress(
        rich.SpinnerColumn(),
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(elapsed_when_finished=False),
        console=console(stderr=True),
    )
    with resumable("learning rates"), bars:
        yield _Bars(bars)


@contextmanager
def launched_ranks() -> Iterator[tuple[str | None, bool]]:
    """Yield the process group (``"world"`` under torchrun, else None), and whether to print."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield None, True
        return
    dist.init_process_group("gloo")
    yield "world", dist.get_rank() == 0
    dist.destroy_process_group()


@contextmanager
def on_threads(count: int | None, *, talks: bool = True) -> Iterator[None]:
    """Compute on ``count`` threads, and say on how many.

    By default on one, as the workers of ``reproduce`` do: the nets are small, and a second thread
    mostly waits; ``OMP_NUM_THREADS`` is followed where it is set.
    """
    import torch

    v.require(count is None or count >= 1, "sweep", "--threads must be >= 1", count)
    before = torch.get_num_threads()
    chosen = count or (before if os.environ.get("OMP_NUM_THREADS") else 1)
    if talks:
        word = "thread" if chosen == 1 else "threads"
        line = f"on {chosen} {word} (--threads N for another number)"
        console(stderr=True).print(line, highlight=False, style="dim")
    torch.set_num_threads(chosen)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def picture_path(command: str, path: Path) -> Path:
    """The PNG file to write, its folder made: to be called before the work for the picture."""
    ok = path.suffix.lower() == ".png" and not path.is_dir()
    v.require(ok, command, "--out must be a PNG file", path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        v.fail(command, f"--out must lie in a folder that can be made ({error.strerror})", path)
    writable = os.access(path.parent, os.W_OK)
    v.require(writable, command, "--out must lie in a folder that can be written to", path)
    return path


class _Bars(Progress):
    """One bar over the learning rates, one over the steps of the present rate."""

    def __init__(self, bars: Any) -> None:
        self.bars = bars
        self.rates = self.steps = None

    def begin(self, rates: list[float], steps: int, finished: int) -> None:
        if finished:
            self.bars.console.print(f"{finished} of {len(rates)} learning rates are done already")
        self.rates = self.bars.add_task("learning rates", total=len(rates), completed=finished)
        self.steps = self.bars.add_task("steps", total=steps)

    def rate(self, index: int, c: float) -> None:
        self.bars.reset(self.steps, description=f"steps of c = {c:.4g}")

    def step(self, step: int, loss: float) -> None:
        self.bars.update(self.steps, completed=step)

    def done(self, index: int, c: float, phase: str) -> None:
        self.bars.advance(self.rates)

    def stage(self, name: str) -> None:
        self.bars.console.print(f"[dim]{name} ...[/dim]", highlight=False)


def print_result(result: SweepResult | SeedSweeps | ToyResult, title: str) -> None:
    """The table of an experiment, the closing paragraph and where the files are, on stdout.

    Several seeds share a table with one row per learning rate.
    """
    shown = console()
    colours = {
        "lazy": "blue",
        "flat": "cyan",
        "catapult": "dark_orange",
        "divergent": "bright_black",
    }
    box = load("rich.box").SIMPLE_HEAD
    table = load("rich.table").Table(
        title=title, header_style="bold", box=box, padding=(0, 1, 0, 0)
    )
    rows = result.by_rate() if isinstance(result, SeedSweeps) else result.table()
    hidden = (
        () if shown.width >= 120 else ("eta", "lambda end", "train acc.", "|theta|", "inactive")
    )
    names = [name for name in rows[0] if name not in hidden]
    for name in names:
        table.add_column(name.replace(" ", "\n", 1), justify="right")
    for row in rows:
        table.add_row(*(row[n] for n in names), style=colours[row["phase"].split()[0]])
    shown.print(table)
    shown.print(result.closing(), highlight=False)
    if result.path is not None:
        report = f"\nReport: {result.path / 'report.html'}"
        shown.print(report, highlight=False, markup=False, soft_wrap=True)
