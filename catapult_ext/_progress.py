"""Progress of long calls: a function of yours, a bar in a terminal or notebook, lines elsewhere.

Every ``progress=`` of the package means the same.  None (the default) and False show nothing.  A
function is called as ``progress(done, total)`` with two integers.  ``total`` is a limit or an
estimate if the end is not known in advance.  An exception that the function raises stops the call,
as Ctrl-C does.  True shows a bar on stderr or in the notebook's cell, and prints a line every ten
seconds if there is neither.

The logger ``catapult_ext`` of :mod:`logging` records one INFO line for every long call that has
ended and for every probe of a tracker.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from catapult_ext import _validate as v

Report = Callable[[int, int], None]
Progress = bool | Report | None

_CHANNEL = logging.getLogger("catapult_ext")
_CELLS = 24  # of a bar
_BETWEEN = {"terminal": 0.1, "notebook": 0.25, "lines": 10.0}  # seconds from one to the next


class Counter:
    """Counts what is done of ``total``, and reports it where it is asked to."""

    def __init__(self, report: Report | None, total: int, *, wanted: bool = False) -> None:
        self._report, self.total, self.done = report, total, 0
        self.wanted = wanted  # whether anybody looks

    def add(self, count: int = 1) -> None:
        """Add ``count`` to the number done."""
        self.at(self.done + count)

    def at(self, done: int) -> None:
        """Set the number done; it never decreases and never exceeds ``total``."""
        self.done = min(max(done, self.done), self.total)
        if self._report is not None:
            self._report(self.done, self.total)


_running: ContextVar[Counter | None] = ContextVar("counter of the call that runs", default=None)


@contextmanager
def shared(counter: Counter) -> Iterator[None]:
    """Loops deep inside report to ``counter`` by :func:`report_share`."""
    token = _running.set(counter)
    try:
        yield
    finally:
        _running.reset(token)


def report_share(done: int, total: int) -> None:
    """Report the part of the running call that is done, if its caller asked for progress."""
    counter = _running.get()
    if counter is not None and total:
        counter.at(counter.total * done // total)


def check_progress(where: str, progress: object) -> None:
    """Raise TypeError unless ``progress`` is True, False, None or a function."""
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        needs = "progress must be True, False, None or a function of (done, total)"
        v.fail(where, needs, type(progress).__name__, TypeError)


@contextmanager
def counted(
    progress: Progress, where: str, total: int, unit: str, *, of: str = "of"
) -> Iterator[Counter]:
    """A counter for what runs inside, which shows itself as ``progress`` says.

    Args:
        progress: see the module.
        where: the public function.
        total: of ``unit``.
        unit: what is counted, in the plural.
        of: "of", "of at most" or "of about", where the end is not known.

    Raises:
        TypeError: ``progress`` is none of these.
    """
    check_progress(where, progress)
    logs = _CHANNEL.isEnabledFor(logging.INFO)
    began = time.monotonic()
    bar = Bar(where, unit, of=of) if progress is True else None
    report: Report | None = None if bar is None else bar.show
    if callable(progress):
        report = _named(progress, where)
    counter = Counter(report, total, wanted=logs or report is not None)
    try:
        yield counter
    finally:
        if bar is not None:
            bar.close()
    if logs:
        seconds = for_people(time.monotonic() - began)
        _CHANNEL.info("%s: %d %s in %s", where, counter.done, unit, seconds)


def _named(progress: Report, where: str) -> Report:
    """``progress``, whose exceptions say where they come from."""

    def report(done: int, total: int) -> None:
        try:
            progress(done, total)
        except Exception as error:
            if hasattr(error, "add_note"):  # from Python 3.11 on
                error.add_note(f"raised by the progress= function of catapult_ext.{where}")
            raise

    return report


class Bar:
    """The text of a progress, where a person looks for it.

    Args:
        where: the public function.
        unit: what is counted.
        of: "of", "of at most" or "of about".
        stream: to write to; default stderr.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        where: str,
        unit: str,
        *,
        of: str = "of",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._where, self._unit, self._of = where, unit, of
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._cell: Any = None  # of a notebook
        given = stream is not None
        self._kind = "notebook" if not given and _in_notebook() else "lines"
        if self._kind == "lines" and self._stream is not None and self._stream.isatty():
            self._kind = "terminal"
        self._began = clock()
        # where nobody sees a line overwritten, a short call writes none
        self._shown = self._began if self._kind == "lines" else -1e9
        self._open = False
        self._last = (0, 0)

    def show(self, done: int, total: int) -> None:
        """Show it, unless the last one was shown just before."""
        now, self._last = self._clock(), (done, total)
        if now - self._shown >= _BETWEEN[self._kind]:
            self._shown = now
            self._write(done, total, now - self._began)

    def close(self) -> None:
        """Show the last number, and end the line."""
        if not self._open:
            return
        self._write(*self._last, self._clock() - self._began)
        if self._kind == "terminal":
            print(file=self._stream)
        self._open = False

    def _write(self, done: int, total: int, seconds: float) -> None:
        text = self._text(done, total, seconds)
        self._open = True
        if self._kind == "notebook":
            self._into_cell(f'<progress value="{done}" max="{total}"></progress> {text}')
        elif self._kind == "terminal":
            width = shutil.get_terminal_size().columns - 1
            cells = _CELLS * done // total if total else _CELLS
            line = f"{text} [{'#' * cells}{'.' * (_CELLS - cells)}]"
            shown = (line if len(line) <= width else text)[:width]
            print(f"\r{shown.ljust(width)}", end="", file=self._stream, flush=True)
        elif self._stream is not None:
            print(f"catapult_ext.{text}", file=self._stream, flush=True)

    def _text(self, done: int, total: int, seconds: float) -> str:
        parts = [f"{self._where}: {done} {self._of} {total} {self._unit}", for_people(seconds)]
        if 0 < done < total and self._of == "of":
            parts.append(f"about {for_people(seconds * (total - done) / done)} left")
        return ", ".join(parts)

    def _into_cell(self, page: str) -> None:
        from IPython.display import HTML, display

        if self._cell is None:
            self._cell = display(HTML(page), display_id=True)
        else:
            self._cell.update(HTML(page))


def _in_notebook() -> bool:
    """Whether output goes to a cell of a notebook; IPython is never imported for that."""
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def for_people(seconds: float) -> str:
    """A time: two digits of seconds, else minutes or hours."""
    if seconds < 1e-3:
        return "under 1 ms"
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"
