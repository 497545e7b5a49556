"""Writes a kernel, is killed again and again, and goes on: write_kernel.py FILE ENGINE KILLS SEED.

Each child kills itself before one random line of the modules that write the file, after a random
fraction of a millisecond.  Children are forked, so that none has to import torch again.  Prints at
how many different places they died.
"""

import os
import random
import signal
import sys
from pathlib import Path

import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.explicit import kernel_file, tiles
from catapult_ext.runs import store

FILES = {module.__file__ for module in (kernel_file, tiles, store)}
PURE = ("clean", "<genexpr>", "<dictcomp>", "<listcomp>")  # many lines that write nothing


def write(path, engine):
    """In tiles of five samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 3))
    cx.NTK(model, torch.randn(14, 5), engine=engine).dense(file=path)


def traced(work, at):
    """The lines of FILES that ``work`` runs; ``at(number, line)`` is called before each."""
    count = 0

    def on_line(frame, event, _):
        nonlocal count
        if event == "line":
            count += 1
            at(count, frame.f_lineno)
        return on_line

    def on_call(frame, *_):
        code = frame.f_code
        return on_line if code.co_filename in FILES and code.co_name not in PURE else None

    sys.settrace(on_call)
    try:
        work()
    finally:
        sys.settrace(None)
    return count


def attempt(path, engine, number, delay):
    """Killed ``delay`` seconds after line ``number``; returns whether it ended first."""

    def at(count, line):
        if count == number and delay:
            signal.setitimer(signal.ITIMER_REAL, delay)  # whose default is death on the spot
        elif count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        traced(lambda: write(path, engine), at)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL, -signal.SIGALRM), code
    if code == 0:
        assert Path(path).read_bytes() == Path(path + ".whole").read_bytes()
    return code == 0


def main(path, engine, kills, seed):
    cut = tiles.Tiles._cut
    tiles.Tiles._cut = lambda self: {**cut(self), "edge": 5}
    torch.set_num_threads(1)  # no pool of threads that a fork would lose
    lines = traced(lambda: write(path + ".whole", engine), lambda *_: None)
    moments = random.Random(seed)
    places = set()
    while len(places) < int(kills):
        number, delay = moments.randint(1, lines), moments.choice([0, 0, moments.uniform(0, 1e-3)])
        if attempt(path, engine, number, delay):
            for left in (path, path + ".json"):
                os.unlink(left)
        else:
            places.add((number, delay))
    assert attempt(path, engine, 0, 0)
    print(len(places))


if __name__ == "__main__":
    main(*sys.argv[1:])
